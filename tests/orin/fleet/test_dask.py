"""The fleet on Dask: workers with virtual boards in this process, and once as processes that are killed."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

distributed = pytest.importorskip("distributed")

from engines import zoo  # noqa: E402
from engines.onnx_model import with_batch  # noqa: E402
from orin.bench import Bench  # noqa: E402
from orin.build import Desk, build_engines  # noqa: E402
from orin.errors import OrinError  # noqa: E402
from orin.fleet.cluster import Processes, Starter, is_ours, offers  # noqa: E402
from orin.fleet.crew import DaskCrew  # noqa: E402
from orin.fleet.dask import NO_DASHBOARD, load_dask  # noqa: E402
from orin.fleet.inventory import Inventory, Member, Offer, load_inventory  # noqa: E402
from orin.fleet.library import Library  # noqa: E402
from orin.fleet.run import Order, Run  # noqa: E402
from orin.fleet.shards import IN_HAND, Rules, Shard  # noqa: E402
from orin.fleet.station import Job, Station, Task  # noqa: E402
from orin.fleet.sweep import one_kind, sweep  # noqa: E402
from orin.fleet.tune import fleet_runner, together  # noqa: E402
from orin.fleet.worker import offer, station_plugin  # noqa: E402
from orin.outcome import Candidate  # noqa: E402
from orin.plan import Plan  # noqa: E402
from orin.tune.measurement import Measurement  # noqa: E402
from orin.tune.run import virtual_runner  # noqa: E402
from power.quantity import Quantity  # noqa: E402
from tests.orin.commands import command  # noqa: E402
from tests.orin.export.small import plan_with_cache  # noqa: E402

BOARD = "virtual:agx-orin-64gb"
SAMPLES = 90


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Samples in three files, a plan, and an engine cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(3)
    for k in range(3):
        np.save(tmp_path / "data" / f"{k}.npy", rng.integers(-127, 128, (SAMPLES // 3, 3, 16, 16), dtype=np.int8))
    plan = plan_with_cache(tmp_path)
    (tmp_path / "plan.yaml").write_text(plan.dumps())
    build_engines(plan, Desk())  # before several boards would build it at once
    return tmp_path


def answers_in(folder):
    lines = [json.loads(line) for path in sorted(folder.glob("shard-*.jsonl")) for line in path.open()]
    assert [line["sample"] for line in lines] == list(range(SAMPLES))
    return lines


def reference_classes(place):
    """The network's answers in float32 by ONNX Runtime, at the scale of the input's range."""
    import onnxruntime

    model = with_batch(zoo.model("digits"), "N")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    samples = np.concatenate([np.load(place / "data" / f"{k}.npy") for k in range(3)])
    (scores,) = session.run(None, {session.get_inputs()[0].name: samples.astype(np.float32) / 127})
    return scores.reshape(SAMPLES, -1)


@pytest.fixture
def client():
    load_dask()
    spec = {
        name: {
            "cls": distributed.Worker,
            "options": {
                "name": name,
                "nthreads": IN_HAND,
                "memory_limit": 0,
                "dashboard": False,
                "dashboard_address": NO_DASHBOARD,
                "resources": dict(offer(BOARD).resources),
                "plugins": (station_plugin(Station(name, BOARD), offer(BOARD)),),
            },
        }
        for name in ("a", "b")
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"dashboard": False, "dashboard_address": NO_DASHBOARD, "port": 0, "host": "127.0.0.1"},
    }
    with distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=False) as cluster:
        with distributed.Client(cluster, set_as_default=False) as made:
            made.wait_for_workers(2, timeout=60)
            yield made


def inventory(*names):
    return Inventory(Path("lab.yaml"), tuple(Member(name, board=BOARD) for name in names))


def test_every_sample_is_answered_as_the_network_answers_it(place, client):
    assert offers(client)["a"].resources == {"GPU": 1, "DLA": 2, "AGX_ORIN_64GB": 1, "VIRTUAL": 1}
    job = Job(Plan.load(place / "plan.yaml"))
    crew = DaskCrew(client, job)
    order = Order(job, Library(place / "data"), place / "out", Rules(first_samples=7))
    summary = Run(order, inventory("a", "b"), crew).answer()
    crew.close()
    assert summary["samples"] == SAMPLES and summary["samples_per_s"] is None  # its speed is that of this host
    lines, scores = answers_in(place / "out"), reference_classes(place)
    best = np.array([scores[n, line["class"]] for n, line in enumerate(lines)])
    assert (best >= scores.max(axis=1) - 0.1 * np.ptp(scores, axis=1)).mean() > 0.9  # INT8 may turn close calls
    assert [line["file"] for line in lines[::30]] == ["0.npy", "1.npy", "2.npy"]


def measured(candidate, options):
    """Stand in for a measurement: says which worker it ran on; the second candidate fails."""
    worker = distributed.get_worker()
    assert worker.state.available_resources["GPU"] == 0  # the board is this run's alone
    if candidate.plan.gpu_batch == 2:
        raise OrinError("no DLA here")
    return worker.name, {"samples_per_s": 100.0 if worker.name == "a" else 110.0}


def test_a_sweep_measures_the_first_candidate_on_every_board_and_the_others_once(client):
    plans = [Candidate(f"batch {batch}", Plan(gpu_batch=batch)) for batch in (1, 2, 4, 8)]
    found = list(sweep(client, ["a", "b"], plans, Bench(runs=Path("runs")), measured))
    reference = {each.board: each.result["samples_per_s"] for each in found if each.reference}
    assert reference == {"a": 100.0, "b": 110.0}
    others = {each.name: each for each in found if not each.reference}
    assert sorted(others) == ["batch 2", "batch 4", "batch 8"] and len(found) == 5
    assert others["batch 2"].failure == "no DLA here" and others["batch 4"].result is not None


def test_a_tuning_measures_a_plan_on_every_board(client, tmp_path):
    runner = fleet_runner(client, offers(client), ["a", "b"], Bench("offline", 1.0, tmp_path / "fleet"))
    assert (runner.name, runner.provenance) == ("fleet of 2 agx-orin-64gb: a, b", "simulated")
    plan = Plan(gpu_batch=8, dla_cores=0)
    alone = virtual_runner(BOARD, tmp_path / "alone", 1.0).measure(plan, 3).measurement
    both = runner.measure(plan, 3).measurement  # the third run's noise is the same on every virtual board
    assert both.samples_per_s == alone.samples_per_s and both.share == alone.share and both.failure is None
    failed = runner.measure(Plan(gpu_batch=8, dla_cores=1, precision="fp32"), 4).measurement
    assert failed.failure.startswith("a: a DLA has no fp32") and "b: a DLA has no fp32" in failed.failure


def test_how_boards_differ_is_in_the_interval_of_their_mean():
    def one(speed, watts=None, flags=()):
        return Measurement(Quantity(speed, 2.0), watts, share={"gpu": 1.0}, seconds=speed / 50, flags=flags)

    found = together({"a": one(100.0, Quantity(20, 1)), "b": one(110.0, flags=("hot",))})
    assert found.samples_per_s.value == 105.0 and found.module_w is None  # one board has no watts
    assert found.samples_per_s.u95 == pytest.approx((2.0**2 + (12.71 * 7.0710678 / 2**0.5) ** 2) ** 0.5, rel=1e-3)
    assert found.seconds == 2.2 and found.flags == ("b: hot",) and found.share == {"gpu": 1.0}
    assert together({"a": one(100.0), "b": Measurement.failed("no memory", 1.0)}).failure == "b: no memory"


def test_boards_of_different_kinds_are_not_compared():
    offers = {
        name: Offer({}, {"jetpack": jetpack}, "measured")
        for name, jetpack in (("a", "6.1"), ("b", "6.2"), ("c", "6.1"))
    }
    assert one_kind(offers, ["a", "c"]) == ["a", "c"]
    with pytest.raises(OrinError, match=r"a and b are of different kinds \(jetpack=6.1; jetpack=6.2\)"):
        one_kind(offers, ["a", "b", "c"])


def test_a_paced_board_takes_packed_samples_and_computes_nothing(place):
    plan = Plan.load(place / "plan.yaml")
    size = build_engines(plan, Desk()).engines["gpu"].manifest.inputs[0].sample_bytes
    (place / "packed").mkdir()
    np.save(place / "packed" / "x.npy", np.zeros((20, size), np.uint8))
    library, station = Library(place / "packed"), Station("a", BOARD)
    station.open(Job(plan, "speed"))
    task = Task(Shard(3, 20), library.folder, library.kind, library.spans(3, 20), place / "out")
    answered = station.answer(task)
    station.close()
    assert answered.shard == Shard(3, 20) and answered.skipped == 0
    lines = [json.loads(line) for line in (place / "out" / Shard(3, 20).file).open()]
    assert [line["sample"] for line in lines] == list(range(3, 20)) and "class" not in lines[0]
    with pytest.raises(OrinError, match="has no engines open"):
        station.answer(task)


def test_a_station_says_what_it_cannot_read_or_write_and_goes_on(place):
    job, library, station = Job(Plan.load(place / "plan.yaml")), Library(place / "data"), Station("a", BOARD)
    shard = Shard(0, 10)
    station.open(job)
    (place / "file").touch()
    with pytest.raises(OrinError, match="cannot be written"):
        station.answer(Task(shard, library.folder, library.kind, library.spans(*shard), place / "file"))
    (place / "data" / "0.npy").rename(place / "data" / "9.npy")
    with pytest.raises(OrinError, match="0.npy cannot be read"):
        station.answer(Task(shard, library.folder, library.kind, library.spans(*shard), place / "out"))
    (place / "data" / "9.npy").rename(place / "data" / "0.npy")
    station.open(job)
    station.answer(Task(shard, library.folder, library.kind, library.spans(*shard), place / "out"))
    assert not list((place / "out").glob(".*")) and (place / "out" / shard.file).is_file()
    station.close()


def test_an_ssh_line_starts_a_worker_there_and_names_what_went_wrong(tmp_path):
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$1|$2" > {tmp_path}/said\necho 4711\n')
    ssh.chmod(0o755)
    member = Member("orin01", "nvidia@orin01", python="venv/bin/python")
    starter = Starter(Inventory(tmp_path / "lab.yaml", (member,)), [str(ssh)])
    assert starter.worker(member, "tcp://10.0.0.1:8786") == 4711
    host, _, line = (tmp_path / "said").read_text().strip().partition("|")
    assert host == "nvidia@orin01" and line.endswith("& echo $!")
    assert "venv/bin/python -m orin.fleet.worker tcp://10.0.0.1:8786 --name orin01 --board jetson" in line
    ssh.write_text("#!/bin/sh\necho 'Permission denied (publickey)' >&2\nexit 255\n")
    with pytest.raises(OrinError, match="orin01: ssh to nvidia@orin01 failed: Permission denied"):
        starter.worker(member, "tcp://10.0.0.1:8786")


@pytest.mark.slow
def test_a_fleet_of_processes_goes_up_survives_kill_9_and_goes_down(place, capsys):
    path = place / "lab.yaml"
    path.write_text(
        f"port: 0\nboards:\n  k1: {{board: '{BOARD}', host: local}}\n  k2: {{board: '{BOARD}', host: local}}\n"
    )
    words = [str(path), "--quiet", "--json"]
    assert command(["fleet", "up", *words]) == 0
    try:
        before = Processes.load(load_inventory(path)).workers
        os.kill(before["k1"], signal.SIGKILL)
        run = [
            "fleet",
            "run",
            *words,
            "--plan",
            str(place / "plan.yaml"),
            "--data",
            str(place / "data"),
            "-o",
            str(place / "out"),
        ]
        assert command(run) == 0
        answers_in(place / "out")
        capsys.readouterr()
        records = ["--runs-folder", str(place / "runs"), "-o", str(place / "tuned")]
        tune = ["fleet", "tune", str(path), "resnet50", *words[1:], "--runs", "1", "--seconds-per-run", "1"]
        assert command([*tune, *records]) == 0
        assert json.loads(capsys.readouterr().out)["board"].endswith("k2")  # k1 may not be back yet
        assert Plan.load(place / "tuned/plan.yaml").network == "resnet50"
    finally:
        assert command(["fleet", "down", *words]) == 0
    assert command(["fleet", "status", *words]) == 2
    assert "is not up" in capsys.readouterr().err
    assert not any(map(is_ours, before.values()))
