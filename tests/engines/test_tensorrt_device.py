"""Which layers TensorRT is asked about before a DLA engine is built, and models beyond 2 GiB."""

import types
from pathlib import Path

import pytest

from engines.errors import EngineError
from engines.graph import read_graph
from engines.spec import EngineSpec
from engines.tensorrt.device import Placing
from engines.tensorrt.job import Job
from engines.tensorrt.log import BuildLog
from engines.tensorrt.parse import parse

from .models import small

TRT = types.SimpleNamespace(
    LayerType=types.SimpleNamespace(QUANTIZE="Q", DEQUANTIZE="DQ", CONSTANT="C", SHUFFLE="S"),
    DeviceType=types.SimpleNamespace(GPU="gpu"),
    BuilderFlag=types.SimpleNamespace(GPU_FALLBACK="fallback"),
)

KINDS = {"x_Quantize": "Q", "x_Dequantize": "DQ", "conv1": "CONV", "conv1_7": "CONV", "inserted": "S"}


class Config:
    """Takes nothing on the DLA, and notes what is asked of it."""

    def __init__(self, log):
        self.asked, self.flags, self._log = [], [], log

    def can_run_on_DLA(self, layer):
        self.asked.append(layer.name)
        self._log.warnings.append(f"{layer.name} is refused")
        return False

    def set_flag(self, flag):
        self.flags.append(flag)


def test_quantisation_layers_are_scales_and_not_asked_about():
    layers = [types.SimpleNamespace(name=name, type=kind) for name, kind in KINDS.items()]
    network = types.SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    log = types.SimpleNamespace(warnings=["older"])
    config = Config(log)
    job = Job(small(), EngineSpec("net", "dla", 1), read_graph(small()), (), ())
    refused = Placing(TRT, network, config, job).refused(log)
    assert config.asked == ["conv1", "conv1_7", "inserted"]
    assert refused == {"conv1": "conv1 is refused", "conv1_7": "conv1_7 is refused"}  # a second layer of that node
    assert config.flags == ["fallback"]  # what the parser inserts and folds needs the permission


def test_a_model_beyond_what_a_message_holds_is_refused():
    large = types.SimpleNamespace(ByteSize=lambda: 1 << 31)
    with pytest.raises(
        EngineError, match="net has 2147483648 bytes, a model goes to TensorRT's parser in 2 GiB at most"
    ):
        parse(None, large, "net", BuildLog(Path("log")))
