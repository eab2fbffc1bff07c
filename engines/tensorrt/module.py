"""Finding the imported TensorRT, and telling apart what is wrong with it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from engines.errors import EngineError

APT = "sudo apt install python3-libnvinfer, and make virtual environments with --system-site-packages"
DLA_COMPILER = "libnvdla_compiler.so"
PIP_PACKAGES = ("tensorrt", *(f"tensorrt-cu{cuda}{part}" for cuda in (11, 12, 13) for part in ("", "-bindings")))


def load_tensorrt() -> Any:
    """Return NVIDIA's module `tensorrt`; EngineError says in one line what is missing."""
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise EngineError(f"TensorRT's Python module is missing ({error.name}): on a Jetson, {APT}") from None
    except (ImportError, OSError) as error:
        raise EngineError(_not_loaded(" ".join(str(error).split()))) from None
    if not hasattr(trt, "Builder"):
        where = _where(trt)
        raise EngineError(f"module 'tensorrt' at {where} is not NVIDIA's: it has no Builder; remove it, then {APT}")
    if not hasattr(trt, "IProgressMonitor"):
        raise EngineError(f"TensorRT {trt.__version__} is older than 10: flash JetPack 6.1 or later (TensorRT 10.3)")
    return trt


def _not_loaded(reason: str) -> str:
    if DLA_COMPILER in reason:
        return f"TensorRT lacks the DLA's compiler ({reason}): sudo apt install nvidia-l4t-dla-compiler"
    return f"TensorRT's libraries do not load ({reason}): {APT}"


def register_plugins(trt: Any) -> None:
    """Make the plugins that TensorRT ships known to its parser and runtime, which find none before."""
    if not trt.init_libnvinfer_plugins(None, ""):
        raise EngineError(f"TensorRT's plugins (libnvinfer_plugin) are not registered: install TensorRT again; {APT}")


def has_implicit_int8(trt: Any) -> bool:
    """Whether this TensorRT takes INT8 as a flag and dynamic ranges (up to 10.x), not as Q/DQ in typed networks."""
    return hasattr(trt.BuilderFlag, "INT8") and hasattr(trt.ITensor, "set_dynamic_range")


def check_dla(trt: Any, cores: int, installed: Iterable[str] | None = None) -> None:
    """Refuse a TensorRT that sees no DLA core; `installed` names this interpreter's packages (None: asked for)."""
    if cores > 0:
        return
    names = {name.lower().replace("_", "-") for name in (_installed() if installed is None else installed)}
    wrong = [name for name in PIP_PACKAGES if name in names]
    seen = f"TensorRT {trt.__version__} at {_where(trt)} sees no DLA core"
    if wrong:
        gone = f"pip uninstall {' '.join(wrong)}"
        raise EngineError(f"{seen}: package {wrong[0]} is a build for servers; {gone}, then {APT}")
    raise EngineError(
        f"{seen}: JetPack 6 has a DLA with TensorRT 10.3, JetPack 7.0 to 7.2.1 has none, 7.2.2 has one again with "
        f"TensorRT 11.4.1 (AGX Orin); change JetPack, or set dla_cores to 0"
    )


def _installed() -> list[str]:
    return [str(found.metadata["Name"]) for found in metadata.distributions()]


def _where(trt: Any) -> str:
    return str(getattr(trt, "__file__", None) or "an unknown place")
