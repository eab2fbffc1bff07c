"""Which machine this is, on recorded device trees; and why a board is not there."""

from dataclasses import replace

import pytest

from orin.boards import board_name, open_board
from orin.errors import OrinError
from orin.jetson.detect import (
    JETPACK_BY_L4T,
    MODULES,
    Machine,
    attached_soc,
    dla_trouble,
    has_dla,
    jetpack,
    release_has_dla,
)
from orin.soc import AGX_ORIN_64GB_SOC
from power.boards import AGX_ORIN_64GB
from tests.orin.machines import jetson, machine


def silent(command):
    return None


def recorded(root, name):
    return Machine(machine(root, name), silent)


def test_an_agx_orin_is_driven(tmp_path):
    here = recorded(tmp_path, "agx-orin-64gb")
    assert here.jetson and here.number == "p3701-0005" and here.l4t == "36.4.4"
    assert attached_soc(here).name == "agx-orin-64gb"
    assert dla_trouble(here) is None


def known(name):
    return replace(AGX_ORIN_64GB_SOC, board=replace(AGX_ORIN_64GB, name=name))


@pytest.mark.parametrize(
    "recorded_as,conf,name",
    [
        ("agx-orin-32gb", "", "agx-orin-32gb"),
        ("orin-nx-jetpack-7.2", "", "orin-nx-16gb"),
        ("orin-nx-jetpack-7.2", "< POWER_MODEL ID=0 NAME=MAXN_SUPER >", "orin-nx-16gb-super"),
        ("agx-orin-32gb", "< POWER_MODEL ID=0 NAME=MAXN_SUPER >", "agx-orin-32gb"),
    ],
)
def test_a_module_is_driven_where_its_facts_are_known(tmp_path, monkeypatch, recorded_as, conf, name):
    names = ("agx-orin-32gb", "orin-nx-16gb", "orin-nx-16gb-super")
    monkeypatch.setattr("orin.jetson.detect.SOCS", {name: known(name) for name in names})
    here = recorded(tmp_path, recorded_as)
    (tmp_path / "etc/nvpmodel.conf").write_text(conf)
    assert attached_soc(here).name == name
    monkeypatch.setattr("orin.jetson.detect.SOCS", {})
    with pytest.raises(OrinError, match="is not driven by this version"):
        attached_soc(here)


@pytest.mark.parametrize(
    "name,said",
    [
        ("agx-xavier", "module p2888-0004 (Jetson AGX Xavier) is not driven"),
        ("agx-thor", "module p3834-0008 (Jetson AGX Thor) is not driven"),
        ("pc", "this machine is no Jetson"),
    ],
)
def test_other_machines_are_refused_by_name_and_sent_to_the_virtual_board(tmp_path, name, said):
    with pytest.raises(OrinError) as refused:
        attached_soc(recorded(tmp_path, name))
    assert said in str(refused.value) and "--board virtual:agx-orin-64gb" in str(refused.value)


def test_a_module_that_no_table_has(tmp_path):
    here = Machine(jetson(tmp_path, module="p9999-0001"), silent)
    assert here.module is None
    with pytest.raises(OrinError, match="module p9999-0001 is not driven"):
        attached_soc(here)


def test_no_right_to_open_the_gpu(tmp_path, monkeypatch):
    here = recorded(tmp_path, "agx-orin-64gb")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvmap").write_text("")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OrinError, match="no right to open .*nvmap: sudo usermod -aG video,render"):
        attached_soc(here)


def test_each_reason_for_a_missing_dla_has_its_own_line(tmp_path):
    here = recorded(tmp_path, "agx-orin-64gb")
    compiler = here.dla_compiler
    compiler.write_text("")
    assert "is an empty file: sudo apt install --reinstall nvidia-l4t-dla-compiler" in dla_trouble(here)
    compiler.unlink()
    assert "libnvdla_compiler.so is missing" in dla_trouble(here)
    for device in here.dla_devices:
        (device / "driver").rmdir()
        device.rmdir()
    assert "the kernel shows no DLA device" in dla_trouble(here)


def test_a_release_without_dla_software_is_named_before_its_devices(tmp_path):
    assert dla_trouble(recorded(tmp_path, "orin-nx-jetpack-7.2")).startswith("L4T 39.2.0 (JetPack 7.2) has no DLA")


def test_a_module_without_dla_is_told_so(tmp_path):
    assert dla_trouble(recorded(tmp_path, "agx-thor")) == "Jetson AGX Thor has no DLA: set dla_cores to 0"


@pytest.mark.parametrize(
    "release,package,text",
    [
        ("R35 (release), REVISION: 4.1", None, "L4T 35.4.1 (JetPack 5.1.2)"),
        ("R36 (release), REVISION: 9.9", None, "L4T 36.9.9 (JetPack unknown)"),
        ("", "36.4.0-20240912212859", "L4T 36.4.0 (JetPack 6.1)"),
        ("", None, "L4T unknown (JetPack unknown)"),
    ],
)
def test_l4t_and_jetpack(tmp_path, release, package, text):
    asked = []

    def run(command):
        asked.append((command[0], command[-1]))
        return package

    assert jetpack(Machine(jetson(tmp_path, release=release), run).l4t) == text
    assert asked == ([] if release else [("dpkg-query", "nvidia-l4t-core")])


def test_every_release_of_the_table_is_three_numbers():
    assert all(len(l4t.split(".")) == 3 and jetpack(l4t).endswith(f"{known})") for l4t, known in JETPACK_BY_L4T.items())


@pytest.mark.parametrize(
    "version,dla",
    [("8.5.2.2", True), ("10.3.0", True), ("10.7.0", True), ("10.8.0", False), ("10.16.2.10", False)]
    + [("11.3.0", False), ("11.4.0.106", False), ("11.4.1", True), ("12.0.0", True)],
)
def test_which_tensorrt_has_a_dla(version, dla):
    assert has_dla(version) is dla


@pytest.mark.parametrize(
    "l4t,dla",
    [("35.4.1", True), ("36.5.2", True), ("38.2.0", False), ("39.2.1", False), ("39.2.2", True), (None, None)],
)
def test_which_release_has_a_dla(l4t, dla):
    assert release_has_dla(l4t) is dla


def test_the_table_of_modules_has_the_dlas_of_the_data_sheets():
    cores = {number: module.dla_cores for number, module in MODULES.items()}
    assert (cores["p3701-0000"], cores["p3767-0001"], cores["p3767-0003"], cores["p3834"]) == (2, 1, 0, 0)


def test_which_board_is_used_without_asking(tmp_path):
    said = []
    assert board_name(None, said.append, machine(tmp_path / "orin", "agx-orin-64gb")) == "jetson" and not said
    assert board_name(None, said.append, machine(tmp_path / "pc", "pc")) == "virtual:agx-orin-64gb"
    assert "SIMULATED" in said[0]
    assert board_name("virtual:x", said.append) == "virtual:x"


@pytest.mark.parametrize("name", ["virtual:", "orin", "virtual"])
def test_a_board_that_no_one_knows(name):
    with pytest.raises(OrinError, match="expected jetson or virtual:NAME"):
        open_board(name, "speed")
