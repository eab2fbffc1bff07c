"""The dependency direction, written down and walked."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orin", "dla", "engines", "calibration", "power")
ALLOWED = {
    "orin": {"dla", "engines", "calibration", "power"},
    "dla": {"engines"},
    "calibration": {"engines"},
    "engines": set(),
    "power": set(),
}
# inside orin, lowest floor first: a module imports only its own floor and those below
FLOORS = (
    ("orin.errors", "orin.soc", "orin.plan", "orin.board", "orin.roofline", "orin.mlperf"),
    ("orin.virtual", "orin.jetson"),
    (
        "orin.boards orin.work orin.samples orin.pipeline orin.scenario orin.loadgen orin.record orin.results "
        "orin.build orin.photos orin.answer orin.bench orin.predict orin.place orin.doctor orin.compare "
        "orin.layer_cost orin.accuracy orin.subject orin.check orin.memory orin.steps orin.tails "
        "orin.watch orin.wall orin.attribution orin.sweep orin.outcome orin.setup orin.flash orin.provision "
        "orin.tune orin.parts orin.published orin.explain orin.volumes"
    ).split(),
    ("orin.report",),
    ("orin.deploy", "orin.selftest", "orin.export", "orin.fleet"),
    ("orin.cli",),
)


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }


def imports(name, path, top_level_only=False):
    """Absolute names that a module imports, relative imports resolved, `TYPE_CHECKING` blocks left out."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes:
        if id(node) in guarded and top_level_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name,path", sorted(modules().items()), ids=sorted(modules()))
def test_packages_import_only_along_the_allowed_edges(name, path):
    own = name.split(".")[0]
    used = {imported.split(".")[0] for imported in imports(name, path)} & set(PACKAGES)
    assert used <= ALLOWED[own] | {own}


def floor(name):
    for level, prefixes in enumerate(FLOORS):
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
            return level
    raise AssertionError(f"{name} stands on no floor: add it to FLOORS")


@pytest.mark.parametrize("name,path", sorted((n, p) for n, p in modules().items() if n.startswith("orin.")))
def test_orin_imports_downwards(name, path):
    known = modules()
    for imported in imports(name, path):
        if imported in known and imported.startswith("orin.") and imported != name:
            assert floor(imported) <= floor(name), f"{name} imports {imported}, which stands above it"


def test_no_import_cycle_between_modules():
    known = modules()
    edges = {n: {i for i in imports(n, p, top_level_only=True) if i in known and i != n} for n, p in known.items()}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_, name])
        if name in done:
            return
        open_.append(name)
        for target in sorted(edges[name]):
            visit(target)
        open_.pop()
        done.add(name)

    for name in known:
        visit(name)
