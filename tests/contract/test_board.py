"""What every board has to keep, whoever implements it: here the virtual board in both of its kinds.

`tests/board/test_contract.py` runs the same tests on the Jetson board.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest

from engines.build import build
from engines.cache import EngineCache
from engines.engine import Engine
from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC, Clocks
from orin.virtual.board import VirtualBoard
from power.meter import Meter
from tests.contract.networks import network, spec

PLAN = Plan(network="net", gpu_batch=4, dla_batch=4, mode="30W", stack="mlperf-v3.0")


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> dict[str, Engine]:
    """Engines of a small network for GPU and DLA, batch 4, by ONNX Runtime."""
    cache = EngineCache(tmp_path_factory.mktemp("engines"), lambda _: None)
    return {device: build(network(), spec(device, 4), cache, "random") for device in ("gpu", "dla")}


@pytest.fixture(params=["paced", "numerics"])
def board(request):
    return VirtualBoard(AGX_ORIN_64GB_SOC, pacing=request.param)


def test_it_says_what_it_is(board):
    assert board.provenance in ("measured", "simulated")
    assert board.soc.accelerators[0] == "gpu" and board.name


def test_memory_is_shared_zeroed_and_on_a_page(board):
    tensor = board.allocate(1000)
    assert tensor.array.shape == (1000,) and tensor.array.dtype == np.uint8 and not tensor.array.any()
    assert tensor.address % 4096 == 0


def test_holding_a_mode_gives_its_clocks_and_restores(board):
    with board.hold(PLAN) as outer:
        assert outer == AGX_ORIN_64GB_SOC.clocks("30W")
        with board.hold(replace(PLAN, mode="MAXN")) as inner:
            assert isinstance(inner, Clocks) and inner == AGX_ORIN_64GB_SOC.clocks("MAXN")
        with board.hold(PLAN) as again:
            assert again == outer
    with pytest.raises(RuntimeError), board.hold(PLAN):
        raise RuntimeError("inside")


def test_locked_clocks_are_held_and_others_refused(board):
    with board.hold(Plan(clocks_mhz={"gpu": 408.0})) as clocks:
        assert clocks == replace(AGX_ORIN_64GB_SOC.max_clocks, gpu_mhz=408.0)
    for clocks_mhz, said in (
        ({"pva": 700}, "clocks_mhz has 'pva'; clocks are gpu, dla, emc, cpu"),
        ({"dla": 1700.0}, "clocks_mhz has dla: 1700.0, expected MHz up to 1600"),
    ):
        with pytest.raises(OrinError, match=said), board.hold(Plan(clocks_mhz=clocks_mhz)):
            pass


def test_engines_answer_in_order_on_their_slots(board, engines):
    with board.hold(PLAN):
        for accelerator in board.soc.accelerators:
            engine = engines["gpu" if accelerator == "gpu" else "dla"]
            loaded = board.load(engine, accelerator, 2)
            memory = board.allocate(4 * engine.manifest.inputs[0].sample_bytes)
            memory.publish(0, len(memory.array))
            loaded.enqueue(0, (memory.address,), 2)
            loaded.enqueue(1, (memory.address,), 1)
            first, second = loaded.wait(0), loaded.wait(1)
            assert first[0] <= first[1] <= second[1]
            outputs = loaded.outputs(0)
            assert (outputs is not None) == board.computes_outputs
            if outputs is not None:
                assert outputs[0].shape[0] == 2 and np.array_equal(outputs[0][0], outputs[0][1])
            assert loaded.accelerator == accelerator and loaded.copied_bytes == 0
            loaded.close()


def test_what_cannot_run_there_is_refused(board, engines):
    with board.hold(PLAN), pytest.raises(OrinError):
        board.load(engines["gpu"], "dla0", 1)


def test_meter_reads_and_stops(board):
    before = threading.active_count()
    lines = []
    with board.hold(PLAN), board.meter(lambda at_ns, line: lines.append((at_ns, line))) as meter:
        assert isinstance(meter, Meter)
        while len(meter.samples) < 3:
            meter.check()
            threading.Event().wait(0.05)
    assert len(lines) >= 3 and "VDD_GPU_SOC" in lines[0][1]
    assert threading.active_count() == before
