"""Files are replaced whole or not at all."""

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from engines.files import is_large, replace_file, write_model
from engines.onnx_model import load_model
from tests.dla.networks import conv, model


def network():
    return model([conv("x", "y", "w")], {"x": (1, 3, 8, 8)}, {"y": None}, {"w": (16, 3, 3, 3)})


def test_a_file_is_replaced_whole_or_left_alone(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda file: file.write(b"first"))

    def fail(file):
        file.write(b"sec")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_a_large_model_lie_beside_it(tmp_path):
    weight = to_array(network().graph.initializer[0])
    for limit_bytes, names in ((4096, ["net.onnx"]), (weight.nbytes - 1, ["net.onnx", "net.onnx.data"])):
        for _ in range(2):  # over an earlier one too
            write_model(network(), tmp_path / "net.onnx", limit_bytes)
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
        assert np.array_equal(to_array(load_model(tmp_path / "net.onnx").graph.initializer[0]), weight)
        onnx.checker.check_model(str(tmp_path / "net.onnx"))
    assert is_large(network(), weight.nbytes - 1) and not is_large(network(), weight.nbytes)
