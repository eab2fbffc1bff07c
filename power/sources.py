"""Which source reads this machine's rails, by name or whichever answers; and which board this machine is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from power.boards import BOARDS, BoardFacts
from power.errors import PowerError
from power.hwmon import HwmonRails, chip_filters
from power.jtop import JtopRails
from power.sampler import Sampler
from power.tegrastats import Tegrastats

KINDS = ("tegrastats", "hwmon", "jtop")  # in the order in which `auto` tries them
AUTO = "auto"

Running = Tegrastats | Sampler
OnLine = Callable[[int, str], None]


def this_board(root: Path = Path("/")) -> BoardFacts | None:
    """Return the board whose module number the device tree names; None where it names none that is known."""
    try:
        compatible = (root / "proc/device-tree/compatible").read_bytes().decode("ascii", "replace")
    except OSError:
        return None
    return next((board for board in BOARDS.values() if board.module in compatible), None)


@contextmanager
def running_source(
    kind: str = AUTO, interval_ms: float = 100.0, root: Path = Path("/"), on_line: OnLine | None = None
) -> Iterator[Running]:
    """Start a source that shows rails, and stop it when the context ends; PowerError with every reason if none does."""
    if kind != AUTO and kind not in KINDS:
        raise PowerError(f"power source is {kind!r}, expected {AUTO}, {', '.join(KINDS)}")
    reasons: list[str] = []
    for name in KINDS if kind == AUTO else (kind,):
        source = _source(name, interval_ms, root, on_line)
        with ExitStack() as running:
            try:
                running.enter_context(source)
            except PowerError as error:
                reasons.append(str(error))
                continue
            if source.readings()[0][1].rails or kind != AUTO:
                yield source
                return
            reasons.append(f"{source.name} shows no power rail (JetPack 5 shows them to root alone)")
    raise PowerError("; ".join(reasons))


def _source(name: str, interval_ms: float, root: Path, on_line: OnLine | None) -> Running:
    if name == "hwmon":
        return Sampler(HwmonRails(root), interval_ms, on_line)
    filters = chip_filters(root)  # neither prints the sensors' settings
    if name == "jtop":
        return Sampler(JtopRails(interval_ms, filters), interval_ms, on_line)
    return Tegrastats(("tegrastats", "--interval", f"{interval_ms:.0f}"), on_line, filters=filters)
