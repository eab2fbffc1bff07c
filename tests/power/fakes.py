"""A Jetson in a folder: `/etc`, `/sys`, and programs that behave like nvpmodel, jetson_clocks and sudo, well or badly.

`fake_programs.py` is what the programs run; `Fakes` calls the same functions in this process, which is quicker.
"""

from __future__ import annotations

import sys
from pathlib import Path

from power.commands import Done
from power.stamp import Processes
from tests.power import fake_programs

CPUS = "/sys/devices/system/cpu"
GPU = "/sys/devices/platform/17000000.gpu/devfreq_dev"
TPC = "/sys/devices/platform/gpu.0/tpc_pg_mask"
EMC = "/sys/kernel/nvpmodel_clk_cap/emc"
DLA = "/sys/devices/platform/bus@0/13e00000.host1x/15880000.nvdla0/clk_cap/dla0_core"
OLD_GPU = "/sys/devices/17000000.ga10b/devfreq/17000000.ga10b"
CPU_TABLE = [729600, 1113600, 1420800, 1497600, 1728000, 2201600]
GPU_TABLE = [306000000, 408000000, 510000000, 612000000, 714000000, 816000000, 1300500000]

PARAMETERS = f"""
# < POWER_MODEL ID=id_num NAME=mode_name >
# < PM_CONFIG DEFAULT=default_mode >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 {CPUS}/cpu0/online
CORE_1 {CPUS}/cpu1/online
CORE_2 {CPUS}/cpu2/online
CORE_3 {CPUS}/cpu3/online

< PARAM TYPE=FILE NAME=TPC_POWER_GATING >
TPC_PG_MASK {TPC}

< PARAM TYPE=FILE NAME=GPU_POWER_CONTROL_ENABLE >
GPU_PWR_CNTL_EN {GPU}/control

< PARAM TYPE=CLOCK NAME=CPU_A78_0 >
FREQ_TABLE {CPUS}/cpufreq/policy0/scaling_available_frequencies
MAX_FREQ {CPUS}/cpufreq/policy0/scaling_max_freq
MIN_FREQ {CPUS}/cpufreq/policy0/scaling_min_freq

< PARAM TYPE=CLOCK NAME=GPU >
FREQ_TABLE {OLD_GPU}/available_frequencies
MAX_FREQ {OLD_GPU}/max_freq
MIN_FREQ {OLD_GPU}/min_freq
FREQ_TABLE_KNEXT {GPU}/available_frequencies
MAX_FREQ_KNEXT {GPU}/max_freq
MIN_FREQ_KNEXT {GPU}/min_freq

< PARAM TYPE=FILE NAME=GPU_POWER_CONTROL_DISABLE >
GPU_PWR_CNTL_DIS {GPU}/control

<PARAM TYPE=CLOCK NAME=EMC >
MAX_FREQ {EMC}

< PARAM TYPE=CLOCK NAME=DLA0_CORE >
MAX_FREQ {DLA}
"""

MODES = {  # number: name, cores, TPC mask, CPU kHz, GPU, EMC and DLA Hz
    0: ("MAXN", 4, 0, -1, -1, -1, -1),
    1: ("MODE_15W", 2, 248, 1113600, 408000000, 2133000000, 614400000),
    2: ("MODE_30W", 4, 0, 1728000, 612000000, 0, 1369600000),
    7: ("MODE_50W", 4, 0, 1497600, 816000000, 0, 1369600000),
}


def conf_text() -> str:
    modes = [
        "\n".join(
            [
                f"< POWER_MODEL ID={number} NAME={name} >",
                *(f"CPU_ONLINE CORE_{core} {int(core < cores)}" for core in range(4)),
                f"TPC_POWER_GATING TPC_PG_MASK {mask}",
                "GPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on",
                "CPU_A78_0 MIN_FREQ 729600",
                f"CPU_A78_0 MAX_FREQ {cpu}",
                "GPU MIN_FREQ 0",
                f"GPU MAX_FREQ {gpu}",
                "GPU_POWER_CONTROL_DISABLE GPU_PWR_CNTL_DIS auto",
                f"EMC MAX_FREQ {emc}",
                f"DLA0_CORE MAX_FREQ {dla}",
            ]
        )
        for number, (name, cores, mask, cpu, gpu, emc, dla) in MODES.items()
    ]
    return PARAMETERS + "\n\n".join(modes) + "\n\n# mandatory\n< PM_CONFIG DEFAULT=2 >\n< FAN_CONFIG DEFAULT=quiet >\n"


class Fakes:
    """The folder; `fault` makes a program misbehave, `programs()` puts executables into it."""

    def __init__(self, root: Path, conf: str | None = None) -> None:
        self.root = root
        self.state = root / "state"
        self.ran = []
        self.put("/etc/nvpmodel.conf", conf or conf_text())
        self.put(f"{CPUS}/cpufreq/policy0/scaling_available_frequencies", " ".join(map(str, CPU_TABLE)))
        self.put(f"{GPU}/available_frequencies", " ".join(map(str, GPU_TABLE)))
        self.put("/sys/kernel/locked", 0)
        fake_programs.nvpmodel(root, ["-f", str(root / "etc/nvpmodel.conf"), "-m", "2"])

    def put(self, path: str, text: object) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def get(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def fault(self, program: str, kind: str) -> None:
        self.put(f"faults/{program}", kind)

    def mend(self, program: str) -> None:
        (self.root / "faults" / program).unlink()

    def clocks(self) -> tuple[str, ...]:
        """CPU, GPU, EMC and DLA limits as they are."""
        paths = (f"{CPUS}/cpufreq/policy0/scaling_max_freq", f"{GPU}/max_freq", EMC, DLA)
        return tuple(self.get(path) for path in paths)

    def everything(self) -> dict[str, str]:
        """All that /sys holds."""
        return {str(path): path.read_text() for path in sorted((self.root / "sys").rglob("*")) if path.is_file()}

    def run(self, command) -> Done:
        """Be a `power.commands.Runner`."""
        self.ran.append(str(command))
        code, text = fake_programs.through_sudo(self.root, command.program, list(command.arguments), command.as_root)
        return Done(code, text, refused=text.startswith("sudo:"))

    def programs(self) -> None:
        """Write the executables."""
        for folder, name in (("usr/sbin", "nvpmodel"), ("usr/bin", "jetson_clocks"), ("usr/bin", "sudo")):
            file = self.root / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                f"#!{sys.executable} -SE\nROOT, NAME = {str(self.root)!r}, {name!r}\n"
                f"exec(compile(open({fake_programs.__file__!r}).read(), 'fake', 'exec'))\n"
            )
            file.chmod(0o755)


class Killed(Processes):
    """Processes none of which lives any more."""

    def lives(self, process) -> bool:
        return False
