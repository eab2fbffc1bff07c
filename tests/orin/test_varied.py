"""Data sets of varying length: their quantiles, and predictions over them against NVIDIA's published percentiles."""

import numpy as np
import pytest

from orin.parts import LENGTHS, RNNT, RNNT_STEPS
from orin.plan import Plan
from orin.predict import BERT, BERT_TOKENS, UNET, predict_plan
from orin.virtual.predict import Varied
from orin.virtual.varied import KITS19, LIBRISPEECH, SQUAD

BOARD = "agx-orin-64gb"


def plan(network, batch=1, stack="mlperf-v3.0", **fields):
    return Plan(network=network, gpu_batch=batch, dla_cores=0, stack=stack, **fields)


def test_squad_has_the_mean_that_its_length_is_known_by_and_ends_full():
    assert SQUAD.lengths.mean() / BERT_TOKENS == pytest.approx(LENGTHS[BERT].graphs, rel=0.005)
    assert np.quantile(SQUAD.lengths, (0.5, 0.9)) == pytest.approx((150, 303), rel=0.02)
    assert SQUAD.lengths[-1] == BERT_TOKENS and (np.diff(SQUAD.lengths) >= 0).all()


def test_kits19_has_the_windows_that_43_cases_hold_together():
    assert len(KITS19.lengths) == 43
    assert KITS19.lengths.sum() == pytest.approx(2760, rel=0.002)
    assert [KITS19.lengths[rank - 1] for rank in (22, 38, 39, 43)] == [50, 108, 125, 144]


def test_librispeech_has_the_mean_that_rnnt_is_predicted_at():
    assert LIBRISPEECH.lengths.mean() == pytest.approx(RNNT_STEPS, rel=0.005)
    assert LIBRISPEECH.lengths[-1] <= 500  # 15 s


@pytest.mark.parametrize(
    "stack,clocks,published",
    [
        ("mlperf-v3.0", None, {"mean": 53.947, "p50": 47.935, "p90": 93.383, "p99": 122.944}),  # lengths are from it
        # MLPerf v2.0 MaxQ, of which the lengths know nothing: ms
        ("mlperf-v2.0", {"gpu": 726.75, "cpu": 1036.8}, {"mean": 91.497, "p50": 83.545, "p90": 156.71, "p99": 210.653}),
    ],
)
def test_utterances_have_the_published_spread(stack, clocks, published):
    found = predict_plan(plan(RNNT, 1, stack, precision="fp16", clocks_mhz=clocks), BOARD, "singlestream").varied
    spread = {name: ms / found.latency_ms["mean"] for name, ms in found.latency_ms.items()}
    assert spread == pytest.approx({name: ms / published["mean"] for name, ms in published.items()}, rel=0.05)
    assert found.latency_ms["mean"] == pytest.approx(published["mean"], rel=0.15)


def test_volumes_have_the_published_percentiles():
    found = predict_plan(plan(UNET), BOARD, "singlestream").varied
    # MLPerf v3.0, 3d-unet-99 SingleStream, MaxP: ms
    assert found.latency_ms == pytest.approx({"mean": 1954.2, "p50": 1528.5, "p90": 3781.2, "p99": 4351.6}, rel=0.005)
    assert found.samples_per_s == pytest.approx(0.51171, rel=0.005)
    assert (found.data_set, found.unit) == ("KiTS19", "windows")


def test_sentences_come_near_the_published_percentiles():
    prediction = predict_plan(plan(BERT), BOARD, "singlestream")
    # MLPerf v3.0, bert-99 SingleStream, MaxP: ms
    assert prediction.varied.latency_ms == pytest.approx(
        {"mean": 4.3156, "p50": 4.0714, "p90": 5.6225, "p99": 6.4428}, rel=0.13
    )
    # the longest sample is the whole graph, which the prediction itself is of
    assert prediction.varied.latency_ms["p99"] == pytest.approx(prediction.latency_ms["p99"], rel=1e-6)
    assert any("SQuAD v1.1 (mean 178 tokens)" in note for note in prediction.notes)


def test_offline_sorts_sentences_into_batches_of_one_length():
    whole = predict_plan(plan(BERT, 64, "mlperf-v2.0"), BOARD)
    assert whole.varied.samples_per_s == pytest.approx(476.344, rel=0.2)  # MLPerf v2.0, bert-99 Offline, MaxP
    assert whole.varied.latency_ms is None
    assert whole.varied.samples_per_s > 2 * whole.samples_per_s  # which is of 384 tokens each


@pytest.mark.parametrize(
    "asked,scenario",
    [
        (Plan(), "singlestream"),
        (plan(BERT), "server"),
        (plan(UNET), "multistream"),
        (plan(UNET, sparsity=True), "singlestream"),
    ],
)
def test_nothing_is_said_where_nothing_varies_or_is_known(asked, scenario):
    found = predict_plan(asked, BOARD, scenario)
    assert found.varied is None and found.as_json()["varied"] is None


def test_json_holds_the_data_set():
    found = predict_plan(plan(UNET, clocks_mhz={"gpu": 918.0}), BOARD, "singlestream").as_json()["varied"]
    assert found["data_set"] == "KiTS19" and found["mean_length"] == pytest.approx(64.2, rel=0.002)
    assert list(found["latency_ms"]) == ["mean", "p50", "p90", "p99"]
    assert found["latency_ms"]["mean"] == pytest.approx(2654.7, rel=0.01)  # MLPerf v3.0, MaxQ: ms


def test_a_note_has_no_powers_of_ten():
    slow = Varied("KiTS19", "windows", 64.4, 1234.5, {"mean": 14690.6, "p50": 0.98765})
    assert slow.note == "over KiTS19 (mean 64 windows): 1,234/s; ms: mean 14,691, p50 0.9877"
