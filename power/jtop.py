"""Rails through jetson-stats' service, where it runs: its present values alone, for its "avg" is (new + old) // 2.

Source: jetson-stats 7.2, `jtop.power` (mW) and `jtop.temperature` (degrees Celsius, -256 where a zone is off).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from power.errors import PowerError
from power.reading import RailReading, Reading, Temperature
from power.source import ChipFilter
from power.tokens import ZONE_OFF_C

_SHORTEST_S = 0.1  # of the service's own pace


class JtopRails:
    """What jtop's service shows, for a `Sampler`; `read` blocks until it has something new."""

    name = "jtop"

    def __init__(self, interval_ms: float = 100.0, filters: Mapping[str, ChipFilter] | None = None) -> None:
        self.filters: Mapping[str, ChipFilter] = filters or {}
        self._interval_s = max(_SHORTEST_S, interval_ms / 1000)
        self._service: Any = None

    def open(self) -> None:
        """Connect to the service; PowerError with its own reason where it is absent, another version, or refuses."""
        try:
            from jtop import jtop
        except ImportError:
            raise PowerError(
                "jtop is not here: install jetson-stats (its service needs root), or read hwmon or tegrastats"
            ) from None
        service = jtop(interval=self._interval_s)
        with _Reasons("jtop's service cannot be used"):
            service.start()
        self._service = service

    def read(self) -> Reading:
        """Wait for the next values; PowerError where the service has ended."""
        with _Reasons("jtop's service has ended"):
            if not self._service.ok():
                raise PowerError("jtop's service sent nothing: is it still running? (systemctl status jtop)")
            return Reading({}, _zones(self._service.temperature), _rails(self._service.power["rail"]))

    def close(self) -> None:
        """Disconnect."""
        service, self._service = self._service, None
        if service is not None:
            service.close()


class _Reasons:
    """Turns what jetson-stats raises into one line; its messages name the remedy, over several lines."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        from jtop import JtopException

        if isinstance(error, (JtopException, OSError, EOFError)):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PowerError(f"{self._what}: {reason}; or read hwmon or tegrastats") from None


def _rails(rails: Mapping[str, Mapping[str, Any]]) -> dict[str, RailReading]:
    return {name: RailReading(int(rail["power"]), None, None) for name, rail in rails.items() if "power" in rail}


def _zones(zones: Mapping[str, Mapping[str, Any]]) -> dict[str, Temperature | None]:
    return {
        name: None if zone["temp"] == ZONE_OFF_C else Temperature(float(zone["temp"]), None)
        for name, zone in zones.items()
        if "temp" in zone
    }
