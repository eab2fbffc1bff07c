"""Starting a fleet: who is waited for."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from orin.fleet import cluster
from orin.fleet.inventory import Inventory, Member


class Scheduler:
    """Knows of a worker from the third look on."""

    looks = 0

    def scheduler_info(self, n_workers):
        self.looks += 1
        return {"workers": {"tcp://desk": {"name": "desk"}} if self.looks > 2 else {}}


class Starter(cluster.Starter):
    """Starts nothing."""

    def worker(self, member, address):
        return os.getpid()


def test_a_worker_that_is_no_python_yet_is_waited_for(tmp_path, monkeypatch):
    @contextmanager
    def connect(inventory, address):
        yield Scheduler()

    monkeypatch.setattr(cluster, "connect", connect)
    monkeypatch.setattr(cluster, "is_ours", lambda pid: pid != os.getpid())  # as a process looks at first
    inventory = Inventory(tmp_path / "lab.yaml", (Member("desk", "local"),))
    inventory.state.mkdir()
    state = {"address": "tcp://here", "scheduler": os.getppid(), "workers": {}}
    (inventory.state / cluster.STATE).write_text(json.dumps(state))
    said = []
    cluster.up(inventory, Starter(inventory), said.append)
    assert said == []


def test_a_scheduler_that_is_not_waited_for_is_ended(tmp_path, monkeypatch):
    started = []

    class Slow(cluster.Starter):
        """Starts a scheduler that never says where it is."""

        def scheduler(self):
            words = [sys.executable, "-c", "import time; time.sleep(60)", "orin.fleet.scheduler"]
            started.append(subprocess.Popen(words))
            while not cluster.is_ours(started[0].pid):
                time.sleep(0.01)
            monkeypatch.setattr(cluster.time, "sleep", interrupted)
            return started[0].pid

    sleep = time.sleep

    def interrupted(seconds):
        monkeypatch.setattr(cluster.time, "sleep", sleep)
        raise KeyboardInterrupt

    inventory = Inventory(tmp_path / "lab.yaml", (Member("desk", "local"),))
    with pytest.raises(KeyboardInterrupt):
        cluster.up(inventory, Slow(inventory), print)
    assert not cluster.is_ours(started[0].pid)
