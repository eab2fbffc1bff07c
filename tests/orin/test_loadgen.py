"""The real LoadGen over the pipeline and a null board."""

import json
from dataclasses import replace

import numpy as np
import pytest

from orin.bench import prediction_of
from orin.errors import OrinError
from orin.loadgen import SampleLibrary, run_loadgen
from orin.pipeline import Pipeline
from orin.plan import Plan
from orin.scenario import ScenarioSettings, settings_from_probe
from tests.instruments import SAMPLE_BYTES, NullBoard, engine

ENGINES = {"gpu": engine("gpu", 8), "dla": engine("dla", 2)}
PLAN = Plan(gpu_batch=8, dla_batch=2)
SAMPLES = np.arange(32, dtype=np.int8)[:, None, None, None] * np.ones((3, 224, 224), dtype=np.int8)
SPEEDS = {"gpu": 4_000_000, "dla0": 4_000_000, "dla1": 4_000_000}


@pytest.mark.parametrize("scenario", ["offline", "singlestream", "multistream", "server"])
def test_probed_settings_give_a_valid_run(scenario, tmp_path):
    fast = {name: ns // 40 for name, ns in SPEEDS.items()}  # a p99 needs 662 queries, on a slow machine too
    board = NullBoard(ns_per_batch=fast if scenario == "multistream" else SPEEDS)
    items = []
    with Pipeline(PLAN, board, ENGINES, capacity=40) as pipeline:
        library = SampleLibrary(pipeline, SAMPLES, 32)
        library.load(range(32))
        settings = settings_from_probe(pipeline, scenario, 1.0, 32, server_qps=700.0)
        settings = replace(settings, server_latency_ms=30_000.0)  # validity here does not hang on the machine's load
        before = pipeline.copied_bytes
        result = run_loadgen(pipeline, library, settings, tmp_path, items.append)
        copied = pipeline.copied_bytes - before
    assert result.valid, result.reasons
    assert result.end_ns - result.begin_ns > 0.9e9
    assert (tmp_path / "mlperf_log_summary.txt").read_text().count("Result is : VALID") == 1
    samples = sum(len(item.ids) for item in items)
    if scenario == "offline":
        # 8 / 4 ms + 2 x 2 / 4 ms = 3,000 samples/s
        assert samples >= 3000 and copied <= 0.02 * samples * SAMPLE_BYTES
        assert {item.accelerator for item in items} == {"gpu", "dla0", "dla1"}
    if scenario == "multistream":
        assert copied == 0 and all(len(item.ids) == 8 for item in items)


def test_a_server_run_is_expected_to_get_the_rate_that_it_is_offered():
    with Pipeline(PLAN, NullBoard(ns_per_batch=SPEEDS), ENGINES, capacity=40) as pipeline:
        found = prediction_of(pipeline, ScenarioSettings("server", 1.0, 50.0))
    assert found["scenario"] == "server" and found["samples_per_s"] == pytest.approx(50.0, rel=0.5)


def test_accuracy_run_reports_each_samples_own_class(tmp_path):
    class Argmax(NullBoard):
        """Answers with 100 scores whose largest stands at the value found in memory."""

        def load(self, loaded, accelerator, depth, tail=None):
            inner = super().load(loaded, accelerator, depth)
            values = inner.outputs
            inner.outputs = lambda slot: [np.eye(100, dtype=np.float32)[values(slot)[0][:, 0].astype(int)]]
            return inner

    with Pipeline(PLAN, Argmax(computes_outputs=True), ENGINES, capacity=40) as pipeline:
        library = SampleLibrary(pipeline, SAMPLES, 16)  # loaded in two halves: memory is reused
        settings = ScenarioSettings("offline", 1.0, 1.0, accuracy=True)
        run_loadgen(pipeline, library, settings, tmp_path)
    log = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    answers = {entry["qsl_idx"]: int(np.frombuffer(bytes.fromhex(entry["data"]), np.int32)[0]) for entry in log}
    assert answers == {index: index for index in range(32)}


@pytest.mark.parametrize("scenario", ["offline", "singlestream"])
def test_failing_accelerator_ends_loadgen(scenario, tmp_path):
    board = NullBoard(ns_per_batch=SPEEDS, failing=("gpu",), fail_after=20)
    expected = 3000.0 if scenario == "offline" else 0.002
    with pytest.raises(OrinError, match="gpu failed: enqueueV3 returned false"):
        with Pipeline(PLAN, board, ENGINES, capacity=40) as pipeline:
            library = SampleLibrary(pipeline, SAMPLES, 32)
            run_loadgen(pipeline, library, ScenarioSettings(scenario, 1.0, expected), tmp_path)


def test_too_few_queries_for_the_percentile_are_said(tmp_path):
    with Pipeline(PLAN, NullBoard(ns_per_batch=SPEEDS), ENGINES, capacity=40) as pipeline:
        library = SampleLibrary(pipeline, SAMPLES, 32)
        result = run_loadgen(pipeline, library, ScenarioSettings("multistream", 1.0, 0.004), tmp_path)
    assert not result.valid and "early stopping" in result.reasons[0]


def test_slower_than_told_is_invalid_with_loadgens_reason(tmp_path):
    board = NullBoard(ns_per_batch={name: 1_000_000 for name in SPEEDS})
    with Pipeline(PLAN, board, ENGINES, capacity=40) as pipeline:
        library = SampleLibrary(pipeline, SAMPLES, 32)
        result = run_loadgen(pipeline, library, ScenarioSettings("offline", 1.0, 1000.0), tmp_path)
    assert not result.valid and "Increase expected QPS" in result.reasons[0]
