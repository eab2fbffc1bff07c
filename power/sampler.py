"""A thread that reads a sensor at a steady pace; starts, stops, joins and re-raises like `power.Tegrastats`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

from power.errors import PowerError
from power.reading import Reading
from power.source import ChipFilter

SILENCE_S = 5.0  # a read that takes longer is not coming back
_JOIN_S = 2.0


class Sensor(Protocol):
    """Something that shows the power of rails when it is asked."""

    name: str
    filters: Mapping[str, ChipFilter]

    def open(self) -> None:
        """Make ready to read; PowerError where that cannot be."""

    def read(self) -> Reading:
        """Return what the rails show now; PowerError where one cannot be read any more."""

    def close(self) -> None:
        """Let go of what `open` took."""


class Clock(Protocol):
    """Time as a sampler sees it."""

    def now_ns(self) -> int:
        """Return the time on the scale of `time.monotonic_ns`."""

    def wait(self, over: threading.Event, seconds: float) -> bool:
        """Wait until `over` is set, for so long at most; return whether it is set."""


class MonotonicClock:
    """This machine's own clock."""

    now_ns = staticmethod(time.monotonic_ns)

    @staticmethod
    def wait(over: threading.Event, seconds: float) -> bool:
        """Wait; see `Clock`."""
        return over.wait(seconds)


class Sampler:
    """Readings of a sensor, one each interval, stamped in the middle of the read.

    `on_line` gets stamp and text of each reading, in the form of a tegrastats line, on the sampling thread. A sensor
    that fails or hangs is a failure, which `check` and `stop` raise.
    """

    def __init__(
        self,
        sensor: Sensor,
        interval_ms: float = 100.0,
        on_line: Callable[[int, str], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not interval_ms > 0:
            raise PowerError(f"interval of {interval_ms:g} ms between readings, expected a positive number")
        self.name = sensor.name
        self.filters: Mapping[str, ChipFilter] = {}
        self._sensor = sensor
        self._interval_ns = round(interval_ms * 1e6)
        self._on_line = on_line
        self._clock = clock or MonotonicClock()
        self._readings: list[tuple[int, Reading]] = []
        self._failure: str | None = None
        self._begun_ns = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the sensor, take the first reading and start the thread; PowerError where the sensor cannot be read."""
        self._sensor.open()
        self.filters = self._sensor.filters
        try:
            self._take()
        except BaseException:
            self._sensor.close()
            raise
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End and join the thread, and raise what went wrong, if anything did."""
        if self._thread is None:
            return
        failure = self.failure()
        self._over.set()
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            self._sensor.close()
        self._thread = None
        if failure is not None:
            raise PowerError(failure)

    def readings(self) -> list[tuple[int, Reading]]:
        """Return a snapshot of all readings and their stamps, oldest first."""
        return list(self._readings)

    def failure(self) -> str | None:
        """Return what is wrong with the source, in one line; None while all is well."""
        if self._failure is None and self._thread is not None:
            silence_s = (self._clock.now_ns() - self._begun_ns) / 1e9
            if silence_s > SILENCE_S + self._interval_ns / 1e9:
                self._failure = f"{self.name} has not answered for {silence_s:.1f} s: is its driver or service hung?"
        return self._failure

    def check(self) -> None:
        """Raise PowerError if the source has failed."""
        failure = self.failure()
        if failure is not None:
            raise PowerError(failure)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.stop()
        except PowerError:
            if kind is None:  # else the error that is under way says more
                raise

    def _run(self) -> None:
        due_ns = self._begun_ns + self._interval_ns
        while not self._clock.wait(self._over, max(0, due_ns - self._clock.now_ns()) / 1e9):
            try:
                self._take()
            except PowerError as error:
                self._failure = self._failure or str(error)
                return
            except Exception as error:  # whatever `on_line` raises must reach the caller's thread
                self._failure = self._failure or f"{self.name}: its readings cannot be taken: {error}"
                return
            due_ns = max(due_ns + self._interval_ns, self._begun_ns)  # what was missed is not made up for

    def _take(self) -> None:
        self._begun_ns = self._clock.now_ns()
        reading = self._sensor.read()
        stamp_ns = (self._begun_ns + self._clock.now_ns()) // 2
        if self._on_line is not None:
            self._on_line(stamp_ns, _as_line(reading))
        self._readings.append((stamp_ns, reading))


def _as_line(reading: Reading) -> str:
    """Return temperatures and rails as tegrastats prints them, so that a record of either is read by one parser."""
    zones = [f"{name}@{'-256' if zone is None else zone.now_c}C" for name, zone in reading.temperatures_c.items()]
    rails = [f"{name} {rail.now_mw}mW" for name, rail in reading.rails.items()]
    return " ".join(zones + rails)
