"""Finding TensorRT: what is missing or wrong is told apart, each with its own next step."""

import importlib
import types

import pytest

from engines.errors import EngineError
from engines.tensorrt.module import check_dla, has_implicit_int8, load_tensorrt


def fake(**names):
    return types.SimpleNamespace(__version__="10.3.0", __file__="/usr/lib/tensorrt/__init__.py", **names)


def answering(monkeypatch, answer):
    def import_module(name):
        assert name == "tensorrt"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_nvidias_module_is_returned(monkeypatch):
    module = fake(Builder=object, IProgressMonitor=object)
    answering(monkeypatch, module)
    assert load_tensorrt() is module


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            ModuleNotFoundError("No module", name="tensorrt"),
            r"module is missing \(tensorrt\).*apt install python3-libnv",
        ),
        (
            ImportError("libnvinfer.so.10: cannot open shared object file"),
            r"do not load \(libnvinfer.so.10: .*apt inst",
        ),
        (ImportError("libnvdla_compiler.so: cannot open"), r"lacks the DLA's compiler.*nvidia-l4t-dla-compiler"),
        (fake(Builder=object), "TensorRT 10.3.0 is older than 10: flash JetPack 6.1"),
        (fake(), "at /usr/lib/tensorrt/__init__.py is not NVIDIA's: it has no Builder"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_next_step(monkeypatch, answer, expected):
    answering(monkeypatch, answer)
    with pytest.raises(EngineError, match=expected) as caught:
        load_tensorrt()
    assert "\n" not in str(caught.value)


def test_a_server_build_is_told_from_a_jetpack_without_dla():
    check_dla(fake(), 2, ["tensorrt"])  # cores are there, wherever it is from
    with pytest.raises(EngineError, match="package tensorrt-cu12 is a build for servers; pip uninstall tensorrt-cu12 "):
        check_dla(fake(), 0, ["numpy", "tensorrt_cu12", "tensorrt_cu12_bindings"])
    with pytest.raises(EngineError, match="JetPack 7.0 to 7.2.1 has none, 7.2.2 has one again with TensorRT 11.4.1"):
        check_dla(fake(), 0, ["numpy"])


def test_this_machines_packages_are_asked_for():
    with pytest.raises(EngineError, match="sees no DLA core"):
        check_dla(fake(), 0)


def test_int8_is_implicit_where_flag_and_ranges_are():
    tensor, typed = types.SimpleNamespace(set_dynamic_range=None), types.SimpleNamespace()
    flags, none = types.SimpleNamespace(INT8=1), types.SimpleNamespace()
    assert has_implicit_int8(fake(BuilderFlag=flags, ITensor=tensor))
    assert not has_implicit_int8(fake(BuilderFlag=none, ITensor=typed))
