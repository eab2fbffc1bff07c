"""What is inside a built engine: its layers as TensorRT's inspector lists them, its inputs and outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from engines.engine import Binding
from engines.errors import EngineError
from engines.tensorrt.names import DATA_TYPES

FOREIGN = "{ForeignNode["
# What the DLA's runtime adds around a loadable. "X to nvm" and "X from nvm" move a tensor to and from the DLA's format
# on the GPU; the others are marks. Source: per-layer profiles of DLA engines, TensorRT 8.4 to 10.3 on Jetson.
MARK = " copy finish"
MOVES = (" to nvm", " from nvm")


@dataclass(frozen=True)
class PlanLayer:
    """A layer of a built engine: `kind` is the inspector's LayerType, "" where it gives names alone."""

    name: str
    kind: str = ""

    @property
    def runs_on_dla(self) -> bool:
        """Whether this is a loadable; TensorRT gives the GPU's Myelin regions a name of the same form."""
        return "dla" in self.kind.lower() or (self.name.startswith(FOREIGN) and self.kind in ("", "ForeignNode"))

    @property
    def costs_nothing(self) -> bool:
        """Whether nothing runs: a view of a tensor, or a mark."""
        return self.kind == "NoOp" or self.name.endswith(MARK)

    @property
    def reformats(self) -> bool:
        """Whether this copies a tensor into another memory layout."""
        return self.kind.lower().startswith("reformat") or self.name.endswith(MOVES) or "Reformatting" in self.name


def parse_layers(text: str) -> tuple[PlanLayer, ...]:
    """Read the inspector's JSON: objects with Name and LayerType, or names alone; EngineError where it is neither."""
    try:
        entries = json.loads(text)["Layers"]
        return tuple(
            PlanLayer(e) if isinstance(e, str) else PlanLayer(e["Name"], e.get("LayerType", "")) for e in entries
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        seen = " ".join(text.split())[:80]
        raise EngineError(f"TensorRT's inspector says {seen!r}, expected JSON with the engine's Layers") from None


def layers_of(trt: Any, engine: Any) -> tuple[PlanLayer, ...]:
    """Return the layers of a deserialized engine."""
    inspector = engine.create_engine_inspector()
    if inspector is None:
        raise EngineError("TensorRT gives no inspector for the engine it has built; build with --verbose-log")
    return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def gpu_layers(layers: tuple[PlanLayer, ...]) -> tuple[str, ...]:
    """Return the names of what a DLA engine runs on the GPU, reformats included."""
    return tuple(layer.name for layer in layers if not layer.runs_on_dla and not layer.costs_nothing)


def check_ends(trt: Any, engine: Any, bindings: tuple[Binding, ...], name: str) -> None:
    """Refuse an engine whose inputs or outputs are not what was asked for: the pipeline binds memory to them."""
    known = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if known != {binding.name for binding in bindings}:
        raise EngineError(f"{name}: the engine has the tensors {sorted(known)}, its network other ones; build it again")
    for binding in bindings:
        dtype, layout = engine.get_tensor_dtype(binding.name), engine.get_tensor_format(binding.name)
        wanted = getattr(trt.DataType, DATA_TYPES[binding.dtype]), getattr(trt.TensorFormat, binding.format)
        if (dtype, layout) != wanted:
            raise EngineError(
                f"{name}: the engine's tensor {binding.name!r} is {dtype.name} {layout.name}, asked for was "
                f"{wanted[0].name} {wanted[1].name}; choose another format in the plan"
            )
