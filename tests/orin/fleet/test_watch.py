"""Lost boards are started again: what hangs is ended first, what is only slow is left alone."""

import threading
from pathlib import Path

from orin.errors import OrinError
from orin.fleet.cluster import Processes
from orin.fleet.inventory import Inventory, Member
from orin.fleet.watch import Watch


class Starts:
    """Notes what is started and ended; `fail` starts fail first."""

    def __init__(self, folder, fail=0):
        self.inventory = Inventory(folder / "lab.yaml", (Member("a"), Member("b")))
        self.inventory.state.mkdir()
        self.calls, self.fail, self.called = [], fail, threading.Semaphore(0)

    def end(self, member, pid):
        self.calls.append(("end", member.name, pid))

    def worker(self, member, address):
        self.calls.append(("start", member.name, address))
        self.called.release()
        if self.fail:
            self.fail -= 1
            raise OrinError("no route to host")
        return 100 + len(self.calls)


def test_a_lost_board_is_ended_and_started_once_while_it_comes_up(tmp_path):
    starts, processes = Starts(tmp_path), Processes("tcp://x:1", 1, {"a": 7})
    with Watch(starts, processes, print, patience_s=3600.0) as watch:
        watch.lost("a")
        assert starts.called.acquire(timeout=30)
        watch.lost("a")  # it takes its time
        watch.lost("b")
        assert starts.called.acquire(timeout=30)
    assert starts.calls == [("end", "a", 7), ("start", "a", "tcp://x:1"), ("start", "b", "tcp://x:1")]
    assert set(Processes.load(starts.inventory).workers) == {"a", "b"}


def test_a_board_that_does_not_start_is_tried_again_and_said(tmp_path):
    starts, said = Starts(tmp_path, fail=2), []
    with Watch(starts, Processes("tcp://x:1", 1, {}), said.append, patience_s=0.0) as watch:
        watch.lost("a")
        assert all(starts.called.acquire(timeout=30) for _ in range(3))
        watch.found("a")
    assert said == ["no route to host"] * 2


def test_a_board_that_is_back_is_left_alone(tmp_path):
    starts = Starts(tmp_path)
    watch = Watch(starts, Processes("tcp://x:1", 1, {"a": 7}), print)
    watch.lost("a")
    watch.found("a")
    with watch:
        watch.lost("b")
        assert starts.called.acquire(timeout=30)
    assert [call[1] for call in starts.calls] == ["b"] and Path(tmp_path / "lab.fleet").is_dir()
