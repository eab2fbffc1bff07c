"""The engine that ends a provisioning, built through NVIDIA's own bindings."""

import pytest

from orin.provision.first_engine import first_engine, main
from tests.standins.nvinfer import control

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")


def test_one_convolution_is_built_for_the_dla_alone(tmp_path):
    said = first_engine(tmp_path)
    assert said.startswith("one convolution on the DLA alone, ") and "by tensorrt 10.3.0 implicit" in said
    assert len(list(tmp_path.glob("**/*.engine"))) == 1


def test_a_board_that_cannot_says_why_in_one_line(capsys):
    control.dla_cores(0)
    assert main() == 1
    said = capsys.readouterr().out
    assert said.startswith("Error: TensorRT 10.3.0 at ") and "sees no DLA core" in said and said.count("\n") == 1
