"""Ways in which what is below the toolkit fails, and a machine with a board for it to happen on."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import sys
import types
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import helper

import orin.jetson.board as jetson
from calibration.cache import CalibrationCache
from engines.spec import Ranges
from orin.jetson.detect import Machine
from power.boards import AGX_ORIN_64GB
from power.modes import board_modes
from tests.board.boards import TEGRASTATS
from tests.engines.models import make, value
from tests.orin.commands import command
from tests.orin.machines import machine
from tests.power.fakes import Fakes
from tests.standins import libcuda
from tests.standins.nvinfer import control
from tests.standins.nvinfer.build import Builder

UNKNOWN = 999  # CUDA_ERROR_UNKNOWN
AMAX = {"input": 2.64, "c": 9.0, "r": 9.0, "p": 4.0, "scores": 20.0}


@dataclass
class World:
    """A user's folder, the files of the machine, and what takes changes back."""

    folder: Path
    root: Path
    patch: pytest.MonkeyPatch

    @property
    def engines(self) -> list[Path]:
        """The engines in the user's cache."""
        return sorted((self.folder / "cache/orin-toolkit/engines").glob("*.engine"))


# -- how failures get in ----------------------------------------------------------------------------------------------

Inject = Callable[[World], object]


def slot(name, message="", **how):
    """A slot of TensorRT's logs an error and answers null or false."""
    return lambda world: control.fail(name, message, **how)


def cuda(function, code, after=0):
    """A function of libcuda answers with an error."""
    return lambda world: libcuda.fail(function, code, after)


def dla_cores(count):
    return lambda world: control.dla_cores(count)


def no_core_and_no_compiler(world):
    control.dla_cores(0)
    Machine(world.root).dla_compiler.write_text("")


def taken_off_the_dla(name):
    return lambda world: control.assign({name: False})


def strange_operator(world):
    """The network has an operator that nobody knows."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="first"),
        helper.make_node("Fancy", ["r"], ["y"], name="odd", domain="custom"),
    ]
    model = make(nodes, [value("x", 1, 3, 224, 224)], [value("y", 1, 3, 224, 224)], {})
    model.opset_import.append(helper.make_opsetid("custom", 1))
    onnx.save(model, world.folder / "net.onnx")


def standalone(world):
    """A configuration whose flags do not go together."""
    import tensorrt as trt

    made = Builder.createBuilderConfig

    def createBuilderConfig(self):  # noqa: N802 - the slot's name
        config = made(self)
        config.settings["EngineCapability"] = trt.EngineCapability.DLA_STANDALONE
        return config

    world.patch.setattr(Builder, "createBuilderConfig", createBuilderConfig)
    control.assign({"relu": False})


def forged(change):
    """Engines in the cache are other bytes, whose checksum is right."""

    def inject(world):
        for path in world.engines:
            path.write_bytes(change(path.read_bytes()))
            manifest = json.loads(path.with_suffix(".json").read_text())
            manifest["engine_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            path.with_suffix(".json").write_text(json.dumps(manifest))

    return inject


def misaligned(world):
    """Shared memory lies 64 bytes beside a page."""
    allocate = jetson.JetsonBoard.allocate

    def beside(board, nbytes):
        tensor = allocate(board, nbytes + 64)
        return types.SimpleNamespace(array=tensor.array[64:], address=tensor.address + 64, publish=tensor.publish)

    world.patch.setattr(jetson.JetsonBoard, "allocate", beside)


def disk_full(world):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    world.patch.setattr("engines.cache.write_atomically", full)


def not_a_folder(world):
    (world.folder / "cache").write_text("")


def closed_nodes(module):
    """The devices of the GPU are there and are not this user's."""

    def inject(world):
        class Closed(Machine):
            closed_nodes = (Path("/dev/nvmap"),)

        if module == "orin.jetson.cuda":
            libcuda.fail("cuInit", UNKNOWN)
        world.patch.setattr(f"{module}.Machine", lambda: Closed(world.root, lambda command: None))

    return inject


def module(name, text):
    """A Python module is another one; None: it is missing."""

    def inject(world):
        for loaded in [key for key in sys.modules if key.partition(".")[0] == name]:
            world.patch.delitem(sys.modules, loaded)
        folder = world.folder / "packages" / name
        if text is None:
            world.patch.setattr(sys, "path", [entry for entry in sys.path if "standins" not in entry])
        else:
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(text)
            world.patch.syspath_prepend(folder.parent)

    return inject


def server_build(world):
    control.dla_cores(0)
    world.patch.setattr("engines.tensorrt.module._installed", lambda: ["numpy", "tensorrt-cu12"])


def tegrastats(text):
    """tegrastats is another program; None: there is none."""

    def inject(world):
        program = world.folder / "bin/tegrastats"
        program.unlink()
        if text is not None:
            script(program, text)

    return inject


# -- the machine ------------------------------------------------------------------------------------------------------


def script(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


def calibrate(folder):
    """Write ranges of `tests.orin.classifier`."""
    (folder / "net.cache").write_text(CalibrationCache.from_ranges(Ranges(AMAX, "minmax", 1)).dumps())


def orin(folder, words, quiet=True):
    """Run a command in whose words NET, OUT, ANSWERS and RUNS stand for paths in the user's folder."""
    names = {"NET": "net.onnx", "OUT": "out", "ANSWERS": "answers.jsonl", "RUNS": "runs"}
    made = [str(folder / names[word]) if word in names else word for word in words.split()]
    common = ["--calibration", folder / "net.cache", "--data", folder / "photos", "--board", "jetson"]
    return command([*made, *map(str, common), *["--quiet"] * quiet])


@contextmanager
def at_board(folder, patch):
    """A machine to which a board is attached, as programs find it; in the end nothing of TensorRT and CUDA is left."""
    root = folder / "root"
    machine(root, "agx-orin-64gb")
    programs = Fakes(root, board_modes(AGX_ORIN_64GB).dumps())
    script(folder / "bin/tegrastats", TEGRASTATS)
    patch.setenv("PATH", str(folder / "bin"), prepend=":")
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setattr(jetson, "Machine", lambda: Machine(root, lambda command: None, programs))
    patch.setattr("orin.bench._idle", lambda seconds: None)
    opened = []
    patch.setattr(jetson, "atexit", types.SimpleNamespace(register=opened.append))
    libcuda.reset()
    gc.collect()
    before = control.live(), libcuda.live(), libcuda.live_bytes()
    yield World(folder, root, patch)
    control.reset()
    libcuda.reset()
    gc.collect()
    assert control.live() == before[0]  # with the board still open
    while opened:
        opened.pop()()
    gc.collect()
    assert (libcuda.live(), libcuda.live_bytes(), libcuda.left_behind()) == (*before[1:], 0)
