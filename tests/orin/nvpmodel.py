"""An nvpmodel that answers, and its file: three modes of an AGX Orin."""

CONF = """# < POWER_MODEL ID=id_num NAME=mode_name >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MODE_30W >
< POWER_MODEL ID=3 NAME=MODE_50W >
# < PM_CONFIG DEFAULT=default_mode >
< PM_CONFIG DEFAULT=2 >
"""


class Nvpmodel:
    """A board whose modes change when asked; `stuck`: it says yes and does nothing."""

    def __init__(self, now="MODE_30W", stuck=False):
        self.now, self.stuck, self.commands = now, stuck, []

    def __call__(self, command):
        self.commands.append(list(command))
        if command[-1].endswith("nvpmodel -q 2>&1"):
            number = {"MAXN": 0, "MODE_30W": 2, "MODE_50W": 3}.get(self.now)
            return f"NVPM WARN: fan mode is not set!\nNV Power Mode: {self.now}\n{number}\n" if self.now else None
        if "-m" in command and not self.stuck:
            self.now = {"0": "MAXN", "2": "MODE_30W", "3": "MODE_50W"}[command[-1]]
        return None  # as nvpmodel does when cores go off line: exit status 255 though it worked
