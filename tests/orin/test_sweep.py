"""A sweep's order, resuming, cooling down, flags, choice and what the command prints; each run itself is faked."""

import argparse
import json
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import orin.sweep
from orin.bench import Bench
from orin.build import Desk
from orin.cli import power_sweep
from orin.errors import OrinError
from orin.outcome import best, chosen, front, mode_file_of, versus
from orin.plan import Plan
from orin.record import load_record
from orin.soc import AGX_ORIN_64GB_SOC
from orin.sweep import Site, Thermal, candidates, sweep
from power.boards import AGX_ORIN_64GB
from power.errors import PowerError
from power.modes import board_modes
from power.nvpmodel import parse_mode_file
from power.reading import parse_line

PLAN = Plan(gpu_batch=64)
FIGURES = {  # samples/s and watts: hand-made so that 15W has the best ratio and 50W is dominated by MAXN
    "MAXN": (6000.0, 40.0),
    "50W": (4500.0, 41.0),
    "30W": (3600.0, 18.0),
    "15W": (1800.0, 8.0),
    None: (1000.0, 30.0),
}


class Runs:
    """Stands in for `orin.bench.bench`: writes a record with given figures."""

    def __init__(self, u95=0.5):
        self.plans = []
        self.u95 = u95
        self.lines = ["VDD_GPU_SOC 1mW/1mW GR3D_FREQ 99%@[{gpu},{gpu}]"] * 20
        self.broken = ()
        self.clocks = {}

    def __call__(self, plan, board, desk, options):
        if plan.mode in self.broken:
            raise PowerError(f"power mode {plan.mode} did not come into force")
        self.plans.append(plan)
        folder = options.runs / f"run{len(self.plans)}"
        folder.mkdir(parents=True)
        clocks = vars(AGX_ORIN_64GB_SOC.clocks(plan.mode or "MAXN")) | self.clocks
        speed, watts = FIGURES[plan.mode]
        values = {
            "version": 1, "id": folder.name, "status": "finished", "provenance": "simulated", "board": board.name,
            "network": {"name": plan.network}, "stack": plan.stack, "scenario": "offline", "plan": plan.as_json(),
            "mode": "performance", "clocks": clocks, "window_ns": [0, 10**9], "valid": True,
            "loadgen": {"result_samples_per_second": speed},
            "power": {"module_w": {"value": watts, "u95": self.u95}, "rails_w": {}} if self.u95 else None,
            "power_missing": "the sensor had a gap",
        }  # fmt: skip
        (folder / "record.json").write_text(json.dumps(values))
        log = [f"{1000 + at} {line}".format(gpu=round(clocks["gpu_mhz"])) for at, line in enumerate(self.lines)]
        (folder / "tegrastats.log").write_text("\n".join(log))
        return load_record(folder)


class Board:
    """A board that tells temperatures, one a reading; the last one stays."""

    name, soc, provenance = "virtual:agx-orin-64gb", AGX_ORIN_64GB_SOC, "simulated"

    def __init__(self, temperatures_c=()):
        self.temperatures_c = list(temperatures_c)
        self.opened = self.closed = 0

    def open(self):
        self.opened += 1
        return self

    def close(self):
        self.closed += 1

    def _readings(self):
        if not self.temperatures_c:
            return [(0, parse_line("RAM 1/2MB cpu@-256C"))]
        now_c = self.temperatures_c.pop(0) if len(self.temperatures_c) > 1 else self.temperatures_c[0]
        return [(0, parse_line(f"RAM 1/2MB cpu@{now_c}C tj@20C PMIC@100C"))]

    @contextmanager
    def meter(self, on_line=None):
        yield SimpleNamespace(source=SimpleNamespace(readings=self._readings), check=lambda: None)


@pytest.fixture
def runs(monkeypatch):
    found = Runs()
    monkeypatch.setattr(orin.sweep, "bench", found)
    return found


def measure(tmp_path, modes, board=None, said=None, seconds=10.0, slept=None):
    thermal = Thermal(margin_c=3, patience_s=20, poll_s=2, sleep=(slept if slept is not None else []).append)
    desk = Desk(cache=tmp_path, say=(said if said is not None else []).append)
    site = Site((board or Board()).open, desk, thermal)
    wanted = candidates([("gpu 64", PLAN)], modes)
    return list(sweep(wanted, site, Bench("offline", seconds, tmp_path / "sweep")))


def test_candidates_are_every_plan_in_every_mode():
    plans = [("a", Plan(gpu_batch=8)), ("b", Plan(gpu_batch=16, clocks_mhz={"gpu": 612.0})), ("c", Plan(gpu_batch=8))]
    found = candidates(plans, ["MAXN", "30W"])
    assert [one.name for one in found] == ["MAXN a", "MAXN b", "30W a", "30W b"]
    assert [(one.plan.mode, one.plan.gpu_batch, one.plan.clocks_mhz) for one in found][1] == ("MAXN", 16, None)
    assert [one.name for one in candidates(plans, [])] == ["a", "b"]


def test_every_run_opens_the_board_anew(tmp_path, runs):
    board = Board()
    outcomes = measure(tmp_path, ["MAXN", "30W"], board)
    assert [one.number for one in outcomes] == [1, 2] and [plan.mode for plan in runs.plans] == ["MAXN", "30W"]
    assert board.opened == board.closed == 2
    assert outcomes[1].samples_per_s == 3600 and outcomes[1].module_w.value == 18
    assert outcomes[1].samples_per_joule.value == pytest.approx(200)
    assert outcomes[1].samples_per_joule.u95 == pytest.approx(200 * 0.5 / 18)


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path, runs):
    measure(tmp_path, ["MAXN"])
    outcomes = measure(tmp_path, ["MAXN", "30W"])
    assert [plan.mode for plan in runs.plans] == ["MAXN", "30W"]
    assert [one.samples_per_s for one in outcomes] == [6000, 3600]
    measure(tmp_path, ["MAXN"], seconds=20.0)
    assert len(runs.plans) == 3, "another length is another run"


def test_what_is_damaged_or_gone_is_measured_again(tmp_path, runs):
    measure(tmp_path, ["MAXN"])
    (tmp_path / "sweep/run1/record.json").write_text("{")
    measure(tmp_path, ["MAXN"])
    assert len(runs.plans) == 2
    (tmp_path / "sweep/sweep.json").write_text("[]")
    with pytest.raises(OrinError, match="is no sweep of version 1"):
        measure(tmp_path, ["MAXN"])


def test_one_that_fails_does_not_end_the_sweep(tmp_path, runs):
    runs.broken = ("30W",)
    first, second, third = measure(tmp_path, ["MAXN", "30W", "15W"])
    assert second.failure == "power mode 30W did not come into force" and second.samples_per_joule is None
    assert first.failure is None and third.samples_per_s == 1800
    runs.broken = ()
    assert measure(tmp_path, ["30W"])[0].samples_per_s == 3600


def test_a_warm_board_is_waited_for(tmp_path, runs):
    slept, said = [], []
    # first run at 50; second starts at 60, then 56, 53; third never cools
    outcomes = measure(tmp_path, ["MAXN", "50W", "30W"], Board([50, 60, 56, 53, 70]), said, slept=slept)
    assert [one.start.hottest_c for one in outcomes] == [50, 53, 70]
    assert [one.start.waited_s for one in outcomes] == [0, 4, 20]
    assert slept == [2] * 12
    assert said[0] == "hottest zone at 60.0 °C: waiting for 53.0 °C"


def test_a_board_without_temperatures_is_not_waited_for(tmp_path, runs):
    slept = []
    assert measure(tmp_path, ["MAXN", "30W"], slept=slept)[1].start.hottest_c is None
    assert not slept


def test_a_clock_that_falls_while_busy_is_flagged(tmp_path, runs):
    runs.lines = runs.lines[:15] + ["cpu@95C GR3D_FREQ 99%@[510,510]"] * 5
    (one,) = measure(tmp_path, ["MAXN"])
    assert one.flags == ("throttled: gpu down to 510 of 1300 MHz in 25%",)
    assert best([one]) is None and front([one]) == ()


def test_a_clock_that_never_reaches_its_limit_is_flagged(tmp_path, runs):
    runs.lines = ["RAM 1/2MB GR3D_FREQ 99%@[510,510]"] * 5 + ["RAM 1/2MB GR3D_FREQ 5%@[1300,1300]"]
    (one,) = measure(tmp_path, ["MAXN"])
    assert one.flags == ("throttled: gpu at 510 MHz at most, its limit is 1300.5",)


def test_a_mode_that_was_not_held_is_flagged(tmp_path, runs):
    runs.clocks = {"dla_mhz": 1600.0}
    (one,) = measure(tmp_path, ["30W"])
    assert one.flags == ("30W not held: dla_mhz is 1600, expected 1369.6",)


def test_a_run_without_power_is_flagged(tmp_path, runs):
    runs.u95 = None
    (one,) = measure(tmp_path, ["30W"])
    assert one.flags == ("no power: the sensor had a gap",) and one.module_w is None


def test_front_best_and_ratios(tmp_path, runs):
    outcomes = measure(tmp_path, ["MAXN", "50W", "30W", "15W"])
    assert front(outcomes) == (1, 3, 4), "50W is slower than MAXN with more power"
    assert best(outcomes).number == 4  # 225 samples/J against 150, 109.8 and 200
    assert versus(outcomes[0], outcomes[3]).startswith("0.667 ± ") and versus(outcomes[3], outcomes[3]) == "1"
    # 200 ± 5.6 and 225 ± 14.1 overlap by less than their sum: 25 > 19.7; with twice the u95 they are not resolved
    assert versus(outcomes[2], outcomes[3]).startswith("0.889 ± ")
    runs.u95 = 1.0
    third, fourth = measure(tmp_path / "again", ["30W", "15W"])
    assert versus(third, fourth) == "not resolved"


def test_choice(tmp_path, runs):
    runs.broken = ("50W",)
    outcomes = measure(tmp_path, ["MAXN", "50W", "30W"])
    assert chosen(outcomes, None).number == 3 and chosen(outcomes, 1).number == 1
    for number in (2, 7):
        with pytest.raises(OrinError, match=f"--choose is {number}, expected one of the runs that were measured: 1, 3"):
            chosen(outcomes, number)


def test_mode_file_of_the_choice(tmp_path, runs):
    (one,) = measure(tmp_path, ["30W"])
    file = parse_mode_file(mode_file_of(one, board_modes(AGX_ORIN_64GB)).dumps())
    (mode,) = file.modes
    assert mode.id == 0 == file.default
    assert mode.values["GPU", "MAX_FREQ"] == "612000000" and mode.values["TPC_POWER_GATING", "TPC_PG_MASK"] == "240"
    assert mode.values["DLA1_CORE", "MAX_FREQ"] == "1369600000" and mode.values["EMC", "MAX_FREQ"] == "-1"
    assert mode.values["CPU_A78_2", "MAX_FREQ"] == "1728000" and mode.cpus == 8
    (plain,) = measure(tmp_path, [])
    with pytest.raises(OrinError, match="changed no power mode"):
        mode_file_of(plain, board_modes(AGX_ORIN_64GB))


@pytest.fixture
def command(tmp_path, runs, monkeypatch):
    """Run the command on a board without temperatures, with one photo."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/a.png"), np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr("orin.boards.open_board", lambda name, purpose: Board())

    def run(*words):
        parser = argparse.ArgumentParser()
        power_sweep.configure(parser)
        words = [*words, "--board", "virtual:agx-orin-64gb", "--data", "photos", "--quiet"]
        return power_sweep.handle(parser.parse_args(words))

    return run


def test_command_prints_a_table_and_writes_the_report(command, tmp_path, capsys):
    assert command("resnet50", "--modes", "MAXN,50W,30W,15W", "--gpu-batch", "64", "--write-mode", "best.conf") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("SIMULATED: 4 runs, 10 s each")
    assert max(map(len, printed.splitlines())) <= 100
    assert "chosen: 4, 15W gpu 64" in printed
    page = (tmp_path / "sweeps/resnet50/report.html").read_text()
    assert "SIMULATED: throughput and power" in page and "<svg" in page and "3: 30W gpu 64" in page
    written = (tmp_path / "best.conf").read_text()
    assert written.startswith("# 15W gpu 64 on virtual:agx-orin-64gb: 1800 samples/s, 225.0 samples/J (simulated)\n")
    assert parse_mode_file(written).modes[0].values["GPU", "MAX_FREQ"] == "408000000"


def test_command_prints_json(command, capsys):
    assert command("--modes", "MAXN,50W", "--choose", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"] == "simulated" and found["chosen"] == 2 and found["front"] == [1]
    assert [run["mode"] for run in found["runs"]] == ["MAXN", "50W"]
    assert set(found["runs"][0]["samples_per_joule"]) == {"value", "u95"}


def test_plan_files_are_swept(command, tmp_path, runs, capsys):
    for name, cores in (("both", 2), ("none", 0)):
        (tmp_path / f"{name}.yaml").write_text(Plan(network="ssd-mobilenet", dla_cores=cores).dumps())
    assert command("resnet50", "--modes", "30W", "--plans", "both.yaml", "none.yaml", "--json") == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["30W both", "30W none"]
    assert [(plan.network, plan.dla_cores) for plan in runs.plans] == [("resnet50", 2), ("resnet50", 0)]


def test_what_cannot_be_swept_is_refused_before_anything_runs(command, runs):
    with pytest.raises(PowerError, match="'99W' is not one of this board's"):
        command("--modes", "MAXN,99W")
    with pytest.raises(OrinError, match="--gpu-batch is '64,x'"):
        command("--gpu-batch", "64,x")
    with pytest.raises(OrinError, match="--choose is 3, expected a run from 1 to 2"):
        command("--modes", "MAXN,30W", "--choose", "3")
    with pytest.raises(OrinError, match="there is no folder nowhere"):
        command("--write-mode", "nowhere/mode.conf")
    assert not runs.plans


def test_nothing_measured_is_an_error(command, runs):
    runs.broken = ("MAXN",)
    with pytest.raises(OrinError, match="none of 1 runs could be measured; the first: power mode MAXN did not"):
        command("--modes", "MAXN")
