"""A run over a simulated crew on a simulated clock: boards are lost, found, hang and fail at given moments."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from orin.errors import OrinError
from orin.fleet.crew import Event
from orin.fleet.inventory import Inventory, Member
from orin.fleet.library import Library
from orin.fleet.run import Ears, Order, Run, spread
from orin.fleet.shards import Rules
from orin.fleet.station import Answered, Job
from orin.plan import Plan

RULES = Rules(slice_s=2.0, least_s=20.0)


@dataclass
class Sim:
    """A crew whose boards take `samples / rate` seconds of its own clock; `faults` happen at their moments."""

    rates: dict
    faults: list = field(default_factory=list)  # (moment, name, what)
    now_s: float = 0.0
    incarnation: dict = field(default_factory=dict)
    flying: dict = field(default_factory=dict)  # name -> [(end, Event)], one after another
    away: set = field(default_factory=set)
    hanging: set = field(default_factory=set)
    broken: dict = field(default_factory=dict)
    opened: list = field(default_factory=list)

    def clock(self):
        return self.now_s

    def address(self, name):
        return f"{name}#{self.incarnation.get(name, 0)}"

    def present(self):
        return {name: self.address(name) for name in self.rates if name not in self.away}

    def open(self, name, address, job):
        self.opened.append(address)
        self._fly(name, 1.0, Event(name, address, error=self.broken.get(f"open {name}")))

    def answer(self, name, address, task):
        assert address == self.address(name) and name not in self.away
        seconds = task.shard.samples / self.rates[name]
        if name in self.broken:
            event = Event(name, address, task, error=self.broken[name])
        else:
            event = Event(name, address, task, Answered(task.shard, seconds, 0))
        self._fly(name, seconds, event)

    def _fly(self, name, seconds, event):
        queue = self.flying.setdefault(name, [])
        queue.append(((queue[-1][0] if queue else self.now_s) + seconds, event))

    def forget(self, name):
        self.flying.pop(name, None)

    def events(self, timeout_s):
        self.now_s += timeout_s
        for fault in [fault for fault in self.faults if fault[0] <= self.now_s]:
            self.faults.remove(fault)
            self._happen(*fault[1:])
        events = []
        for name, queue in self.flying.items():
            while queue and queue[0][0] <= self.now_s and name not in self.hanging:
                events.append(queue.pop(0)[1])
        for event in events:
            if event.answered is not None:
                (event.task.output / event.task.shard.file).touch()
        return events

    def _happen(self, name, what):
        if what == "kill":
            self.away.add(name)
            self.flying.pop(name, None)
        elif what == "back":
            self.away.discard(name)
            self.hanging.discard(name)
            self.incarnation[name] = self.incarnation.get(name, 0) + 1
        elif what == "hang":
            self.hanging.add(name)
        elif what == "wake":
            self.hanging.discard(name)
        elif what == "full":
            self.broken[name] = "No space left on device"
        elif what == "free":
            del self.broken[name]


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(5):
        np.save(folder / f"{k}.npy", np.zeros((200, 3, 2, 2), np.int8))
    return Library(folder)


def make(sim, library, tmp_path, **ears):
    members = tuple(Member(name, board="virtual:agx-orin-64gb") for name in sim.rates)
    order = Order(Job(Plan(), "speed"), library, tmp_path / "out", RULES)
    return Run(order, Inventory(Path("fleet.yaml"), members), sim, Ears(clock=sim.clock, **ears))


def covered(folder):
    names = sorted(path.name for path in folder.glob("shard-*.jsonl"))
    edges = [tuple(map(int, name.removesuffix(".jsonl").split("-")[1:])) for name in names]
    return edges[0][0] == 0 and edges[-1][1] == 1000 and all(a[1] == b[0] for a, b in zip(edges, edges[1:]))


def test_faster_boards_answer_more_and_the_summary_says_how_they_differ(library, tmp_path):
    sim = Sim({"a": 30.0, "b": 10.0})
    summary = make(sim, library, tmp_path).answer()
    assert summary["samples"] == 1000 and covered(tmp_path / "out")
    a, b = (summary["boards"][name] for name in "ab")
    assert a["samples_per_s"] == pytest.approx(30.0) and b["samples_per_s"] == pytest.approx(10.0)
    assert a["samples"] + b["samples"] == 1000 and 2 < a["samples"] / b["samples"] < 4.5
    assert summary["spread"]["mean"] == pytest.approx(20.0)
    assert summary["spread"]["cv"] == pytest.approx(np.std([30, 10], ddof=1) / 20)


def test_a_killed_board_is_said_called_back_and_used_again(library, tmp_path):
    sim, called, said = Sim({"a": 20.0, "b": 20.0}, [(5.0, "a", "kill"), (12.0, "a", "back")]), [], []
    summary = make(sim, library, tmp_path, lost=called.append, say=said.append).answer()
    assert covered(tmp_path / "out") and summary["boards"]["a"]["losses"] == 1
    assert "a is lost" in said and "a" in called
    assert sim.opened == ["a#0", "b#0", "a#1"]  # engines are opened again where the worker is a new one


def test_a_hung_board_is_passed_over_and_its_late_answer_is_counted_once(library, tmp_path):
    sim = Sim({"a": 20.0, "b": 20.0}, [(5.0, "a", "hang"), (40.0, "a", "wake")])
    summary = make(sim, library, tmp_path).answer()
    assert covered(tmp_path / "out")
    assert sum(board["samples"] for board in summary["boards"].values()) == 1000
    assert summary["boards"]["a"]["losses"] == 1 and summary["repeated"] > 0


def test_a_full_disk_leaves_the_work_to_others_until_it_is_free(library, tmp_path):
    sim, said = Sim({"a": 20.0, "b": 20.0}, [(3.0, "a", "full"), (20.0, "a", "free")]), []
    summary = make(sim, library, tmp_path, say=said.append).answer()
    assert covered(tmp_path / "out") and any("No space left" in line for line in said)
    assert summary["boards"]["b"]["samples"] > summary["boards"]["a"]["samples"] > 0


def test_all_boards_may_be_away_for_a_while_but_not_for_ever(library, tmp_path):
    both_back = [(5.0, "a", "kill"), (5.0, "b", "kill"), (60.0, "b", "back")]
    assert make(Sim({"a": 20.0, "b": 20.0}, both_back), library, tmp_path).answer()["samples"] == 1000
    gone = Sim({"a": 20.0}, [(5.0, "a", "kill")])
    with pytest.raises(OrinError, match="no board has been there for 120 s"):
        make(gone, library, tmp_path / "2").answer()
    back = Sim({"a": 20.0})
    summary = make(back, library, tmp_path / "2").answer()
    assert summary["done_before"] > 0 and covered(tmp_path / "2" / "out")


def test_a_plan_that_no_board_opens_ends_the_run_with_the_reason(library, tmp_path):
    sim = Sim({"a": 20.0, "b": 20.0})
    sim.broken = {"open a": "no DLA here", "open b": "no DLA here"}
    with pytest.raises(OrinError, match="no board can open the plan; a: no DLA here"):
        make(sim, library, tmp_path).answer()


def test_answers_that_are_nowhere_and_answers_of_another_run_are_refused(library, tmp_path):
    sim = Sim({"a": 100.0})
    made = make(sim, library, tmp_path)
    made._order.output.rename(tmp_path / "elsewhere")
    made._order.output.mkdir()
    sim.answer_ = sim.events
    sim.events = lambda timeout_s: [event for event in sim.answer_(timeout_s) if not _unlink(event)]
    with pytest.raises(OrinError, match="the boards do not see this folder"):
        made.answer()
    (tmp_path / "3" / "out").mkdir(parents=True)
    (tmp_path / "3" / "out" / "shard-000000000000-000000000007.jsonl").touch()
    with pytest.raises(OrinError, match="holds answers of another run"):
        make(Sim({"a": 1.0}), library, tmp_path / "3")


def _unlink(event):
    if event.answered is not None:
        (event.task.output / event.task.shard.file).unlink()


def test_spread_of_one_board_is_none():
    assert spread([1.0]) is None
