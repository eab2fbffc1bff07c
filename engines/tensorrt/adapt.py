"""Objects that TensorRT calls back: their base classes exist only inside the imported module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def adapt(base: Any, answer: object) -> Any:
    """Return an instance of TensorRT's `base` whose methods are the public ones of `answer`."""

    def __init__(self: Any) -> None:
        base.__init__(self)  # pybind11 wants the base's own, not super()'s
        self.answer = answer

    methods = {name: _forward(name) for name in vars(type(answer)) if not name.startswith("_")}
    return type(type(answer).__name__, (base,), {**methods, "__init__": __init__})()


def _forward(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        return getattr(self.answer, name)(*arguments)

    return method
