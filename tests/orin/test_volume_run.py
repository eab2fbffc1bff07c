"""Cases of unequal size through pipeline and LoadGen on the virtual board."""

import numpy as np
import pytest

from engines.engine import Workload
from engines.volumes.plan import plan_windows
from orin.boards import open_board
from orin.errors import OrinError
from orin.report import write_report
from orin.soc import AGX_ORIN_64GB_SOC
from orin.virtual.board import VirtualBoard
from orin.volume_run import VolumePipeline, VolumeRun, described_engine, expected_costs, run_volumes
from tests.instruments import StepClock

WORK = Workload(20_000_000, 10_000, 1_000_000)
SIDES = {"small": (16, 16, 16), "middle": (16, 24, 24), "large": (24, 32, 24)}
CASES = {name: plan_windows(shape, (16, 16, 16)) for name, shape in SIDES.items()}


def run_of(tmp_path, **more):
    return VolumeRun(CASES, "nobody-knows", WORK, 2.64, runs=tmp_path / "runs", **more)


def test_a_volume_is_one_work_item_of_as_many_enqueues_as_its_windows_need(tmp_path):
    run = run_of(tmp_path, batch=4)
    windows = [len(plan) for plan in CASES.values()]
    assert windows == [1, 4, 12]
    board = VirtualBoard(AGX_ORIN_64GB_SOC, clock=StepClock())
    with VolumePipeline(run.plan, board, described_engine(run), windows) as pipeline:
        items = [pipeline.run_now([number], number)[0] for number in range(3)]
    sizes = [[enqueue.samples for enqueue in item.enqueues] for item in items]
    assert sizes == [[1], [4], [4, 4, 4]]
    took_ns = np.array([item.end_ns - item.begin_ns for item in items])
    assert took_ns[2] / took_ns[1] == pytest.approx(3, rel=0.2)  # the machine's own time, with its noise


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
    with pytest.raises(OrinError, match="on a paced virtual board alone"):
        run_volumes(run_of(tmp_path), open_board("virtual:agx-orin-64gb", "results"))
    with pytest.raises(OrinError, match="'server', expected one of offline, singlestream"):
        run_volumes(run_of(tmp_path, scenario="server"), open_board("virtual:agx-orin-64gb", "speed"))
