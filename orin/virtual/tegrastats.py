"""tegrastats of the virtual board: `python -m orin.virtual.tegrastats --rails FILE [--interval MS]`.

Prints lines as an AGX Orin's tegrastats does for root on JetPack 6 (R36.2, the release with a published line of a
running DLA: an engine is named only while it runs). Power goes through a model of the sensor: its exponential filter
and its step. Memory and CPU loads are those of the machine that the virtual board runs on, where the work really is
done; clocks, engines, DRAM load and power are the board's. It models no temperatures: every zone reads -256C, which
is how tegrastats prints a zone without one.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orin.errors import OrinError
from orin.soc import AGX_ORIN_64GB_SOC, SOCS, soc
from orin.virtual.rails import RailsFile, RailsState
from power.boards import BoardFacts, Rail

_SENSOR_READ_S = 0.05  # far below the filter's 0.43 s; between reads the filter follows the exact mean
_NO_BOARD_S = 3.0  # a board that has published nothing by then is not running
_ZONES = ("CV0", "CPU", "SOC2", "SOC0", "CV1", "GPU", "tj", "SOC1", "CV2")
_CORES = AGX_ORIN_64GB_SOC.max_clocks.cpus


class Sensor:
    """The INA3221s of a board: an exponential filter over mean power, shown in whole steps of each rail."""

    def __init__(self, board: BoardFacts) -> None:
        self._board = board
        self._last: RailsState | None = None
        self._filtered_w: list[float] | None = None

    def feed(self, state: RailsState) -> None:
        """Let the filter follow the mean power since the last state; the first mean is where it starts."""
        last, self._last = self._last, state
        if last is None or state.monotonic_ns <= last.monotonic_ns:
            self._last = last or state
            return
        seconds = (state.monotonic_ns - last.monotonic_ns) / 1e9
        means_w = [(now - then) / 1e3 / seconds for now, then in zip(state.energy_mj, last.energy_mj)]
        weight = -math.expm1(-seconds / self._board.filter_tau_s)
        before_w = self._filtered_w or means_w
        self._filtered_w = [old + weight * (mean - old) for old, mean in zip(before_w, means_w)]

    def rails_mw(self) -> dict[str, int] | None:
        """Return what each rail shows now; None before the board has published twice."""
        if self._filtered_w is None:
            return None
        shown = zip(self._board.rails, self._filtered_w)  # the file may have room for more
        return {rail.name: _quantised_mw(rail, watts) for rail, watts in shown}


def _quantised_mw(rail: Rail, watts: float) -> int:
    return round(round(watts / rail.step_w) * rail.step_w * 1000)


class Averages:
    """Mean of all that was shown, as tegrastats keeps it: over printed values, since its start."""

    def __init__(self) -> None:
        self._sums_mw: dict[str, int] = {}
        self._count = 0

    def rails(self, rails_mw: dict[str, int]) -> str:
        """Take what is shown now; return the part of the line about the rails."""
        self._count += 1
        tokens = []
        for name, now_mw in rails_mw.items():
            self._sums_mw[name] = self._sums_mw.get(name, 0) + now_mw
            tokens.append(f"{name} {now_mw}mW/{round(self._sums_mw[name] / self._count)}mW")
        return " ".join(tokens)


class Host:
    """Memory and CPU loads of this machine, in tegrastats' tokens."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._ticks = self._read_ticks()
        self._memory, self._memory_s = "", -math.inf

    def memory(self) -> str:
        """Return the RAM and SWAP tokens, at most a second old: they take longest to read and change slowly."""
        if time.monotonic() > self._memory_s + 1.0:
            self._memory, self._memory_s = self._read_memory(), time.monotonic()
        return self._memory

    def _read_memory(self) -> str:
        mb = {name: int(rest.split()[0]) // 1024 for name, rest in self._lines("meminfo", ":")}
        swap_mb, cached_mb = mb.get("SwapTotal", 0), mb.get("SwapCached", 0)
        return (
            f"RAM {mb['MemTotal'] - mb['MemAvailable']}/{mb['MemTotal']}MB{self._largest_free_block()} "
            f"SWAP {swap_mb - mb.get('SwapFree', 0)}/{swap_mb}MB (cached {cached_mb}MB)"
        )

    def cpus(self, mhz: float) -> str:
        """Return the CPU token: loads since the last call; cores that this machine lacks are off."""
        before, self._ticks = self._ticks, self._read_ticks()
        cores = [f"{_percent(*_since(*pair))}%@{mhz:.0f}" for pair in zip(before, self._ticks, strict=False)][:_CORES]
        return f"CPU [{','.join(cores + ['off'] * (_CORES - len(cores)))}]"

    def _read_ticks(self) -> list[tuple[int, int]]:
        """Busy and all clock ticks of each core since boot."""
        ticks = []
        for name, rest in self._lines("stat", " "):
            if name.startswith("cpu") and name != "cpu":
                counts = list(map(int, rest.split()[:8]))
                idle = counts[3] + counts[4]  # idle and waiting for I/O
                ticks.append((sum(counts) - idle, sum(counts)))
        return ticks

    def _largest_free_block(self) -> str:
        """The largest free blocks, as ` (lfb 7x4MB)`, where the kernel lists them: 2^n pages in column n."""
        if not (self._proc / "buddyinfo").exists():
            return ""
        orders = [list(map(int, rest.split("zone")[1].split()[1:])) for _, rest in self._lines("buddyinfo", ",")]
        counts = [sum(order) for order in zip(*orders, strict=True)]
        order = max((n for n, count in enumerate(counts) if count), default=0)
        block_kb = os.sysconf("SC_PAGE_SIZE") // 1024 << order
        size = f"{block_kb // 1024}MB" if block_kb >= 1024 else f"{block_kb}kB"
        return f" (lfb {counts[order]}x{size})"

    def _lines(self, file: str, separator: str) -> list[tuple[str, str]]:
        text = (self._proc / file).read_bytes().decode("ascii")
        return [(name, rest) for name, _, rest in (line.partition(separator) for line in text.splitlines())]


def _since(before: tuple[int, int], now: tuple[int, int]) -> tuple[int, int]:
    return now[0] - before[0], now[1] - before[1]


def _percent(part: float, whole: float) -> int:
    return min(100, round(100 * part / whole)) if whole > 0 else 0


def engines(before: RailsState, now: RailsState) -> str:
    """Return the tokens of memory, GPU and DLAs: loads since the state before; a DLA only where it ran."""
    elapsed_ns = now.monotonic_ns - before.monotonic_ns
    possible_bytes = AGX_ORIN_64GB_SOC.dram_bytes_per_clk * now.emc_mhz * 1e6 * elapsed_ns / 1e9
    gpu_mhz = f"{now.gpu_mhz:.0f}"
    tokens = [
        f"EMC_FREQ {_percent(now.dram_bytes - before.dram_bytes, possible_bytes)}%@{now.emc_mhz:.0f}",
        f"GR3D_FREQ {_percent(now.gpu_busy_ns - before.gpu_busy_ns, elapsed_ns)}%@[{gpu_mhz},{gpu_mhz}]",
    ]
    busy_ns = (now.dla0_busy_ns - before.dla0_busy_ns, now.dla1_busy_ns - before.dla1_busy_ns)
    tokens += [f"NVDLA{core}_FREQ @{now.dla_mhz:.0f}" for core, ns in enumerate(busy_ns) if ns > 0]
    return " ".join(tokens)


def run(rails: RailsFile, interval_s: float, board: BoardFacts = AGX_ORIN_64GB_SOC.board) -> None:
    """Print a line every interval until the board has stopped or this process's parent is gone."""
    sensor, averages, host = Sensor(board), Averages(), Host()
    zones = " ".join(f"{zone}@-256C" for zone in _ZONES)
    parent = os.getppid()
    begin_s = time.monotonic()
    due_s = begin_s + interval_s
    printed = rails.read()
    while os.getppid() == parent:
        time.sleep(max(0.0, min(_SENSOR_READ_S, due_s - time.monotonic())))
        state = rails.read()
        if state.stopped:
            return
        sensor.feed(state)
        if time.monotonic() < due_s:
            continue
        due_s = max(due_s + interval_s, time.monotonic())
        shown_mw = sensor.rails_mw()
        if shown_mw is not None:
            stamp = time.strftime("%m-%d-%Y %H:%M:%S")
            head = f"{stamp} {host.memory()} {host.cpus(state.cpu_mhz)}"
            print(f"{head} {engines(printed, state)} {zones} {averages.rails(shown_mw)}", flush=True)
            printed = state
        elif time.monotonic() > begin_s + _NO_BOARD_S:
            raise OrinError(f"rails file {rails.path} has not changed for {_NO_BOARD_S:g} s: is the board running?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; exit code 2 with one line on stderr for a rails file that cannot be used."""
    parser = argparse.ArgumentParser(prog="tegrastats", description="tegrastats of a virtual Orin")
    parser.add_argument("--rails", type=Path, required=True, help="file that the virtual board publishes")
    parser.add_argument("--interval", type=int, default=1000, metavar="MS", help="milliseconds between lines")
    parser.add_argument("--board", choices=SOCS, default=AGX_ORIN_64GB_SOC.name, help="whose rails they are")
    options = parser.parse_args(arguments)
    if options.interval < 1:
        parser.error(f"--interval is {options.interval}, expected at least 1 ms")
    # As in a C program: end without a word when the reader closes the pipe, or on Ctrl-C.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        run(RailsFile.open(options.rails), options.interval / 1000, soc(options.board).board)
    except OrinError as error:
        print(f"tegrastats: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
