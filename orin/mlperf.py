"""MLPerf's scenarios and rules: names and numbers that every floor uses."""

from __future__ import annotations

from orin.errors import OrinError

# as the toolkit spells them: as LoadGen does
SCENARIOS = {
    "offline": "Offline",
    "singlestream": "SingleStream",
    "multistream": "MultiStream",
    "server": "Server",
}
MULTISTREAM_SAMPLES = 8
OFFICIAL_SECONDS = 600  # mlperf.conf: *.*.min_duration
MOST_QPS = 1e9


def check_qps(qps: float | None, scenario: str) -> float | None:
    """Refuse a rate that cannot be offered, or that a scenario other than Server would not use."""
    if qps is None:
        return None
    if scenario != "server":
        raise OrinError(f"--qps is Server's rate, and this is {scenario}: leave it out, or ask for --scenario server")
    if not 0 < qps <= MOST_QPS:
        raise OrinError(f"--qps is {qps:g}, expected a positive number of queries per second")
    return qps
