"""What the fake nvpmodel, jetson_clocks and sudo do to a folder; also run as programs, with ROOT and NAME set.

Faults, by the text of `faults/PROGRAM`: `refuse` (sudo), `255` (all well, exit 255), `lie` (exit 0, nothing done),
`error`, `reboot` (asks, nothing done), `hang`, `no-verbose`, `refuse-changes` (sudo, for `nvpmodel -m` alone), `silent`
(no mode named).
"""

import os
import sys
import time
from pathlib import Path

HANG = None


def _fault(root, program):
    return _read(root, f"faults/{program}") or ""


def _file(root, path):
    return Path(root, path.lstrip("/"))


def _read(root, path):
    try:
        return _file(root, path).read_text()
    except OSError:
        return None


def _write(root, path, value):
    file = _file(root, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(value))


def _conf(path):
    """Sections of a mode file: parameters' paths, modes' values in order, modes' names."""
    paths, modes, names, here, section = {}, {}, {}, None, None
    text = Path(path).read_text()
    lines = [line.split("#")[0].split() for line in text.replace("<", "< ").replace(">", " >").splitlines()]
    for words in filter(None, lines):
        if words[0] == "<":
            fields = dict(word.split("=") for word in words if "=" in word)
            section = words[1]
            here = fields.get("NAME") if section == "PARAM" else fields.get("ID")
            if section == "POWER_MODEL":
                modes[int(here)], names[int(here)] = [], fields["NAME"]
        elif section == "PARAM":
            paths[here, words[0]] = words[1]
        elif section == "POWER_MODEL":
            modes[int(here)].append(words)
    return paths, modes, names


def _where(paths, parameter, argument):
    return paths.get((parameter, argument + "_KNEXT")) or paths[parameter, argument]


def _made_of(root, paths, parameter, argument, value):
    """The value that the kernel makes of a wanted one."""
    if argument not in ("MAX_FREQ", "MIN_FREQ"):
        return value
    table = (parameter, "FREQ_TABLE")
    known = table in paths and _read(root, _where(paths, *table))
    if not known:
        return value
    clocks = sorted(map(int, known.split()))
    wanted = int(value) if int(value) >= 0 else clocks[-1]
    return max((clock for clock in clocks if clock <= wanted), default=clocks[0])


def _apply(root, conf, number):
    paths, modes, _ = _conf(conf)
    for parameter, argument, value in modes[number]:
        _write(root, _where(paths, parameter, argument), _made_of(root, paths, parameter, argument, value))
    _write(root, "var/lib/nvpmodel/status", number)


def _verbose(root, conf, number):
    paths, modes, names = _conf(conf)
    lines = [f"NVPM VERB: Config file: {conf}", f"NVPM VERB: Current mode: NV Power Mode: {names[number]}", str(number)]
    lines.append("NVPM WARN: fan mode is not set!")
    for parameter, argument, value in modes[number]:
        path = _where(paths, parameter, argument)
        wanted = 2**63 - 1 if value == "-1" else value
        real = _read(root, path)
        shown = f"NVPM VERB: PARAM {parameter}: ARG {argument}: PATH {path}: REAL_VAL: {real} CONF_VAL: {wanted}"
        lines.append(shown)
    return lines


def nvpmodel(root, arguments):
    fault = _fault(root, "nvpmodel")
    conf = arguments[arguments.index("-f") + 1] if "-f" in arguments else _file(root, "etc/nvpmodel.conf")
    number = int(_read(root, "var/lib/nvpmodel/status") or 0)
    if "-q" in arguments:
        if fault == "silent":
            return 1, "NVPM ERROR: failed to read PM_CONFIG"
        if "--verbose" in arguments and fault != "no-verbose":
            return 0, "\n".join(_verbose(root, conf, number))
        names = _conf(_file(root, "etc/nvpmodel.conf"))[2]
        return 0, f"NVPM WARN: fan mode is not set!\nNV Power Mode: {names[number]}\n{number}"
    wanted = int(arguments[arguments.index("-m") + 1])
    if fault == "hang":
        return HANG, "NVPM VERB: waiting"
    if fault == "error":
        return 1, f"NVPM ERROR: failed to set power mode {wanted}"
    if fault == "reboot":
        return 0, "NVPM WARN: Reboot required for changing to this power mode\nDO YOU WANT TO REBOOT NOW? enter YES/yes"
    if fault != "lie":
        _apply(root, conf, wanted)
    return (255 if fault == "255" else 0), ""


STORED = ("/sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq", "/sys/kernel/locked")


def jetson_clocks(root, arguments):
    if _fault(root, "jetson_clocks") == "error":
        return 1, "Error: clocks cannot be stored"
    if arguments[:1] == ["--show"]:
        low = 1300500000 if _read(root, STORED[1]) == "1" else 306000000
        return 0, f"SOC family:tegra234\nGPU MinFreq={low} MaxFreq=1300500000 CurrentFreq={low}\n"
    if arguments[:1] == ["--store"]:
        Path(arguments[1]).write_text("".join(f"{path}:{_read(root, path) or 0}\n" for path in STORED))
    elif arguments[:1] == ["--restore"]:
        for line in Path(arguments[1]).read_text().splitlines():
            path, _, value = line.partition(":")
            _write(root, path, value)
    elif _fault(root, "jetson_clocks") != "lie":
        _write(root, STORED[0], 2201600)
        _write(root, STORED[1], 1)
    return 0, ""


PROGRAMS = {"nvpmodel": nvpmodel, "jetson_clocks": jetson_clocks}


def _refused(root, program, arguments):
    fault = _fault(root, "sudo")
    return fault == "refuse" or (fault == "refuse-changes" and program == "nvpmodel" and "-m" in arguments)


def through_sudo(root, program, arguments, as_root):
    if as_root and _refused(root, program, arguments):
        return 1, "sudo: a password is required"
    return PROGRAMS[program](root, arguments)


def main(root, name, arguments):
    if name == "sudo":  # -n PROGRAM ...
        program = Path(arguments[1]).name
        if _refused(root, program, arguments):
            return 1, "sudo: a password is required"
        os.execv(arguments[1], arguments[1:])
    return PROGRAMS[name](root, arguments)


if "ROOT" in globals():
    code, text = main(ROOT, NAME, sys.argv[1:])  # noqa: F821 - set by the executable
    if code is HANG:
        time.sleep(600)
    print(text, file=sys.stderr if "ERROR" in text or "sudo:" in text else sys.stdout)
    sys.exit(code)
