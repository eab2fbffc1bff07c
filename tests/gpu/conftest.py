"""Tests on an NVIDIA GPU, of whatever kind: skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest

from orin.errors import OrinError
from orin.jetson.cuda import CudaContext, device_facts
from tests.board.conftest import is_active
from tests.gpu.kernels import Kernels


def no_gpu():
    """Why these tests cannot run; None where they can."""
    if is_active():
        return "libcuda is the stand-in, which runs no kernels"
    try:
        device_facts()
    except OrinError as reason:
        return str(reason)
    return None


@pytest.fixture(scope="session", autouse=True)
def gpu():
    reason = no_gpu()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def cuda(gpu):
    with CudaContext() as context:
        yield context


@pytest.fixture
def kernels(cuda):
    made = Kernels(cuda)
    yield made
    made.close()
