"""The board contract on the Jetson board: the same tests as on the virtual one."""

import pytest
import tensorrt as trt

from engines.build import build
from engines.cache import EngineCache
from engines.tensorrt.builder import Options, TensorRtBuilder
from tests.board.boards import attached
from tests.contract.networks import network, spec
from tests.contract.test_board import *  # noqa: F403 - the tests themselves

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Engines of the same network, by TensorRT."""
    cache, builder = EngineCache(tmp_path_factory.mktemp("engines"), print), TensorRtBuilder(trt, Options())
    return {device: build(network(), spec(device, 4), cache, "random", builder) for device in ("gpu", "dla")}


@pytest.fixture
def board(tmp_path):
    """The attached board."""
    with attached(tmp_path) as opened:
        yield opened
