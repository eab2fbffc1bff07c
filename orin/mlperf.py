"""MLPerf's scenarios and rules: names and numbers that every floor uses."""

from __future__ import annotations

# as the toolkit spells them: as LoadGen does
SCENARIOS = {
    "offline": "Offline",
    "singlestream": "SingleStream",
    "multistream": "MultiStream",
    "server": "Server",
}
MULTISTREAM_SAMPLES = 8
OFFICIAL_SECONDS = 600  # mlperf.conf: *.*.min_duration
