"""The splitting client against a server that speaks Triton's protocol on loopback."""

import json
import threading

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("grpc")

from orin.errors import OrinError  # noqa: E402
from orin.export.splitter import Splitter  # noqa: E402
from tests.orin.commands import command  # noqa: E402
from tests.orin.export.server import OUT, SHAPE, SPLIT, Triton, gate, reference, served  # noqa: E402


def samples(count, seed=0):
    """Values that the input's scale 0.5 holds exactly."""
    return np.random.default_rng(seed).integers(-2, 3, (count, *SHAPE)).astype(np.float32) * 0.5


@pytest.fixture
def triton():
    return Triton()


@pytest.fixture
def url(triton):
    with served(triton) as address:
        yield address


@pytest.mark.parametrize("count", [1, 2, 3, 57, 200])
def test_every_sample_is_answered_in_its_place_whoever_took_it(triton, url, count):
    given = samples(count)
    with Splitter(SPLIT, url) as splitter:
        splitter.check()
        (y,) = splitter.infer(given)
    assert y.shape == (count, *OUT) and np.array_equal(y, reference(given))
    assert set(triton.batches["net_dla"]) <= {2} and all(n <= 8 for n in triton.batches["net_gpu"])
    assert splitter.dispatched["gpu"] == len(triton.batches["net_gpu"])
    assert splitter.dispatched["dla0"] + splitter.dispatched["dla1"] == len(triton.batches["net_dla"])


def test_int8_samples_go_as_they_are(url):
    given = samples(9)
    with Splitter(SPLIT, url) as splitter:
        (y,) = splitter.infer((given / 0.5).astype(np.int8))
    assert np.array_equal(y, reference(given))


def test_a_model_that_does_not_answer_leaves_the_rest_to_the_other(triton, url):
    held = gate(triton, "net_dla")
    given = samples(300)
    with Splitter(SPLIT, url) as splitter:
        done = []
        thread = threading.Thread(target=lambda: done.append(splitter.infer(given)))
        thread.start()
        while sum(triton.batches["net_gpu"]) < 300 - 2 * 2 * 2:  # all but what the DLA's lanes hold
            assert thread.is_alive()
        held.set()
        thread.join(30)
    assert np.array_equal(done[0][0], reference(given))
    assert sum(triton.batches["net_gpu"]) == 300 - sum(triton.batches["net_dla"])


def test_no_samples_give_no_outputs(url):
    with Splitter(SPLIT, url) as splitter:
        assert splitter.infer(samples(0)) == []


def test_what_the_server_refuses_is_one_line(url, triton):
    triton.failing = ("net_dla",)
    with Splitter(SPLIT, url) as splitter, pytest.raises(OrinError, match="model net_dla: expected the shape"):
        splitter.infer(samples(64))


def test_a_model_that_is_not_served_and_a_server_that_is_not_there_are_named(url, triton):
    triton.missing = ("net_dla",)
    with Splitter(SPLIT, url) as splitter, pytest.raises(OrinError, match="does not serve net_dla"):
        splitter.check()
    with (
        Splitter(SPLIT, "127.0.0.1:1", timeout_s=5) as splitter,
        pytest.raises(OrinError, match="Triton at 127.0.0.1:1"),
    ):
        splitter.check()


def test_samples_that_do_not_fit_are_refused(url):
    with Splitter(SPLIT, url) as splitter:
        with pytest.raises(OrinError, match=r"shape \[2, 3, 4, 5\], expected \[N,3,4,6\]"):
            splitter.infer(np.zeros((2, 3, 4, 5), np.float32))
        with pytest.raises(OrinError, match="2 arrays are given, the models have 1"):
            splitter.infer(samples(1), samples(1))


def repository(folder):
    import dataclasses

    lanes = [dataclasses.asdict(lane) for lane in SPLIT.lanes]
    models = {name: dataclasses.asdict(ends) for name, ends in SPLIT.models.items()}
    (folder / "split.json").write_text(json.dumps({"version": 1, "lanes": lanes, "models": models}))
    return folder


def test_the_command_answers_a_file(tmp_path, url, capsys):
    np.save(tmp_path / "x.npy", samples(20))
    out = tmp_path / "y.npz"
    words = [
        "export",
        "ask",
        str(repository(tmp_path)),
        "--url",
        url,
        "--data",
        str(tmp_path / "x.npy"),
        "-o",
        str(out),
    ]
    assert command([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["samples"] == 20 and sum(said["requests"].values()) >= 3
    assert np.array_equal(np.load(out)["y"], reference(samples(20)))
    np.savez(tmp_path / "x.npz", other=samples(2))
    words[words.index(str(tmp_path / "x.npy"))] = str(tmp_path / "x.npz")
    assert command(words) == 2
    assert "expected .npy, or .npz with x" in capsys.readouterr().err
