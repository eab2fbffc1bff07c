"""Tests of the board's real path, on stand-ins for the libraries below it: `make test-board`."""

from __future__ import annotations

import gc
import sys

import pytest

from tests.standins import install

HINT = "the stand-ins are not on the path: run `make test-board`"


def is_active() -> bool:
    """Whether this run is one of the board's: other tests see a machine without TensorRT and CUDA."""
    return install.is_installed() and str(install.FOLDER / "python") in sys.path


class Left(pytest.Module):
    """A module whose tests need the stand-ins, where there are none."""

    def collect(self):
        pytest.skip(HINT)


if is_active():
    install.activate()

    @pytest.fixture(autouse=True)
    def tensorrt_as_new():
        """Take injected failures and assignments back; no test may meet a slot that the stand-in does not answer."""
        from tests.standins.nvinfer import control

        control.reset()
        yield
        unanswered = control.errors()
        control.reset()
        assert unanswered == []

    @pytest.fixture
    def cuda_context():
        """The primary CUDA context, current on this thread."""
        import pycuda.driver as cuda

        cuda.init()
        held = cuda.Device(0).retain_primary_context()
        held.push()
        yield held
        gc.collect()
        held.pop()
        held.detach()

    @pytest.fixture
    def nothing_left(cuda_context):
        """A test leaves no object of TensorRT behind."""
        from tests.standins.nvinfer import control

        gc.collect()
        before = control.live()
        yield
        gc.collect()
        assert all(count <= before.get(kind, 0) for kind, count in control.live().items()), control.live()

else:

    def pytest_pycollect_makemodule(module_path, parent):
        return Left.from_parent(parent, path=module_path)
