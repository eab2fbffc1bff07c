"""Power: published lines parsed, lines per second, energy against the truth, what a sampler costs, and every fault.

jtop's parser runs beside ours where jetson-stats is installed (extra `bench`); its sampler is a service of root's that
needs a Jetson. Zeus has no parser; its sampler runs beside ours where it is installed (`pip install zeus`), both on
made-up sensors in a folder, since neither asks whose files they are. `common` comes first, since it puts the
repository before this folder: `power` is the package then, not this file.
"""

from __future__ import annotations

import csv
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from common import ROOT, SHARED, arguments, emit, median

from power.boards import AGX_ORIN_64GB
from power.hwmon import HwmonRails
from power.log import LogSource
from power.meter import Meter
from power.reading import RailReading, Reading, parse_line, parse_log
from power.sampler import Sampler
from power.tegrastats import Tegrastats
from tests.power.test_hwmon import chip
from tests.power.test_mutated_lines import LINES, check, mutated

LOGS = SHARED / "tegrastats"
JTOP_SAMPLER = "not run: a service of root's, on a Jetson alone"
FAULTS = {  # each ends in its message, and with clocks and mode as before: what the test checks
    "child killed": "test_tegrastats.py::test_a_child_that_is_killed_is_seen_early_and_raised_at_the_end",
    "child hung": "test_tegrastats.py::test_silence_in_between_is_an_error_even_if_lines_come_back",
    "child prints garbage": "test_tegrastats.py::test_garbage_alone_is_an_error_that_shows_the_last_line",
    "rails stay away": "test_tegrastats.py::test_rails_that_stay_away_are_an_error",
    "rights to sysfs lost": "test_hwmon.py::test_a_bus_that_fails_and_rights_that_are_lost_are_told_apart",
    "rights to sudo lost in a hold": "test_hold.py::test_rights_lost_midway_are_said_and_can_be_undone_later",
    "disk full while logging": "test_tegrastats.py::test_an_error_of_the_line_callback_reaches_the_caller",
    "disk full before a mode change": "test_hold.py::test_stamp_that_finds_no_room_changes_nothing",
    "mode change refused": "test_hold.py::test_change_refused_by_nvpmodel",
    "exit 255 that worked": "test_hold.py::test_exit_255_that_worked",
    "exit 0 that did not": "test_hold.py::test_exit_0_that_did_not",
    "mode change hangs": "test_hold.py::test_mode_change_that_hangs_is_put_back",
    "kill -9 while a mode is held": "test_hold.py::test_kill_9_while_a_mode_is_held",
}
# Zeus' own loop, in a process of its own as Zeus has it; of an AGX Orin's rails it reads two.
ZEUS = """
import asyncio, queue, sys, threading, time
from pathlib import Path
from zeus.device.soc.jetson import Command, VoltageCurrentProduct, _polling_process_async
chip, seconds = Path(sys.argv[1]), float(sys.argv[2])
rails = {
    name: VoltageCurrentProduct(chip / f"in{channel}_input", chip / f"curr{channel}_input")
    for channel, name in ((1, "gpu_power_mw"), (2, "cpu_power_mw"))
}
commands = queue.Queue()
threading.Timer(seconds, commands.put, [Command.STOP]).start()
before, begin = time.process_time(), time.monotonic()
asyncio.run(_polling_process_async(commands, queue.Queue(), rails))
print(100 * (time.process_time() - before) / (time.monotonic() - begin))
"""
SECOND_NS = 1_000_000_000
WINDOWS_S = (1, 5, 30)
BASE_W, STEP_W = 7.0, 20.0  # of the simulated step: 7 W to 27 W
SAMPLE_S = 0.1
PARTS = 10
FILTER_SAMPLES, CYCLE_S = 512, 3 * 280e-6  # the chip's, see power.boards


def corpus() -> dict[str, object]:
    """Return how many published records and hand-made expectations the parser gets right."""
    if not LOGS.is_dir():
        return {"skipped": "published logs are not at hand"}
    rows = list(csv.DictReader((LOGS / "index.csv").open(encoding="utf-8")))
    records, right_files = 0, 0
    for row in rows:
        found = sum(reading is not None for _, reading in parse_log(_lines(row["file"])))
        records += found
        right_files += found == int(row["records"])
    cases = json.loads((LOGS / "expected.json").read_text(encoding="utf-8"))["cases"]
    return {
        "files": len(rows),
        "files_right": right_files,
        "records": records,
        "expected": len(cases),
        "expected_right": sum(map(_as_expected, cases)),
    }


def _lines(name: str) -> list[str]:
    return (LOGS / name).read_text(encoding="utf-8").splitlines()


def _as_expected(case: dict[str, object]) -> bool:
    reading = parse_line(_lines(str(case["file"]))[int(str(case["line"])) - 1])
    expected = {key: value for key, value in dict(case["expect"]).items() if key != "warn"}  # type: ignore[call-overload]
    return reading is not None and json.loads(json.dumps(reading.as_json())) == expected


def broken(count: int) -> dict[str, int]:
    """Return how many mutated lines have a total, all of them checked; a wrong one or an exception ends the run."""
    dice = random.Random(2026)
    return {"lines": count, "totals": sum(check(mutated(dice.choice(LINES), dice)) for _ in range(count))}


def varied(line: str, count: int) -> list[str]:
    """Return lines as a busy board prints them: all but identical, with other loads, temperatures and powers."""
    dice = random.Random(3)

    def vary(found: re.Match[str]) -> str:
        if found["load"]:
            return f"{dice.randrange(100)}%"
        if found["used"]:
            return f"RAM {int(found['used']) + dice.randrange(500)}/"
        if found["zone"]:
            return f"@{int(found['zone']) + dice.randrange(3)}.{dice.randrange(32) * 1000 // 32:03}C"
        return f" {dice.randrange(6, 60) * 398}mW/{int(found['average']) + dice.randrange(40)}mW"

    changing = re.compile(r"(?P<load>\d+)%|RAM (?P<used>\d+)/|@(?P<zone>\d+)[.\d]*C| \d+mW/(?P<average>\d+)mW")
    return [changing.sub(vary, line) for _ in range(count)]


def lines_per_second(parse: Callable[[str], object], lines: Sequence[str]) -> float:
    """Return the median rate, in seconds of CPU time, over equal parts of some lines, each parsed once."""
    part = len(lines) // PARTS
    rates = []
    for at in range(0, part * PARTS, part):
        begin = time.process_time()
        for line in lines[at : at + part]:
            parse(line)
        rates.append(part / (time.process_time() - begin))
    return median(rates)


def jtop_parser() -> Callable[[str], object] | None:
    """Return jtop's decoder of a line, None where jetson-stats cannot be imported."""
    try:
        from jtop.core.tegrastats import Tegrastats as Jtop
    except ImportError:
        return None

    def decode(line: str) -> object:
        return Jtop._decode(None, line)

    return decode


def speed(quick: bool) -> dict[str, object]:
    """Return rates over one line again and again, and over lines that differ; jtop's over the latter."""
    line, count = (
        LINES[0].replace("[12%@1728,off,0%@729]", f"[{','.join(['12%@1728'] * 12)}]"),
        20_000 if quick else 200_000,
    )
    different = varied(line, count)
    jtop = jtop_parser()
    return {
        "same_lines_per_s": lines_per_second(parse_line, [line] * count),
        "different_lines_per_s": lines_per_second(parse_line, different),
        "jtop_different_lines_per_s": None if jtop is None else lines_per_second(jtop, different),
        "jtop_corpus": None if jtop is None else _jtop_corpus(jtop),
    }


def _jtop_corpus(jtop: Callable[[str], object]) -> dict[str, int] | None:
    """Return how many published records jtop's decoder refuses with an exception."""
    if not LOGS.is_dir():
        return None
    lines = [line for path in sorted(LOGS.glob("*.log")) for line in _lines(path.name) if parse_line(line)]
    return {"lines": len(lines), "exceptions": sum([_raises(jtop, line) for line in lines])}


def _raises(parse: Callable[[str], object], line: str) -> bool:
    try:
        parse(line)
    except Exception:  # whatever it is, it is counted
        return True
    return False


def source(watts: Sequence[tuple[float, float]]) -> LogSource:
    """Return readings of the module at given seconds, all of it on the GPU's rail."""
    rest = {name: RailReading(0, None, None) for name in ("VDD_CPU_CV", "VIN_SYS_5V0")}
    readings = [
        (round(at_s * SECOND_NS), Reading({}, {}, {"VDD_GPU_SOC": RailReading(round(w * 1000), None, None), **rest}))
        for at_s, w in watts
    ]
    return LogSource("trace", readings)


def joules(watts: Sequence[tuple[float, float]], seconds: float, edge_term: bool) -> float:
    """Return the module's energy from 0 to so many seconds."""
    energy = Meter(AGX_ORIN_64GB, source(watts)).energy(0, round(seconds * SECOND_NS), edge_term=edge_term)
    assert energy.module_j is not None
    return energy.module_j.value


def by_hand() -> dict[str, float]:
    """Return the energy of a small trace, and its trapezoids worked out by hand."""
    trace = [(0.0, 10.0), (0.5, 20.0), (1.0, 20.0), (2.0, 0.0)]
    return {"meter_j": joules(trace, 2.0, edge_term=False), "by_hand_j": 7.5 + 10.0 + 10.0}


def shown(seconds: float) -> list[tuple[float, float]]:
    """Return what the sensor shows of the step at t = 0: the data sheet's filter, cycle by cycle, in whole steps."""
    at_s = np.arange(-1.0, seconds + SAMPLE_S, SAMPLE_S)
    cycles = np.maximum(0, np.floor(at_s / CYCLE_S)).astype(int)
    filtered_w = BASE_W + STEP_W * (1 - (1 - 1 / FILTER_SAMPLES) ** cycles)
    step_w = AGX_ORIN_64GB.rails[0].step_w
    return list(zip(at_s.tolist(), (np.round(filtered_w / step_w) * step_w).tolist(), strict=True))


def step_response() -> dict[str, dict[str, float]]:
    """Return, for each window, how far the energy is off with and without the edge term."""
    results = {}
    for seconds in WINDOWS_S:
        true_j = (BASE_W + STEP_W) * seconds
        found = {term: joules(shown(seconds), seconds, edge_term=term) / true_j - 1 for term in (False, True)}
        results[f"{seconds}_s"] = {"raw": found[False], "edge_term": found[True]}
    return results


def sampler(seconds: float) -> dict[str, float]:
    """Return the share of one core that reading 10 lines a second takes, and that with the child that prints them.

    The child is a small program; the real tegrastats is NVIDIA's.
    """
    program = f"import time\nwhile True:\n    print({LINES[0]!r}, flush=True)\n    time.sleep(0.1)"
    before_child = _cpu_s(resource.RUSAGE_CHILDREN)
    with Tegrastats([sys.executable, "-S", "-c", program]) as running:
        begin, before = time.monotonic(), _cpu_s(resource.RUSAGE_SELF)
        first = len(running.readings())
        time.sleep(seconds)
        own_s, wall_s = _cpu_s(resource.RUSAGE_SELF) - before, time.monotonic() - begin
        stamps = [stamp for stamp, _ in running.readings()[first:]]
    child_s = _cpu_s(resource.RUSAGE_CHILDREN) - before_child
    gaps_s = [(after - before) / SECOND_NS for before, after in pairwise(stamps)]
    return {
        "own_percent": 100 * own_s / wall_s,
        "with_child_percent": 100 * (own_s + child_s) / wall_s,
        "lines_per_s": len(stamps) / wall_s,
        "largest_gap_s": max(gaps_s),
    }


def samplers(seconds: float) -> dict[str, object]:
    """Return the share of one core that reading sysfs at 10 Hz takes: ours, three rails, and Zeus's, two."""
    with tempfile.TemporaryDirectory() as root:
        rails = [("VDD_GPU_SOC", 19864, 180), ("VDD_CPU_CV", 19880, 20), ("VIN_SYS_5V0", 5008, 940)]
        folder = chip(Path(root), "1-0040", "hwmon5", rails, samples=512, update_interval=1)
        with Sampler(HwmonRails(Path(root)), 100.0):
            begin, before = time.monotonic(), _cpu_s(resource.RUSAGE_SELF)
            time.sleep(seconds)
            own_s, wall_s = _cpu_s(resource.RUSAGE_SELF) - before, time.monotonic() - begin
        return {
            "own_percent": 100 * own_s / wall_s,
            "zeus_percent": _zeus_percent(folder, seconds),
            "jtop": JTOP_SAMPLER,
        }


def _zeus_percent(folder: Path, seconds: float) -> float | str:
    done = subprocess.run([sys.executable, "-c", ZEUS, folder, str(seconds)], capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else f"not run: {done.stderr.strip().splitlines()[-1]}"


def faults() -> dict[str, bool]:
    """Return of each fault whether it ends as its test says."""
    tests = [f"tests/power/{test}" for test in FAULTS.values()]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, capture_output=True, text=True)
    ran = done.returncode in (0, 1)  # else a test is not there, or pytest is not
    return {name: ran and f"FAILED tests/power/{test}" not in done.stdout for name, test in FAULTS.items()}


def _cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run every part."""
    options = arguments("Power: parser, energy, sampler")
    results: dict[str, object] = {
        "corpus": corpus(),
        "mutated": broken(1000 if options.quick else 10_000),
        "speed": speed(options.quick),
        "by_hand": by_hand(),
        "step": step_response(),
        "sampler": sampler(3.0 if options.quick else 60.0),
        "samplers": samplers(3.0 if options.quick else 60.0),
        "faults": faults(),
    }
    emit(results, _rows(results), options)


def _rows(results: dict[str, object]) -> list[tuple[str, str, str]]:
    known, rates, cpu, sysfs = (dict(results[name]) for name in ("corpus", "speed", "sampler", "samplers"))  # type: ignore[call-overload]
    hand, steps, mutants = (dict(results[name]) for name in ("by_hand", "step", "mutated"))  # type: ignore[call-overload]
    rows = [("published logs", str(known["skipped"]), "")] if "skipped" in known else _corpus_rows(known)
    rows += [
        ("mutated lines: without exception; with a total, all right", f"{mutants['lines']}; {mutants['totals']}", ""),
        ("lines/s, one line again and again", f"{rates['same_lines_per_s']:,.0f}", ">= 50,000"),
        ("lines/s, no two lines alike", f"{rates['different_lines_per_s']:,.0f}", ">= 50,000"),
    ]
    if rates["jtop_different_lines_per_s"] is None:
        rows.append(("jtop's parser", "not importable", "pip install jetson-stats"))
    else:
        rows.append(("lines/s of jtop's parser, no two lines alike", f"{rates['jtop_different_lines_per_s']:,.0f}", ""))
        refused = rates["jtop_corpus"]
        rows += [("lines that jtop's decoder refuses", f"{refused['exceptions']} of {refused['lines']}", "")] * bool(
            refused
        )
    rows.append(("energy of a trace; by hand", f"{hand['meter_j']:.3f} J; {hand['by_hand_j']:.3f} J", "equal"))
    for window, error in steps.items():
        what = f"step 7 to 27 W, error over {window.replace('_', ' ')}: raw; with edge term"
        rows.append((what, f"{error['raw']:+.1%}; {error['edge_term']:+.2%}", ""))
    rows.append(("sampler at 10 Hz: CPU of one core", f"{cpu['own_percent']:.2f} %", "< 0.5 %"))
    rows.append(("the same with its child", f"{cpu['with_child_percent']:.2f} %", ""))
    rows.append(("reading sysfs at 10 Hz: CPU of one core", f"{sysfs['own_percent']:.2f} %", "< 0.5 %"))
    zeus = sysfs["zeus_percent"]
    rows.append(("Zeus's reading of it, two rails", zeus if isinstance(zeus, str) else f"{zeus:.2f} %", ""))
    rows.append(("jtop's sampler", str(sysfs["jtop"]), ""))
    ended = dict(results["faults"])  # type: ignore[call-overload]
    return rows + [
        (f"fault: {name}", "as it should" if right else "NOT as it should", "") for name, right in ended.items()
    ]


def _corpus_rows(known: dict[str, int]) -> list[tuple[str, str, str]]:
    return [
        ("published logs with as many records as they hold", f"{known['files_right']} of {known['files']}", "all"),
        ("records parsed", str(known["records"]), ""),
        ("hand-made expectations met", f"{known['expected_right']} of {known['expected']}", "all"),
    ]


if __name__ == "__main__":
    main()
