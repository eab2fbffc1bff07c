"""Inventory, lease and library: what is read, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.preprocess import PREPROCESS
from orin.errors import OrinError
from orin.fleet.inventory import Offer, fitting, label, load_inventory, needs
from orin.fleet.lease import Lease, lock_path
from orin.fleet.library import Library, read_spans
from orin.plan import Plan

FLEET = """
host: 10.0.0.1
port: 0
silence_s: 30
tls: {ca: ca.pem, cert: c.pem, key: k.pem}
boards:
  orin01: {host: nvidia@orin01}
  desk: {host: local, board: "virtual:agx-orin-64gb", output: /tmp/x}
  plain:
"""


def inventory(tmp_path, text):
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    return load_inventory(path)


def test_an_inventory_is_read(tmp_path):
    made = inventory(tmp_path, FLEET)
    assert [(m.name, m.host, m.board) for m in made.members] == [
        ("orin01", "nvidia@orin01", "jetson"),
        ("desk", "local", "virtual:agx-orin-64gb"),
        ("plain", "local", "jetson"),
    ]
    assert made.tls.ca == "ca.pem" and made.silence_s == 30 and made.state == tmp_path / "lab.fleet"
    assert made.member("desk").output == "/tmp/x"


@pytest.mark.parametrize(
    "text,reason",
    [
        ("- a", "names no boards"),
        ("boards: {}", "names no boards"),
        ("boards: {a: {hosts: b}}", "board a has unknown field 'hosts'"),
        ("boards: {a: 3}", "board a"),
        ("boards: {'a b': {}}", "board name 'a b'"),
        ("boards: {a: {host: -oProxyCommand=x}}", "host of a is '-oProxyCommand=x'"),
        ("boards: {a: {}}\nport: 70000", "port is 70000"),
        ("boards: {a: {}}\nsilence_s: 0", "silence_s is 0"),
        ("boards: {a: {}}\ntls: {ca: x}", "tls"),
        ("boards: {a: {}", "is not YAML"),
    ],
)
def test_what_is_wrong_with_an_inventory_is_said(tmp_path, text, reason):
    with pytest.raises(OrinError, match=reason):
        inventory(tmp_path, text)
    with pytest.raises(OrinError, match="cannot be read"):
        load_inventory(tmp_path / "none.yaml")


def test_labels_are_checked_before_anything_is_asked():
    offers = {
        "a": Offer({"GPU": 1, "DLA": 1}, {}, "measured"),
        "b": Offer({"GPU": 1, "DLA": 2, "JP_6_2": 1}, {}, "measured"),
    }
    assert needs(Plan(gpu_batch=0)) == {"DLA": 2} and needs(Plan(dla_cores=0)) == {"GPU": 1}
    assert fitting(offers, {"GPU": 1}) == ["a", "b"] and fitting(offers, {"DLA": 2}) == ["b"]
    with pytest.raises(OrinError, match="no board of the fleet offers GPU=1 JP_7=1; there are a: GPU=1 DLA=1"):
        fitting(offers, {"GPU": 1, "JP_7": 1})
    assert label("L4T 36.4.4 (JetPack 6.2.1)") == "L4T_36_4_4_JETPACK_6_2_1"


def test_boards_with_the_same_facts_are_alike_whatever_their_order():
    a, b = Offer({}, {"soc": "x", "jetpack": "6"}, "measured"), Offer({}, {"jetpack": "6", "soc": "x"}, "measured")
    assert a.fingerprint == b.fingerprint != Offer({}, {"soc": "x", "jetpack": "7"}, "measured").fingerprint


def test_a_lease_is_exclusive_names_its_holder_and_ends_with_it(tmp_path):
    path = lock_path("virtual:x", "desk", tmp_path)
    with Lease(path):
        with pytest.raises(OrinError, match=f"leased .* by .*{os.getpid()}"), Lease(path):
            pass
    code = "import os\nfrom pathlib import Path\nfrom orin.fleet.lease import Lease\n"
    code += f"Lease(Path({str(path)!r})).__enter__()\nos.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], timeout=60)
    assert done.returncode == -9
    with Lease(path):
        pass


def test_a_jetson_has_one_lease_whatever_its_name(tmp_path):
    assert lock_path("jetson", "a", tmp_path) == lock_path("jetson", "b", tmp_path) == tmp_path / "orin-board.lock"
    assert lock_path("virtual:x", "a", tmp_path) != lock_path("virtual:x", "b", tmp_path)


@pytest.fixture
def arrays(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    for name, begin, count in (("a", 0, 3), ("b", 3, 1), ("deep/c", 4, 5), ("deep/d", 9, 0)):
        rows = np.arange(begin, begin + count, dtype=np.int8).reshape(-1, 1, 1, 1) * np.ones((1, 3, 2, 2), np.int8)
        np.save(folder / f"{name}.npy", rows)
    return folder


@pytest.mark.parametrize("begin,end", [(0, 9), (0, 1), (2, 5), (8, 9), (3, 4), (4, 4)])
def test_any_piece_of_a_folder_is_read_in_order(arrays, begin, end):
    library = Library(arrays)
    assert library.total == 9
    spans = library.spans(begin, end)
    read = list(read_spans(arrays, library.kind, spans, PREPROCESS["digits"]))
    assert [int(sample.values.max()) for sample in read] == list(range(begin, end))
    assert [sample.index for sample in read if sample.file == "deep/c.npy"] == [
        n - 4 for n in range(max(begin, 4), end)
    ]


def test_a_folder_that_has_changed_is_another_library(arrays):
    before = Library(arrays).digest
    assert Library(arrays).digest == before
    np.save(arrays / "b.npy", np.zeros((2, 3, 2, 2), np.int8))
    assert Library(arrays).digest != before


def test_folders_that_hold_no_samples_are_refused(arrays, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, reason in ((tmp_path / "empty", "holds no .npy"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(OrinError, match=reason):
            Library(folder)
    (arrays / "x.jpg").touch()
    with pytest.raises(OrinError, match="both"):
        Library(arrays)
    (arrays / "x.jpg").unlink()
    (arrays / "e.npy").write_bytes(b"broken")
    with pytest.raises(OrinError, match="e.npy cannot be read"):
        Library(arrays)
    np.save(arrays / "e.npy", np.zeros(3))
    with pytest.raises(OrinError, match=r"shape \[3\]"):
        Library(arrays)
