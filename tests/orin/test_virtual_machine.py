"""The machine: hand-computed schedules, DRAM sharing against an independent solution, energy, long random runs."""

import random
import statistics

import pytest

from orin.errors import OrinError
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual import machine as machine_module
from orin.virtual.machine import Machine
from orin.virtual.model import CostModel, EngineCost, Segment

MODEL = CostModel(SOC, SOC.clocks("MAXN"), "mlperf-v3.0")


def cost(*segments, submit_ns=0.0, host_mj=0.0, tail=None):
    return EngineCost(submit_ns, tuple(segments), host_mj, tail)


def gpu(ns, dram_bytes=0.0, memory_ns=0.0, activity=1.0):
    return Segment("gpu", ns, memory_ns, dram_bytes, activity)


def dla(ns, dram_bytes=0.0, memory_ns=0.0):
    return Segment("dla", ns, memory_ns, dram_bytes)


def run_all(machine):
    finished = []
    while done := machine.finish_next():
        finished += done
    return finished


def test_one_job_takes_its_submission_and_its_solo_time():
    machine = Machine(MODEL)
    job = machine.submit("gpu", cost(gpu(1000.0), submit_ns=50.0))
    assert machine.next_event_ns() == 50.0
    assert machine.advance(1049.0) == []
    assert machine.advance(1050.0) == [job]
    assert (job.begin_ns, job.end_ns) == (50.0, 1050.0)


def test_submission_is_hidden_behind_a_running_job_and_order_is_kept():
    machine = Machine(MODEL)
    jobs = [machine.submit("dla0", cost(dla(1000.0), submit_ns=50.0)) for _ in range(3)]
    assert run_all(machine) == jobs
    assert [(job.begin_ns, job.end_ns) for job in jobs] == [(50.0, 1050.0), (1050.0, 2050.0), (2050.0, 3050.0)]


def test_a_job_submitted_late_to_a_running_one_still_pays_what_is_left_of_its_submission():
    machine = Machine(MODEL)
    machine.submit("gpu", cost(gpu(1000.0)))
    machine.advance(980.0)
    late = machine.submit("gpu", cost(gpu(100.0), submit_ns=50.0))
    run_all(machine)
    assert (late.begin_ns, late.end_ns) == (1030.0, 1130.0)


def test_gpu_work_of_a_dla_job_shares_the_gpu():
    # GPU alone until 400, then both at half speed: the DLA's 100 ends at 600 and has taken 100 from the GPU's job.
    machine = Machine(MODEL)
    batch = machine.submit("gpu", cost(gpu(1000.0)))
    job = machine.submit("dla0", cost(dla(400.0), gpu(100.0), dla(50.0)))
    run_all(machine)
    assert job.end_ns == pytest.approx(650.0)
    assert batch.end_ns == pytest.approx(1100.0)


def test_an_accelerator_does_not_wait_for_the_tails_of_its_jobs():
    machine = Machine(MODEL)
    jobs = [machine.submit("dla0", cost(dla(1000.0), host_mj=1.0, tail=gpu(400.0))) for _ in range(2)]
    assert [machine.left_ns("dla0", job) for job in jobs] == [1400.0, 2400.0]
    machine.advance(1100.0)  # the first one's tail beside the second
    assert [machine.left_ns("dla0", job) for job in jobs] == [300.0, 1300.0]
    assert [machine.is_last("dla0", job) for job in jobs] == [False, True] and machine.queued("dla0") == 1
    machine.advance(2300.0)
    assert machine.left_ns("dla0", jobs[1]) == 100.0 and machine.is_last("dla0", jobs[1])
    assert run_all(machine) == jobs[1:]
    assert [(job.begin_ns, job.end_ns) for job in jobs] == [(0.0, 1400.0), (1000.0, 2400.0)]
    assert machine.totals().busy_ns == {"gpu": 0.0, "dla0": 2000.0, "dla1": 0.0}


def test_tails_run_in_order_and_share_the_gpu():
    # The second tail waits for the first: 100 + 300 + 300. Of the GPU's own 900, 100 are done before the tails come,
    # which take 600 at half speed, as it does then: 100 + 2 * 600. Its last 200 it has alone.
    machine = Machine(MODEL)
    alone = [machine.submit("dla0", cost(dla(100.0), tail=gpu(300.0))) for _ in range(2)]
    assert run_all(machine) == alone and [job.end_ns for job in alone] == [400.0, 700.0]
    machine = Machine(MODEL)
    batch = machine.submit("gpu", cost(gpu(900.0)))
    jobs = [machine.submit("dla0", cost(dla(100.0), tail=gpu(300.0))) for _ in range(2)]
    assert run_all(machine) == [*jobs, batch]
    assert [job.end_ns for job in (*jobs, batch)] == pytest.approx([700.0, 1300.0, 1500.0])


def test_energy_and_traffic_of_earlier_work_outlast_the_first_tail():
    machine = Machine(MODEL)
    machine.submit("gpu", cost(gpu(1000.0, dram_bytes=500.0)))
    run_all(machine)
    before = machine.totals()
    machine.submit("gpu", cost(gpu(1000.0), tail=gpu(1000.0, dram_bytes=300.0)))
    assert machine.totals() == before
    run_all(machine)
    found = machine.totals().since(before)
    assert (found.busy_ns["gpu"], found.dram_bytes) == (1000.0, pytest.approx(300.0))
    assert found.rail_j["VDD_GPU_SOC"] == pytest.approx(2 * before.rail_j["VDD_GPU_SOC"], rel=0.05)


def test_small_kernels_alone_do_not_slow_each_other():
    machine = Machine(MODEL)
    jobs = [machine.submit(name, cost(gpu(100.0, activity=0.0))) for name in ("dla0", "dla1")]
    run_all(machine)
    assert [job.end_ns for job in jobs] == [100.0, 100.0]


def test_separate_processes_wait_for_a_slice_and_cost_a_switch():
    shared = MODEL.parameters.shared
    machine = Machine(MODEL, processes="separate")
    batch = machine.submit("gpu", cost(gpu(1e7)))
    job = machine.submit("dla0", cost(dla(1000.0), gpu(500.0)))
    run_all(machine)
    assert job.end_ns == pytest.approx(1500.0 + shared["process_gpu_wait_ms"] * 1e6)
    assert batch.end_ns == pytest.approx(1e7 + shared["process_switch_ms"] * 1e6)
    alone = Machine(MODEL, processes="separate")
    job = alone.submit("dla0", cost(dla(1000.0), gpu(500.0)))
    run_all(alone)
    assert job.end_ns == pytest.approx(1500.0)


def test_dram_sharing_is_the_fixed_point_of_soft_weighted_max_min():
    # GPU 100 GB/s, DLAs 60 GB/s each, all of it memory time: three equations, solved here by damped iteration.
    demands = [100.0, 60.0, 60.0]
    sustained, q = 0.85 * 204.736, 3.0

    def stretch(demand, others):
        available = max(0.5 * sustained, sustained - others)
        return ((1 + (demand / available) ** q) / (1 + (demand / sustained) ** q)) ** (1 / q)

    rates = [1.0] * 3
    for _ in range(2000):
        total = sum(d * r for d, r in zip(demands, rates))
        rates = [r + 0.1 * (1 / stretch(d, total - d * r) - r) for d, r in zip(demands, rates)]
    machine = Machine(MODEL)
    jobs = [
        machine.submit(name, cost(segment))
        for name, segment in zip(
            SOC.accelerators,
            [gpu(0.0, 100.0 * 1e6, 1e6), dla(0.0, 60.0 * 1e6, 1e6), dla(0.0, 60.0 * 1e6, 1e6)],
        )
    ]
    first_end = machine.next_event_ns()
    assert first_end == pytest.approx(1e6 / max(rates), rel=0.01)
    machine.advance(first_end / 2)
    moved = machine.totals().dram_bytes / (first_end / 2)
    assert moved == pytest.approx(sum(d * r for d, r in zip(demands, rates)), rel=0.01)
    run_all(machine)
    assert all(job.end_ns > 1e6 for job in jobs)


def test_compute_only_work_is_not_slowed_by_others():
    machine = Machine(MODEL)
    jobs = [machine.submit("gpu", cost(gpu(1e6))), machine.submit("dla0", cost(dla(0.0, 1e8, 1e6)))]
    run_all(machine)
    assert [job.end_ns for job in jobs] == pytest.approx([1e6, 1e6])


def test_traffic_never_exceeds_what_dram_streams():
    machine = Machine(MODEL)
    for name in SOC.accelerators:
        resource = "gpu" if name == "gpu" else "dla"
        machine.submit(name, cost(Segment(resource, 0.0, 1e6, 180e6)))
    machine.advance(1e5)
    assert machine.totals().dram_bytes / 1e5 <= 0.924 * 204.736 * 1.001


def test_energy_of_an_idle_second_and_of_a_busy_one():
    power = MODEL.parameters.power
    machine = Machine(MODEL)
    machine.advance(1e9)
    idle = machine.totals().rail_j
    assert idle["VDD_GPU_SOC"] + idle["VDD_CPU_CV"] + idle["VIN_SYS_5V0"] == pytest.approx(7.6)
    machine.submit("dla0", cost(dla(0.5e9, 20e9 * 0.5), host_mj=3.0))
    machine.advance(2e9)
    busy = machine.totals().since(machine.totals()).rail_j
    assert set(busy.values()) == {0.0}
    totals = machine.totals()
    assert totals.rail_j["VDD_CPU_CV"] == pytest.approx(2 * 0.4 + 0.5 * power["dla_cpu_cv_w"] + 3e-3)
    assert totals.rail_j["VIN_SYS_5V0"] == pytest.approx(2 * 4.0 + 10 * power["dram_5v0_w_per_gb_s"])
    assert totals.busy_ns == pytest.approx({"gpu": 0.0, "dla0": 0.5e9, "dla1": 0.0})
    assert totals.dram_bytes == pytest.approx(10e9)


def test_power_falls_with_the_clock_to_the_power_of_three_halves():
    slow = CostModel(SOC, SOC.clocks("50W"), "mlperf-v3.0")
    watts = []
    for model in (MODEL, slow):
        machine = Machine(model)
        machine.submit("gpu", cost(gpu(1e9)))
        machine.advance(1e9)
        watts.append(machine.totals().rail_j["VDD_GPU_SOC"] - 3.2)
    assert watts[1] / watts[0] == pytest.approx((816 / 1300.5) ** 1.5)


def test_noise_is_seeded_and_has_the_asked_spread():
    def ends(seed):
        source = random.Random(seed)
        machine = Machine(MODEL, noise=lambda: source.lognormvariate(0.0, 0.005))
        for _ in range(2000):
            machine.submit("gpu", cost(gpu(1000.0)))
        return [job.end_ns - job.begin_ns for job in run_all(machine)]

    assert ends(3) == ends(3) != ends(4)
    assert statistics.pstdev(ends(3)) / 1000 == pytest.approx(0.005, rel=0.1)


def test_a_long_random_run_keeps_its_books(monkeypatch):
    monkeypatch.setattr(machine_module, "STATES_KEPT", 8)  # so that folding happens often
    source = random.Random(7)
    machine = Machine(MODEL)
    submitted, finished = {name: [] for name in SOC.accelerators}, []
    for _ in range(600):
        name = source.choice(SOC.accelerators)
        parts = [gpu(source.uniform(1, 900), source.uniform(0, 1e5), source.uniform(1, 900))]
        if name != "gpu":
            parts = [dla(source.uniform(1, 900), source.uniform(0, 1e5), source.uniform(1, 900)), *parts]
        job = machine.submit(name, cost(*parts, submit_ns=source.uniform(0, 100)))
        submitted[name].append(job)
        bound_ns = machine.now_ns + machine.left_ns(name, job)
        job.tag = bound_ns
        finished += machine.advance(machine.now_ns + source.uniform(0, 1500))
    finished += run_all(machine)
    assert sorted(map(id, finished)) == sorted(id(job) for jobs in submitted.values() for job in jobs)
    for jobs in submitted.values():
        for one, next_one in zip(jobs, jobs[1:]):
            assert one.end_ns <= next_one.begin_ns + 1e-6
        for job in jobs:
            assert job.end_ns - job.begin_ns >= job.cost.solo_ns - 1e-3
            assert job.tag <= job.end_ns + 1e-3  # left_ns was a lower bound
    totals = machine.totals()
    assert totals.elapsed_ns == pytest.approx(machine.now_ns)
    for name, jobs in submitted.items():
        assert totals.busy_ns[name] == pytest.approx(sum(job.end_ns - job.begin_ns for job in jobs))
    moved = sum(job.cost.dram_bytes for job in finished)
    assert totals.dram_bytes == pytest.approx(moved)
    assert len(machine._states) <= 8


def test_nothing_queued_means_nothing_happens():
    machine = Machine(MODEL)
    assert machine.finish_next() == []
    assert machine.next_event_ns() == float("inf")


def test_processes_are_one_or_separate():
    with pytest.raises(OrinError, match="expected one of one, separate"):
        Machine(MODEL, processes="three")
