"""Answers libnvinfer from here on, and lets tests inject failures. A test instrument, not a product."""

from __future__ import annotations

from typing import Any, cast

from tests.standins.nvinfer import bridge, plugins
from tests.standins.nvinfer.bridge import FAILURES, OBJECTS, Failure, errors, live
from tests.standins.nvinfer.build import Builder
from tests.standins.nvinfer.network import NetworkDefinition
from tests.standins.nvinfer.parser import Parser
from tests.standins.nvinfer.placements import PLACEMENTS, recorded_assignments
from tests.standins.nvinfer.plan import of_another_version
from tests.standins.nvinfer.runtime import Runtime

__all__ = [
    "assign",
    "dla_cores",
    "errors",
    "fail",
    "live",
    "of_another_version",
    "recorded_assignments",
    "release",
    "reset",
]

VERSION = 100300
PARSER_VERSION = 100  # NV_ONNX_PARSER_VERSION as the bindings of 10.3.0 pass it


def fail(slot: str, message: str = "", answer: Any = 0, after: int = 0, times: int = 1) -> None:
    """Let a slot fail: "Builder.buildSerializedNetwork", or "create.Builder" for a null builder.

    After `after` good calls it logs `message` as an error and answers `answer`, `times` times (-1: for good).
    """
    FAILURES[slot] = Failure(message, answer, after, times)


def assign(taken_by_layer: dict[str, bool]) -> None:
    """Say which layers the DLA takes, by name, against the project's own rules."""
    PLACEMENTS.assigned.update(taken_by_layer)


def dla_cores(count: int) -> None:
    """Say how many DLA cores there are."""
    PLACEMENTS.dla_cores = count


def release(version: str) -> None:
    """Say by which release's rules the DLA takes layers: from "11.4" on strongly typed networks too."""
    PLACEMENTS.release = version


def reset() -> None:
    """Forget failures, assignments, registered plugins and errors; two DLA cores."""
    FAILURES.clear()
    plugins.forget()
    PLACEMENTS.reset()
    bridge._errors.clear()


def _checked(make: Any, logger: int, version: int, expected: int = VERSION) -> Any:
    if version != expected:
        bridge.log(logger, 1, f"version {version} of the bindings is not {expected}, that of this library")
        return None
    return make()


bridge.FACTORIES.update(
    {
        "Builder": lambda logger, version: _checked(lambda: Builder(logger), logger, version),
        "Runtime": lambda logger, version: _checked(lambda: Runtime(logger), logger, version),
        "Parser": lambda network, logger, version: _checked(
            lambda: Parser(cast(NetworkDefinition, OBJECTS[network]), logger), logger, version, PARSER_VERSION
        ),
        "PluginRegistry": plugins.registry,
        "Plugins": plugins.register,
    }
)
bridge.connect()
