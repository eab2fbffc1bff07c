"""What the toolkit uses of TensorRT exists in NVIDIA's real bindings, 10.3.0 and 11.4.0, with these signatures.

Uses are collected from the toolkit's own syntax trees: attributes of the module (`trt.BuilderFlag.INT8`), and
attributes of variables that hold objects of TensorRT's, by the names that the toolkit gives them.
"""

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from dla.io import pools_bytes
from engines.spec import TensorFormat
from engines.tensorrt.calibrators import BASES, Calibrator
from engines.tensorrt.log import LETTERS, Logger
from engines.tensorrt.names import DATA_TYPES
from engines.tensorrt.progress import Monitor
from tests.standins import install

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "engines" / "tensorrt").glob("*.py"), *(ROOT / "orin" / "jetson").glob("*.py")])
BINDINGS = {"10.3.0": "python", "11.4.0": "python-11"}

# What variables of these names hold, wherever they stand in the files above.
CLASSES = {
    "builder": "Builder",
    "_builder": "Builder",
    "config": "IBuilderConfig",
    "_config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "layer": "ILayer",
    "tensor": "ITensor",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "inspector": "EngineInspector",
    "timings": "ITimingCache",
    "flag": "BuilderFlag",
    "kinds": "LayerType",
}
CLASSES_BY_FILE = {
    "inspect.py": {"engine": "ICudaEngine", "layer": None},
    "builder.py": {"engine": "ICudaEngine"},
    "parse.py": {"error": "ParserError"},
    "board.py": {"builder": None, "engine": None, "config": None},
    "engine.py": {"context": "IExecutionContext", "_deserialized": "ICudaEngine", "tensor": None},
    "explicit.py": {"tensor": None},
    "volumes.py": {"_context": "IExecutionContext", "deserialized": "ICudaEngine", "tensor": None},
}
# Implicit INT8 is gone in TensorRT 11: the strategy's file, the calibrators, and what their presence is asked for.
IMPLICIT_FILES = ("implicit.py", "calibrators.py")
IMPLICIT_NAMES = ("IBuilderConfig.set_calibration_profile",)

DUMP = r"""
import json, tensorrt as trt
def described(value):
    return getattr(value, "__doc__", None) or ""
api = {}
for name, value in vars(trt).items():
    if isinstance(value, type):
        members = {m: described(getattr(value, m, None)) for m in dir(value) if not m.startswith("__")}
        enum = sorted(getattr(value, "__members__", {}))
        api[name] = {"members": members, "enum": enum, "init": described(value.__init__)}
api["ILogger"]["enum"] = sorted(trt.ILogger.Severity.__members__)
print(json.dumps({"version": trt.__version__, "api": api, "names": sorted(vars(trt))}))
"""


@cache
def bindings(version):
    environment = install.environment(packages=(BINDINGS[version],))
    done = subprocess.run([sys.executable, "-c", DUMP], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"].startswith(version)
    return found


@dataclass(frozen=True)
class Use:
    """An attribute of a class, or of the module where `owner` is ""; `arguments` of a call, None where it is none."""

    owner: str
    name: str
    where: str
    arguments: int | None = None


def is_module(node):
    return (isinstance(node, ast.Name) and node.id == "trt") or (
        isinstance(node, ast.Attribute) and node.attr == "_trt"
    )


def held(node, file):
    """Name of the class that an expression holds, by its variable's name."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return {**CLASSES, **CLASSES_BY_FILE.get(file, {})}.get(name)


def uses_in(path):
    tree = ast.parse(path.read_text())
    arguments = {
        id(node.func): None
        if any(isinstance(a, ast.Starred) for a in node.args)
        else len(node.args) + len(node.keywords)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        where = f"{path.name}:{node.lineno}"
        if is_module(node.value):
            yield Use("", node.attr, where, arguments.get(id(node)))
        elif isinstance(node.value, ast.Attribute) and is_module(node.value.value) and node.value.attr[0].isupper():
            yield Use(node.value.attr, node.attr, where, arguments.get(id(node)))
        elif (owner := held(node.value, path.name)) is not None:
            yield Use(owner, node.attr, where, arguments.get(id(node)))


USES = sorted({use for path in FILES for use in uses_in(path)}, key=lambda use: (use.where, use.owner, use.name))


def is_implicit(use):
    return use.where.split(":")[0] in IMPLICIT_FILES or f"{use.owner}.{use.name}" in IMPLICIT_NAMES


def arities(text, name):
    """Least and most arguments of each overload in a pybind11 doc string, self left out."""
    for line in text.splitlines():
        match = re.match(rf"\s*(?:\d+\. )?{name}\((?P<inside>.*)\) -> ", line)
        if match and not match["inside"].startswith("*args"):
            inside = match["inside"]
            for _ in range(4):  # brackets of types hold commas of their own
                inside = re.sub(r"\[[^\[\]]*\]", "", inside)
            given = [part for part in inside.split(",") if part.strip() and not part.strip().startswith("self")]
            yield sum("=" not in part for part in given), len(given)


def test_the_uses_are_found():
    names = {f"{use.owner}.{use.name}" for use in USES}
    assert len(USES) > 60
    assert names >= {".Builder", "BuilderFlag.INT8", "IBuilderConfig.set_flag", "ITensor.set_dynamic_range"}
    assert names >= {"Builder.build_serialized_network", "OnnxParser.parse", "ParserError.node_operator"}


@pytest.mark.parametrize("version", BINDINGS)
def test_every_name_that_is_used_exists_with_that_many_arguments(version):
    found, wrong = bindings(version), []
    for use in USES:
        if version == "11.4.0" and is_implicit(use):
            continue
        members = dict.fromkeys(found["names"], "") if not use.owner else found["api"][use.owner]["members"]
        if use.name not in members:
            wrong.append(f"{use.where}: {use.owner}.{use.name} is not there")
            continue
        text = found["api"][use.name]["init"] if not use.owner and use.name in found["api"] else members[use.name]
        ways = list(arities(text, use.name if use.owner else "__init__"))
        if use.arguments is not None and ways and not any(low <= use.arguments <= high for low, high in ways):
            wrong.append(f"{use.where}: {use.owner}.{use.name} takes {ways} arguments, not {use.arguments}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("version", BINDINGS)
def test_names_that_are_looked_up_by_value_exist(version):
    api = bindings(version)["api"]
    assert set(DATA_TYPES.values()) <= set(api["DataType"]["enum"])
    assert {entry.value for entry in TensorFormat} <= set(api["TensorFormat"]["enum"])
    assert set(pools_bytes()) <= set(api["MemoryPoolType"]["enum"])
    assert set(LETTERS) == set(api["ILogger"]["enum"])


def test_implicit_int8_is_there_in_10_and_gone_in_11():
    old, new = bindings("10.3.0")["api"], bindings("11.4.0")["api"]
    assert {"INT8", "FP16", "PREFER_PRECISION_CONSTRAINTS"} <= set(old["BuilderFlag"]["enum"])
    assert not {"INT8", "FP16"} & set(new["BuilderFlag"]["enum"])
    assert "set_dynamic_range" in old["ITensor"]["members"] and "set_dynamic_range" not in new["ITensor"]["members"]
    assert all(base in old and base not in new for base in BASES.values())


@pytest.mark.parametrize("version", BINDINGS)
@pytest.mark.parametrize(
    ("base", "ours"),
    [("ILogger", Logger), ("IProgressMonitor", Monitor), *((base, Calibrator) for base in BASES.values())],
)
def test_what_tensorrt_calls_back_is_overridden_with_its_own_signature(version, base, ours):
    api = bindings(version)["api"]
    if base in BASES.values() and version == "11.4.0":
        assert base not in api
        return
    methods = {name: text for name, text in api[base]["members"].items() if list(arities(text, name))}
    mine = {name: method for name, method in vars(ours).items() if name in methods}
    assert mine.keys() == methods.keys() - {"get_algorithm"}  # which the base answers
    for name, method in mine.items():
        assert (method.__code__.co_argcount - 1,) * 2 in arities(methods[name], name), name
