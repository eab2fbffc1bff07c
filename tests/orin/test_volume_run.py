"""Cases of unequal size through pipeline and LoadGen on the virtual board."""

import ctypes
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from engines.engine import Workload
from engines.volumes.plan import plan_windows
from engines.volumes.split import Split
from orin.boards import open_board
from orin.errors import OrinError
from orin.report import write_report
from orin.soc import AGX_ORIN_64GB_SOC
from orin.virtual.board import VirtualBoard
from orin.volumes.pipeline import VolumeLibrary, VolumePipeline
from orin.volumes.run import VolumeRun, described_engine, expected_costs, run_volumes, volume_plan
from tests.instruments import StepClock

WORK = Workload(20_000_000, 10_000, 1_000_000)
SIDES = {"small": (16, 16, 16), "middle": (16, 24, 24), "large": (24, 32, 24)}
CASES = {name: plan_windows(shape, (16, 16, 16)) for name, shape in SIDES.items()}


def run_of(tmp_path, batch=1, **more):
    return VolumeRun(volume_plan("nobody-knows", batch), CASES, WORK, 2.64, runs=tmp_path / "runs", **more)


def test_a_volume_is_one_work_item_of_as_many_enqueues_as_its_windows_need(tmp_path):
    run = run_of(tmp_path, batch=4)
    windows = [len(plan) for plan in CASES.values()]
    assert windows == [1, 4, 12]
    board = VirtualBoard(AGX_ORIN_64GB_SOC, clock=StepClock())
    with VolumePipeline(run.plan, board, described_engine(run), list(CASES.values())) as pipeline:
        items = [pipeline.run_now([number], number)[0] for number in range(3)]
    sizes = [[enqueue.samples for enqueue in item.enqueues] for item in items]
    assert sizes == [[1], [4], [4, 4, 4]]
    took_ns = np.array([item.end_ns - item.begin_ns for item in items])
    assert took_ns[2] / took_ns[1] == pytest.approx(3, rel=0.2)  # the machine's own time, with its noise


class CpuWindows:
    """The least that `VolumePipeline` asks of an engine of windows, in host memory: voxels above 20 are kidney."""

    accelerator, copied_bytes = "gpu", 0

    def __init__(self, batch):
        self.batch, self.held, self.under_way, self.labels = batch, {}, {}, {}

    def hold(self, volumes, weights, depth):
        self.held = dict(volumes)

    def enqueue(self, slot, addresses, samples):
        self.under_way.setdefault((slot, addresses), []).append(samples)

    def wait(self, slot):
        begin_ns = time.monotonic_ns()
        ((_, (address,)), sizes) = next(item for item in self.under_way.items() if item[0][0] == slot)
        del self.under_way[slot, (address,)]
        plan = self.held[address]
        assert sum(sizes) == len(plan) and max(sizes) <= self.batch
        raw = (ctypes.c_int8 * math.prod(plan.shape)).from_address(address)
        self.labels[slot] = (np.ctypeslib.as_array(raw).reshape(plan.shape) > 20).astype(np.int8)
        return begin_ns, time.monotonic_ns()

    def outputs(self, slot):
        return [self.labels[slot][None]]

    def close(self):
        self.held = {}


class CpuBoard(VirtualBoard):
    """A board that labels volumes."""

    def __init__(self):
        super().__init__(AGX_ORIN_64GB_SOC, pacing="numerics")

    def load_windows(self, engine):
        return CpuWindows(engine.manifest.spec.batch)


VOLUMES = [np.random.default_rng(side).integers(-127, 128, shape, np.int8) for side, shape in enumerate(SIDES.values())]


def test_a_board_that_computes_labels_each_volume_where_it_lies(tmp_path):
    run, board = run_of(tmp_path, batch=4), CpuBoard()
    with VolumePipeline(run.plan, board, described_engine(run), list(CASES.values())) as pipeline:
        scale = pipeline.lanes[0].engine.manifest.inputs[0].scale
        library = VolumeLibrary(pipeline, lambda number: Split(VOLUMES[number], list(CASES.values())[number], scale))
        library.load([2, 0, 1, 0])
        addresses = [pipeline.samples.addresses(None, number)[0] for number in range(3)]
        assert all(address % 4096 == 0 for address in addresses) and len(set(addresses)) == 3
        for number, volume in enumerate(VOLUMES):
            _, (labels,) = pipeline.run_now([number], number)
            assert np.array_equal(labels[0], volume > 20)
            data, sizes = pipeline.responses()([labels], [number])
            assert sizes == [volume.size] and data is labels


@pytest.mark.parametrize("scenario", ["singlestream", "offline"])
def test_loadgen_runs_the_cases_on_a_board_that_computes(tmp_path, scenario):
    run, read = run_of(tmp_path, batch=4, scenario=scenario, seconds=0.2), []

    def voxels(name):
        read.append(name)
        return Split(VOLUMES[list(CASES).index(name)], CASES[name], 0.02)

    record = run_volumes(replace(run, engine=described_engine(run), read=voxels), CpuBoard())
    assert record.finished and record["outputs"] == "computed" and record["copied_bytes"] == 0
    assert read == list(CASES)  # once each, and not in the time that is measured
    assert record["sample_bytes"] == VOLUMES[2].size and len(record.batches) % 3 == 0


def test_loadgen_issues_every_case_equally_often(tmp_path):
    run = run_of(tmp_path, scenario="singlestream", seconds=0.1)
    record = run_volumes(run, open_board("virtual:agx-orin-64gb", "speed"))
    assert record.finished and record["provenance"] == "simulated" and record["scenario"] == "singlestream"
    assert len(record.batches) >= 3 and len(record.batches) % 3 == 0
    assert [(case["name"], case["windows"]) for case in record["cases"]] == [("small", 1), ("middle", 4), ("large", 12)]
    assert record["settings"]["in_turn"] is True and record["copied_bytes"] == 0
    assert "SIMULATED" in write_report(record).read_text()


def test_what_is_expected_grows_with_the_windows(tmp_path):
    costs = expected_costs(run_of(tmp_path), open_board("virtual:agx-orin-64gb", "speed"))
    network = [costs[name].network_ms for name in CASES]
    assert network[1] == pytest.approx(4 * network[0]) and network[2] == pytest.approx(12 * network[0])


def test_boards_and_scenarios_that_are_none_for_this(tmp_path):
    with pytest.raises(OrinError, match="labels no volumes; run them on a paced virtual board or a Jetson"):
        run_volumes(run_of(tmp_path), open_board("virtual:agx-orin-64gb", "results"))
    with pytest.raises(OrinError, match="'server', expected one of offline, singlestream"):
        run_volumes(run_of(tmp_path, scenario="server"), open_board("virtual:agx-orin-64gb", "speed"))
