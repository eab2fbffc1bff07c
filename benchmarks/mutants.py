"""Changes a module in one place, and tells whether the tests that reach that place notice.

    python benchmarks/mutants.py FILE INDEX PYTEST-ARGUMENTS

runs pytest with one mutant of a file of the repository in the place of that module; nothing on disk is changed.
"""

from __future__ import annotations

import ast
import copy
import faulthandler
import importlib.abc
import importlib.machinery
import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parents[1]
COMPARISONS = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
HANGS_AFTER_S = 90.0  # the slowest test takes a tenth of it
KINDS = ("comparison", "arithmetic", "boolean", "constant", "return", "argument")


@dataclass(frozen=True)
class Mutant:
    """One change: which of a file's changes it is, where, of what kind, and what it makes of the code there."""

    file: str
    index: int
    line: int
    kind: str
    change: str


def mutants_of(file: Path) -> list[Mutant]:
    """Return every mutant of a file, in the order of its text."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    name = file.resolve().relative_to(ROOT).as_posix()
    found = []
    for index, (node, kind, changed) in enumerate(_changes(tree)):
        change = f"{ast.unparse(node)} -> {ast.unparse(changed)}"
        found.append(Mutant(name, index, node.lineno, kind, change))
    return found


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return `count` of the mutants, as many of each kind as there are; the same ones for a seed."""
    shuffled = random.Random(seed).sample(mutants, len(mutants))
    by_kind = [[mutant for mutant in shuffled if mutant.kind == kind] for kind in KINDS]
    taken = [mutant for turn in zip_longest(*by_kind) for mutant in turn if mutant is not None]
    return sorted(taken[:count], key=lambda mutant: (mutant.file, mutant.index))


def mutated(text: str, index: int) -> ast.Module:
    """Return a file's code with one change."""
    tree = ast.parse(text)
    node, _, changed = list(_changes(tree))[index]
    return ast.fix_missing_locations(_Replace(node, ast.copy_location(changed, node)).visit(tree))


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


Change = tuple[ast.expr, str, ast.expr]


def _changes(tree: ast.Module) -> Iterator[Change]:
    """Yield what can be changed inside functions: the node, the kind of change and what takes its place."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for statement in function.body:
            yield from _inside(statement)


def _inside(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.JoinedStr)):  # functions come by themselves; messages not
        return
    if isinstance(node, ast.expr):
        yield from ((node, kind, changed) for kind, changed in _of(node))
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns") or (name == "exc" and isinstance(node, ast.Raise)):
            continue
        for child in field if isinstance(field, list) else [field]:
            if _decides(node, name) and isinstance(child, (ast.Name, ast.Attribute, ast.Call)):
                yield child, "boolean", ast.UnaryOp(ast.Not(), child)
            if isinstance(node, ast.Return) and isinstance(child, ast.expr) and not isinstance(child, ast.Constant):
                yield child, "return", ast.Constant(None)
            if isinstance(child, ast.AST):
                yield from _inside(child)


def _decides(node: ast.AST, field: str) -> bool:
    return isinstance(node, (ast.If, ast.While, ast.IfExp)) and field == "test"


def _of(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield the kinds of change that a single expression allows, and what it becomes."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
        yield "comparison", ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text(node):
        yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield ("boolean" if isinstance(node.op, ast.Not) else "arithmetic"), node.operand
    elif isinstance(node, ast.Constant) and (value := _other(node.value)) is not None:
        yield "constant", ast.Constant(value)
    elif isinstance(node, ast.Call):
        for position in range(len(node.args)):
            if not isinstance(node.args[position], (ast.Starred, ast.Constant, ast.JoinedStr)):
                changed = copy.copy(node)
                changed.args = [*node.args[:position], ast.Constant(None), *node.args[position + 1 :]]
                yield "argument", changed


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )


def _other(value: object) -> object:
    """Return another value of a constant's kind; None where there is none: text of several words is for people."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return f"XX{value}" if isinstance(value, str) and " " not in value else None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as its mutant."""

    def __init__(self, mutant: str, index: int) -> None:
        self._name = mutant.removesuffix(".py").replace("/", ".")
        self._path, self._index = ROOT / mutant, index

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        loader = _Loader(name, str(self._path))
        loader.index = self._index
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    index = 0

    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.path)
        return compile(mutated(path.read_text(encoding="utf-8"), self.index), str(path), "exec", dont_inherit=True)


class _Watch:
    """A pytest plugin that ends the process when a single test hangs."""

    def pytest_runtest_logstart(self) -> None:
        faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)


def is_killed(mutant: Mutant, tests: Sequence[str], environment: dict[str, str]) -> bool:
    """Run tests until one fails; a crash and a test that hangs are failures too, a run that is merely slow is not."""
    quiet = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    words = [sys.executable, __file__, mutant.file, str(mutant.index), *quiet, *tests]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True).returncode != 0


def main(words: list[str]) -> int:
    """Run pytest on one mutant."""
    import pytest

    file, index, *options = words
    sys.meta_path.insert(0, _Finder(file, int(index)))
    sys.path.insert(0, str(ROOT))
    return int(pytest.main(options, plugins=[_Watch()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
