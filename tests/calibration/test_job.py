"""Whole calibrations: manifests, passes that go on after a kill, and how much is in memory."""

import dataclasses
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.arrays import Arrays
from calibration.cache import read_cache
from calibration.errors import CalibrationError
from calibration.job import Job, calibrate, calibrate_to, hashed_files, manifest_path
from calibration.manifest import digest, read_manifest
from calibration.observers import OBSERVERS, MinMax
from calibration.resume import Checkpoint, Tally
from calibration.source import Batch, grouped, inputs_of
from tests.calibration.test_collect import network
from tests.dla.networks import model, node

SAMPLES = 13


@pytest.fixture
def place(tmp_path):
    values = np.random.default_rng(0).standard_t(2, (SAMPLES, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    return tmp_path


def job(place, method="entropy", name="x.npy", model=None, **options):
    model = model or network()
    return Job(model, Arrays([place / name], inputs_of(model), **{"fixed_batch": 2, **options}), method)


class Stop(Exception):
    """Stands for whatever ends a pass early."""


def stopped(place, told, work, after=8):
    """Run a job until `after` samples are done, keeping state all the time; returns the checkpoint."""
    checkpoint = Checkpoint(place / "net.cache.partial", told.append, every_s=0, clock=lambda: 0.0)

    def stop(done, total):
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        calibrate(work, checkpoint, stop)
    return checkpoint


@pytest.mark.parametrize("method", OBSERVERS)
def test_an_interrupted_pass_goes_on_to_the_same_ranges(place, method):
    told, progress = [], []
    whole = calibrate(job(place, method))
    checkpoint = stopped(place, told, job(place, method))
    again = calibrate(job(place, method), checkpoint, lambda done, total: progress.append((done, total)))
    assert again.resumed == 6  # the batch that ended at 8 was not counted yet
    assert progress == [(6, 13), (8, 13), (10, 13), (12, 13), (13, 13)]
    assert again.ranges == whole.ranges
    assert again.manifest == whole.manifest
    assert told == []


@pytest.mark.parametrize(("writing_s", "gap"), [(0, 3), (4, 20)])
def test_a_state_is_written_by_time_and_less_often_where_that_takes_long(place, writing_s, gap):
    """A clock that goes on 4 s for every batch, and while a state is written."""
    now_s, writes = [0.0], []

    class Slow(MinMax):
        def state(self):
            now_s[0] += writing_s
            writes.append(now_s[0])
            return super().state()

    checkpoint = Checkpoint(place / "state", print, every_s=10, clock=lambda: now_s[0])
    recipe, tally, saved = job(place).recipe, Tally(), []
    for index in range(60):
        now_s[0] += 4
        checkpoint.save_if_due(recipe, tally, Slow())
        saved += [index] * (len(writes) > len(saved))
    assert {later - earlier for earlier, later in zip(saved, saved[1:])} == {gap}
    assert saved[0] == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "percentile"}, "its method is another"),
        ({"model": network(opset=14)}, "its network is another"),
        ({"fixed_batch": 3}, "its data is another"),
        ({"limit": 6}, "its data is another"),  # just what the state holds: nothing would be left to run
        ({"name": "y.npy"}, "its files are others"),
    ],
)
def test_a_state_of_something_else_is_left_with_one_line(place, change, reason):
    values = np.load(place / "x.npy")
    values[3] += 1
    np.save(place / "y.npy", values)
    told = []
    checkpoint = stopped(place, told, job(place))
    made = calibrate(job(place, **change), checkpoint)
    assert told == [f"{checkpoint.path} is not continued: {reason}; calibrating from the first sample"]
    assert made.resumed == 0
    assert made.ranges == calibrate(job(place, **change)).ranges


def test_a_damaged_state_is_left_with_one_line(place):
    whole = calibrate(job(place))
    content = stopped(place, [], job(place)).path.read_bytes()
    flipped = bytes(byte ^ 0xFF for byte in content[300:400])
    for damaged in (b"", b"text", content[:-50], content[:300] + flipped + content[400:]):
        told = []
        path = place / "net.cache.partial"
        path.write_bytes(damaged)
        made = calibrate(job(place), Checkpoint(path, told.append))
        assert (made.resumed, made.ranges) == (0, whole.ranges)
        assert len(told) == 1 and "cannot be read" in told[0] and "\n" not in told[0]


KILLED = """
import os, signal, sys
from pathlib import Path
import onnx
from calibration.arrays import Arrays
from calibration.job import Job, calibrate
from calibration.resume import Checkpoint
from calibration.source import inputs_of

folder = Path(sys.argv[1])
model = onnx.load(folder / "net.onnx")
job = Job(model, Arrays([folder / "x.npy"], inputs_of(model), fixed_batch=2), "entropy")
checkpoint = Checkpoint(folder / "net.cache.partial", print, every_s=0, clock=lambda: 0.0)
calibrate(job, checkpoint, lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done >= 10 else None)
"""


def test_a_killed_process_is_continued(place):
    onnx.save(network(), place / "net.onnx")
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(place)], cwd=root, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    told = []
    made = calibrate_to(place / "net.cache", job(place, model=onnx.load(place / "net.onnx")), told.append)
    whole = calibrate_to(place / "whole.cache", job(place), told.append)
    assert (made.resumed, whole.resumed, told) == (8, 0, [])
    assert (place / "net.cache").read_bytes() == (place / "whole.cache").read_bytes()
    assert manifest_path(place / "net.cache").read_bytes() == manifest_path(place / "whole.cache").read_bytes()
    assert not list(place.glob("*.partial"))


def test_tensors_that_tensorrts_parser_makes_have_a_scale_in_the_cache(place):
    head = [node("Flatten", "x", "f"), node("Gemm", "f w b", "y")]
    classifier = model(head, {"x": ("n", 3, 8, 8)}, {"y": None}, {"w": (192, 5), "b": (5,)})
    calibrate_to(place / "net.cache", job(place, "minmax", model=classifier), print)
    scales = read_cache(place / "net.cache").scales
    assert list(scales) == ["x", "f", "y", "y_node_output"]
    assert scales["y_node_output"] == scales["y"] > 0


def test_what_is_made_is_not_made_again(place):
    path = place / "net.cache"
    first = calibrate_to(path, job(place), print)
    again = calibrate_to(path, job(place), print)
    assert (first.unchanged, again.unchanged) == (False, True)
    assert dataclasses.replace(again, unchanged=False) == first
    assert first.ranges.amax_by_tensor == read_cache(path).to_ranges().amax_by_tensor
    assert (first.ranges.method, first.ranges.images) == ("entropy", SAMPLES)
    manifest_path(path).write_text("{")
    assert not calibrate_to(path, job(place), print).unchanged


def test_a_digest_is_of_content_and_order(place, tmp_path_factory):
    def of(files, method="entropy"):
        work = Job(network(), Arrays(files, inputs_of(network())), method)
        return digest(work.recipe, hashed_files(work.source))

    other = tmp_path_factory.mktemp("other")
    values = np.load(place / "x.npy")
    for folder, names in ((place, "ab"), (other, "cd")):
        for name, part in zip(names, np.split(values[:12], 2)):
            np.save(folder / f"{name}.npy", part)
    here = of([place / "a.npy", place / "b.npy"])
    assert of([other / "c.npy", other / "d.npy"]) == here
    assert of([place / "b.npy", place / "a.npy"]) != here
    assert of([place / "a.npy", place / "b.npy"], "minmax") != here
    assert calibrate(job(place)).manifest.digest == digest(job(place).recipe, hashed_files(job(place).source))


def test_manifests_are_read_back_and_damage_is_one_line(place):
    manifest = calibrate_to(place / "net.cache", job(place), print).manifest
    text = manifest_path(place / "net.cache").read_text()
    assert read_manifest(text) == manifest
    for damaged in ("", "[]", "{}", text.replace('"version": 1', '"version": 2'), text.replace("entropy", "minmax")):
        with pytest.raises(CalibrationError, match="manifest") as caught:
            read_manifest(damaged)
        assert "\n" not in str(caught.value)


class Counted:
    """Batches of noise; `most` is the largest number of them in memory at once."""

    total, settings = 40, {"kind": "noise"}

    def __init__(self):
        self.alive, self.most = weakref.WeakSet(), 0

    def batches(self, first=0):
        for index in range(self.total):
            values = np.random.default_rng(index).normal(size=(1, 3, 8, 8)).astype(np.float32).view(_Noise)
            self.alive.add(values)
            self.most = max(self.most, len(self.alive))
            yield Batch({"x": values})
            del values


class _Noise(np.ndarray):
    """An array that a weak set takes."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("method", OBSERVERS)
def test_no_more_than_three_batches_are_in_memory(method):
    source = Counted()
    calibrate(Job(network(), source, method))
    assert source.most <= 3


def test_grouping_reads_no_further_than_its_batch():
    read = []

    def items():
        for index in range(7):
            read.append(index)
            yield Batch({"x": np.full((1, 2), index)} if index != 2 else {}, {str(index): "sha"})

    batches = grouped(items(), 3)
    assert next(batches).arrays["x"].tolist() == [[0, 0], [1, 1]]
    assert read == [0, 1, 2]
    assert [(batch.items, batch.samples, list(batch.files)) for batch in batches] == [
        (3, 3, ["3", "4", "5"]),
        (1, 1, ["6"]),
    ]
