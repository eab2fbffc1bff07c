"""`orin build` for a Jetson: from a network to checked engines on the board, through the real bindings."""

import argparse
import json

import cv2
import numpy as np
import onnx
import pytest

from engines.engine import Manifest
from orin.cli import build as command
from orin.jetson.board import JetsonBoard
from orin.jetson.detect import Machine
from orin.soc import AGX_ORIN_64GB_SOC
from tests.dla.networks import conv, model, node

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    photo = np.random.default_rng(0).integers(0, 256, (230, 240, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), photo)
    nodes = [conv("x", "a", "w"), node("Relu", "a", "b"), conv("b", "y", "v")]
    onnx.save(
        model(nodes, {"x": (1, 3, 224, 224)}, {"y": None}, {"w": (4, 3, 1, 1), "v": (2, 4, 1, 1)}),
        tmp_path / "net.onnx",
    )
    board = JetsonBoard(AGX_ORIN_64GB_SOC, Machine(tmp_path))
    monkeypatch.setattr("orin.boards.open_board", lambda *_: board)
    yield tmp_path
    board.close()


def test_engines_are_built_checked_and_written_with_their_logs(place, capsys):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    words = (place / "net.onnx", "--data", place / "photos", "-o", place / "out", "--board", "jetson", "--verbose-log")
    assert command.handle(parser.parse_args([*map(str, words), "--gpu-batch", "3", "--json"])) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)["engines"]
    assert said["gpu"]["builder"].startswith("tensorrt 10.3.0 implicit")
    assert said["gpu"]["inputs"] == {"x": "int8 CHW4"} and said["gpu"]["outputs"] == {"y": "float32 LINEAR"}
    assert said["dla"]["inputs"] == {"x": "int8 DLA_HWC4"} and said["dla"]["outputs"] == {"y": "int8 DLA_LINEAR"}
    assert said["dla"]["gpu_layers"] == []
    assert said["gpu"]["sqnr_db"] == {"y": "equal"}  # the stand-in computes with ONNX Runtime too
    assert said["dla"]["sqnr_db"]["y"] > 25  # its output is rounded to INT8
    assert "do not trust" not in printed.err
    names = {path.name for path in (place / "out").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("gpu", "dla") for kind in ("engine", "json", "log")} | {"plan.yaml"}
    manifest = Manifest.loads((place / "out" / "dla.json").read_text())
    assert manifest.spec.pools_bytes["DLA_MANAGED_SRAM"] == 1 << 20
    assert "[TRT]" in (place / "out" / "dla.log").read_text()
    assert (place / "cache" / "orin-toolkit" / "engines" / "timing.cache").is_file()
