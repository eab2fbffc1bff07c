"""What the pipeline costs beside bare LoadGen, what it copies, and how the paced virtual board meets its prediction."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import arguments, emit, median

from orin.loadgen import SEEDS, SampleLibrary, _log_settings, _test_settings, run_loadgen
from orin.mlperf import MULTISTREAM_SAMPLES
from orin.pipeline import Pipeline
from orin.plan import Plan
from orin.scenario import ScenarioSettings
from orin.work import Chunk, WorkItem, rounds
from tests.instruments import SAMPLE_BYTES, NullBoard, engine

PLAN = Plan(gpu_batch=256, dla_batch=2, dla_cores=2)
RATE = 6500.0  # samples/s of ResNet-50 on GPU + 2 DLA
# GPU 256 in 57 ms, each DLA 2 in 2 ms: 4,500 + 1,000 + 1,000 samples/s
PACE_NS = {"gpu": round(256 / 4500 * 1e9), "dla0": 2_000_000, "dla1": 2_000_000}
COUNT = 1024


def null_sut(settings: ScenarioSettings) -> tuple[float, int, dict[str, object]]:
    """Bare LoadGen whose SUT answers inside issue(): CPU seconds, samples, LoadGen's values."""
    import mlperf_loadgen as lg

    from orin.loadgen import read_result

    issued = 0

    def issue(ids: list[int], indices: list[int]) -> None:
        nonlocal issued
        issued += len(ids)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, 0, 0) for number in ids])

    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        sut = lg.ConstructFastSUT(issue, lambda: None)
        qsl = lg.ConstructQSL(COUNT, COUNT, lambda _: None, lambda _: None)
        begin = time.process_time()
        lg.StartTestWithLogSettings(sut, qsl, _test_settings(settings), _log_settings(logs), str(logs / "audit.config"))
        cpu_s = time.process_time() - begin
        lg.DestroyQSL(qsl)
        lg.DestroyFastSUT(sut)
        return cpu_s, issued, read_result(logs, (0, 0)).values


def with_pipeline(plan: Plan, settings: ScenarioSettings, pace: dict[str, int]) -> dict[str, float]:
    """The same scenario through the pipeline over engines that compute nothing."""
    engines = {"gpu": engine("gpu", plan.gpu_batch or 1), "dla": engine("dla", plan.dla_batch)}
    items = answered = 0

    def count(item: WorkItem) -> None:
        nonlocal items, answered
        items += 1
        answered += len(item.ids)

    samples = np.zeros((COUNT, 3, 224, 224), dtype=np.int8)
    with (
        tempfile.TemporaryDirectory() as folder,
        Pipeline(plan, NullBoard(ns_per_batch=pace), engines, capacity=COUNT + MULTISTREAM_SAMPLES) as pipeline,
    ):
        library = SampleLibrary(pipeline, samples, COUNT)
        library.load(range(COUNT))
        library.load = lambda _: None  # type: ignore[method-assign]  # loading is not timed by LoadGen either
        begin, wall = time.process_time(), time.monotonic()
        result = run_loadgen(pipeline, library, settings, Path(folder), count)
        return {
            "cpu_s": time.process_time() - begin,
            "wall_s": time.monotonic() - wall,
            "items": items,
            "samples": answered,
            "p50_ns": float(result.values["result_50.00_percentile_latency_ns"]),
            "copied_bytes": pipeline.copied_bytes,
        }


def bare_loops(plan: Plan, seconds: float) -> float:
    """Three threads that enqueue and wait on the same paced engines, with nothing around: CPU seconds per second."""
    board = NullBoard(ns_per_batch=PACE_NS)
    end = time.monotonic() + seconds

    def loop(accelerator: str) -> None:
        loaded = board.load(engine("gpu" if accelerator == "gpu" else "dla"), accelerator, plan.depth(accelerator))
        loaded.enqueue(1, (0,), 1)
        slot = 0
        while time.monotonic() < end:
            loaded.enqueue(slot, (0,), 1)
            slot = 1 - slot
            loaded.wait(slot)

    begin = time.process_time()
    threads = [threading.Thread(target=loop, args=(name,)) for name in plan.accelerators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - begin) / seconds


def cost(seconds: float, repeats: int) -> dict[str, float]:
    """CPU of the pipeline beside the null SUT's for as many samples, at 6,500 samples/s and unpaced.

    Paced, the wait for an engine that takes its time costs CPU too (a sleep here, a driver's wait on a board): bare
    loops that only enqueue and wait, at the same pace, show how much.
    """
    settings = ScenarioSettings("offline", seconds, RATE)
    null, bare, paced, free = [], [], [], []
    for _ in range(repeats):  # all sides alternate
        cpu_s, samples, _values = null_sut(settings)
        null.append(cpu_s / samples)
        bare.append(bare_loops(PLAN, seconds))
        paced.append(with_pipeline(PLAN, settings, PACE_NS))
        free.append(with_pipeline(PLAN, settings, {}))
    null_s, bare_share = median(null), median(bare)
    extra = [run["cpu_s"] - null_s * run["samples"] - bare_share * run["wall_s"] for run in paced]
    free_extra = [run["cpu_s"] - null_s * run["samples"] for run in free]
    return {
        "core_share_at_6500": median([e / run["wall_s"] for e, run in zip(extra, paced)]),
        "core_share_at_6500_with_waits": median([e / run["wall_s"] + bare_share for e, run in zip(extra, paced)]),
        "bare_loops_core_share": bare_share,
        "null_sut_core_share": null_s * RATE,
        "paced_us_per_batch": median([e / run["items"] * 1e6 for e, run in zip(extra, paced)]),
        "paced_us_per_sample": median([e / run["samples"] * 1e6 for e, run in zip(extra, paced)]),
        "free_us_per_batch": median([e / run["items"] * 1e6 for e, run in zip(free_extra, free)]),
        "free_us_per_sample": median([e / run["samples"] * 1e6 for e, run in zip(free_extra, free)]),
    }


def single_stream(seconds: float, repeats: int) -> dict[str, float]:
    """SingleStream p50 beside the null SUT's."""
    null, ours = [], []
    for _ in range(repeats):
        # Told 4 us a query, LoadGen prepares enough of them for either side.
        settings = ScenarioSettings("singlestream", seconds, 4e-6)
        null.append(float(null_sut(settings)[2]["result_50.00_percentile_latency_ns"]) / 1000)
        ours.append(with_pipeline(Plan(gpu_batch=1, dla_cores=0), settings, {})["p50_ns"] / 1000)
    return {"null_p50_us": median(null), "pipeline_p50_us": median(ours), "beyond_us": median(ours) - median(null)}


def plans(quick: bool) -> list[Plan]:
    """GPU alone, DLAs alone and together, over the batch sizes people use."""
    gpus = (0, 1, 256) if quick else (0, 1, 4, 8, 32, 64, 128, 256)
    dlas = ((0, 1), (2, 1), (2, 4)) if quick else ((0, 1), (1, 1), (2, 1), (2, 4), (8, 1), (16, 1), (32, 1))
    return [
        Plan(gpu_batch=gpu, dla_batch=batch or 1, dla_loop=loop, dla_cores=2 if batch else 0)
        for gpu in gpus
        for batch, loop in dlas
        if gpu or batch
    ]


def offline_query(samples: int) -> np.ndarray:
    """Positions of an Offline query as LoadGen draws them: the loaded set shuffled over and over."""
    rng = np.random.default_rng(SEEDS[1])
    sets = [rng.permutation(COUNT) for _ in range(-(-samples // COUNT))]
    return np.concatenate(sets)[:samples]


def copies(plan: Plan, positions: np.ndarray, ordered: bool) -> float:
    """Copied bytes per sample as a share of the sample, with engines that take the time of ResNet-50's."""

    class Nobody:
        def done(self, item: object, outputs: object) -> None: ...

    scale = {"gpu": (0.41 + 0.22 * plan.gpu_batch) * 1e6, "dla0": plan.dla_batch * 1e6, "dla1": plan.dla_batch * 1e6}
    pace = {name: int(ns / 20) for name, ns in scale.items()}  # 20 times faster, in proportion
    engines = {"gpu": engine("gpu", plan.gpu_batch or 1), "dla": engine("dla", plan.dla_batch)}
    with Pipeline(plan, NullBoard(ns_per_batch=pace), engines, capacity=COUNT + MULTISTREAM_SAMPLES) as pipeline:
        pipeline.start(Nobody(), ordered=ordered)
        ids = list(range(len(positions)))
        pipeline.put([Chunk(positions.tolist(), ids)] if ordered else rounds(positions, ids))
        pipeline.stop()
        return pipeline.copied_bytes / len(positions) / SAMPLE_BYTES


def copied(quick: bool) -> dict[str, object]:
    """Copied share for every plan, sorted as the pipeline does it, and for one plan unsorted."""
    positions = offline_query(71_500)  # 10 s at 6,500 samples/s, and LoadGen's 1.1
    sorted_ = {
        f"{p.gpu_batch}/{p.dla_batch}x{p.dla_loop}/{p.dla_cores}": copies(p, positions, False) for p in plans(quick)
    }
    return {
        "samples": len(positions),
        "sorted_worst": max(sorted_.values()),
        "sorted": sorted_,
        "unsorted": copies(PLAN, offline_query(2 * COUNT), True),
    }


def paced(seconds: float) -> dict[str, dict[str, float]]:
    """LoadGen over the paced virtual board, beside the prediction of the same plan."""
    from orin.bench import Bench, bench, photos_in
    from orin.boards import open_board
    from orin.build import Desk
    from orin.predict import predict_plan
    from orin.results import result

    found = {}
    desk = Desk(photos=photos_in(None))
    for scenario, figure in (("offline", "samples_per_s"), ("multistream", "latency_ms")):
        plan = Plan(gpu_batch=8 if scenario == "multistream" else 256, stack="mlperf-v3.0", mode="MAXN")
        with tempfile.TemporaryDirectory() as folder:
            record = bench(
                plan,
                open_board("virtual:agx-orin-64gb", "speed"),
                desk,
                Bench(scenario, seconds, Path(folder), idle_s=0.0),
            )
            seen = result(record)[figure]
            wanted = predict_plan(plan, "agx-orin-64gb", scenario).as_json()[figure]
        if isinstance(seen, dict):
            seen, wanted = seen["mean"], wanted["mean"]
        found[scenario] = {"paced": seen, "predicted": wanted, "difference": seen / wanted - 1}
    return found


def prediction_time(quick: bool) -> dict[str, float]:
    """Ten minutes of Offline: seconds to predict, and steady state against every event (of one minute if quick)."""
    from orin.predict import predict_plan
    from orin.virtual.predict import Options

    plan = Plan(stack="mlperf-v3.0", mode="MAXN")
    begin = time.monotonic()
    steady = predict_plan(plan, "agx-orin-64gb")
    took = time.monotonic() - begin
    seconds = 60.0 if quick else 600.0
    if quick:
        steady = predict_plan(plan, "agx-orin-64gb", options=Options(seconds=seconds))
    begin = time.monotonic()
    full = predict_plan(plan, "agx-orin-64gb", options=Options(seconds=seconds, full=True))
    return {
        "seconds": took,
        "full_seconds": time.monotonic() - begin,
        "difference": steady.samples_per_s / full.samples_per_s - 1,
    }


def main() -> None:
    """Run everything and print it."""
    options = arguments(__doc__ or "")
    seconds, repeats = (2.0, 1) if options.quick else (5.0, 3)
    results: dict[str, object] = {}
    results["cost"] = c = cost(seconds, repeats)
    results["single_stream"] = s = single_stream(1.0 if options.quick else 3.0, repeats)
    results["copied"] = k = copied(options.quick)
    results["prediction"] = p = prediction_time(options.quick)
    results["paced"] = v = paced(2.0 if options.quick else 10.0)
    rows = [
        (
            "CPU at 6,500 samples/s beyond null SUT and bare waits",
            f"{c['core_share_at_6500']:.1%} of a core",
            "<= 10 %",
        ),
        ("  with the waits (bare loops alone: see next)", f"{c['core_share_at_6500_with_waits']:.1%} of a core", ""),
        ("  bare enqueue-and-wait loops", f"{c['bare_loops_core_share']:.1%} of a core", ""),
        ("  the null SUT itself", f"{c['null_sut_core_share']:.1%} of a core", ""),
        ("  paced: CPU per batch, per sample", f"{c['paced_us_per_batch']:.0f}, {c['paced_us_per_sample']:.1f} us", ""),
        ("  unpaced: CPU per batch, per sample", f"{c['free_us_per_batch']:.0f}, {c['free_us_per_sample']:.1f} us", ""),
        (
            "SingleStream p50 beyond the null SUT's",
            f"{s['beyond_us']:.1f} us",
            f"<= 10 us (null {s['null_p50_us']:.1f})",
        ),
        ("copied per sample, worst of all plans", f"{k['sorted_worst']:.2%}", f"<= 1 % (unsorted {k['unsorted']:.0%})"),
        ("ten minutes of Offline predicted in", f"{p['seconds']:.2f} s", f"< 1 s (full run {p['full_seconds']:.1f} s)"),
        ("  steady state against the full event run", f"{p['difference']:+.3%}", "within 0.2 %"),
        *(
            (f"paced {name} against its prediction", f"{r['difference']:+.2%}", f"within 2 % ({r['predicted']:.4g})")
            for name, r in v.items()
        ),
    ]
    emit(results, rows, options)


if __name__ == "__main__":
    main()
