"""What the README says works: its Python runs, its command lines parse, its table of commands is complete."""

import re
import shlex
from pathlib import Path

import pytest

from orin.cli.main import COMMANDS, _parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def command_lines():
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = [line.split("#")[0].strip().removeprefix(".venv/bin/") for line in text.splitlines()]
    return [line for line in lines if line.startswith("orin ")]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(line):
    words = shlex.split(line)[1:]
    assert _parser(words).parse_args(words).command in COMMANDS


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.M)) == {"demo", "test"} <= set(targets)


def test_every_command_is_in_the_table():
    assert all(f"`orin {name}" in README for name in COMMANDS)


def test_python_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["scores"].size == 1000


def test_wheel_lists_every_package():
    declared = set(re.findall(r'^    "([\w.]+)",$', (ROOT / "setup.py").read_text().split("BASE")[0], re.M))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("orin", "dla", "engines", "calibration", "power")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert declared == found
