"""The mode file's grammar and traps, `nvpmodel -q` as boards print it, and modes made of caps."""

import random
import re

import pytest

from power.boards import BOARDS
from power.errors import PowerError
from power.modes import board_modes
from power.nvpmodel import (
    Caps,
    capped_mode,
    fullest_mode,
    parse_mode_file,
    parse_query,
    read_mode_file,
    reboot_changes,
)
from power.proof import prove
from tests.power.fakes import CPU_TABLE, DLA, GPU, GPU_TABLE, OLD_GPU, TPC, conf_text

FILE = parse_mode_file(conf_text())

# Recorded on an Orin Nano Super.
NANO = """NVPM VERB: Config file: /etc/nvpmodel.conf
NVPM VERB: parsing done for /etc/nvpmodel.conf
NVPM VERB: Current mode: NV Power Mode: MAXN_SUPER
2
NVPM WARN: fan mode is not set!
NVPM VERB: PARAM CPU_ONLINE: ARG CORE_0: PATH /sys/devices/system/cpu/cpu0/online: REAL_VAL: 1 CONF_VAL: 1
NV Fan Mode:quiet
NVPM VERB: PARAM GPU: ARG MAX_FREQ: PATH /sys/devices/platform/17000000.gpu/devfreq_dev/max_freq: """
NANO += "REAL_VAL: 1020000000 CONF_VAL: 9223372036854775807\n"


def test_sections_comments_and_odd_spaces():
    assert [(mode.id, mode.plain_name) for mode in FILE.modes] == [(0, "MAXN"), (1, "15W"), (2, "30W"), (7, "50W")]
    assert FILE.default == 2
    assert [parameter.name for parameter in FILE.parameters if parameter.kind == "CLOCK"] == [
        "CPU_A78_0", "GPU", "EMC", "DLA0_CORE",
    ]  # fmt: skip
    assert FILE.mode("mode_50w").values["GPU", "MAX_FREQ"] == "816000000" and FILE.mode("50W").id == 7
    assert FILE.paths(("GPU", "MAX_FREQ")) == (f"{GPU}/max_freq", f"{OLD_GPU}/max_freq")
    assert FILE.caps(("GPU", "MAX_FREQ")) == [408000000, 612000000, 816000000]


def test_what_is_written_reads_back_the_same():
    assert parse_mode_file(FILE.dumps()) == FILE


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "holds no < POWER_MODEL"),
        ("stray words here\n", "line 1: 'stray words here'"),
        ("< POWER_MODEL NAME=MAXN >\n", "line 1"),
        ("< POWER_MODEL ID=zero NAME=MAXN >\n", "line 1"),
        ("< POWER_MODEL ID=0 NAME=MAXN >\nGPU MAX_FREQ\n", "line 2: 'GPU MAX_FREQ', expected a parameter"),
        ("< PARAM TYPE=FILE NAME=A >\nONE /a /b\n", "line 2"),
    ],
)
def test_what_is_not_understood_is_named(text, part):
    with pytest.raises(PowerError, match=part):
        parse_mode_file(text)


def test_damaged_files_end_in_an_error_or_in_modes():
    """A thousand mode files with words lost, doubled or cut."""
    rng = random.Random(6)
    for _ in range(1000):
        words = re.split(r"(\s+)", conf_text())
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(words))
            words[at : at + 1] = rng.choice(([], [words[at]] * 2, [words[at][: rng.randint(0, 3)]], ["\n"]))
        try:
            assert parse_mode_file("".join(words)).modes
        except PowerError as error:
            assert "\n" not in str(error)


def test_missing_file_and_mode(tmp_path):
    with pytest.raises(PowerError, match="No such file"):
        read_mode_file(tmp_path / "nvpmodel.conf")
    with pytest.raises(PowerError, match="'99W' is not one of this board's: MAXN, 15W, 30W, 50W"):
        FILE.mode("99W")


@pytest.mark.parametrize(
    "text, found",
    [
        ("NV Power Mode: MAXN\n0\n", (0, "MAXN")),
        ("NVPM WARN: fan mode is not set!\nNV Fan Mode:quiet\nNV Power Mode: MODE_15W\n1\n", (1, "MODE_15W")),
        (NANO, (2, "MAXN_SUPER")),
    ],
)
def test_query(text, found):
    query = parse_query(text)
    assert (query.id, query.name) == found


def test_verbose_query_has_the_values():
    values = parse_query(NANO).values
    assert values["CPU_ONLINE", "CORE_0"].real == "1"
    assert values["GPU", "MAX_FREQ"].real == "1020000000" and values["GPU", "MAX_FREQ"].path.endswith("max_freq")
    assert len(values) == 2


@pytest.mark.parametrize("text", ["", "NVPM ERROR: failed to read PM_CONFIG", "NV Power Mode: MAXN", "3"])
def test_query_that_names_no_mode(text):
    assert parse_query(text) is None


def test_reboot_is_known_beforehand():
    assert reboot_changes(FILE.mode("30W"), FILE.mode("15W")) == ("TPC_PG_MASK 0 -> 248",)
    assert reboot_changes(FILE.mode("30W"), FILE.mode("50W")) == ()


def test_caps_on_top_of_the_fullest_mode():
    assert fullest_mode(FILE).name == "MAXN"
    caps = Caps(gpu_mhz=624.75, dla_mhz=780.2, emc_mhz=2133, cpu_mhz=576, cpus=3)
    values = capped_mode(FILE, caps, "OWN").values
    assert values["GPU", "MAX_FREQ"] == "624750000" and values["GPU", "MIN_FREQ"] == "0"
    assert values["DLA0_CORE", "MAX_FREQ"] == "780200000" and values["EMC", "MAX_FREQ"] == "2133000000"
    assert values["CPU_A78_0", "MAX_FREQ"] == values["CPU_A78_0", "MIN_FREQ"] == "576000"
    assert [values["CPU_ONLINE", f"CORE_{core}"] for core in range(4)] == ["1", "1", "1", "0"]
    assert list(values) == list(FILE.modes[0].values), "the order of a mode's lines matters to nvpmodel"


@pytest.mark.parametrize(
    "caps, part",
    [
        (Caps(cpus=0), "cpus is 0, expected 1 to 4"),
        (Caps(cpus=5), "cpus is 5"),
        (Caps(gpu_mhz=0), "gpu_mhz is not above 0"),
        (Caps(dla_falcon_mhz=800), "dla_falcon_mhz is given, but"),
    ],
)
def test_caps_that_cannot_be(caps, part):
    with pytest.raises(PowerError, match=part):
        capped_mode(FILE, caps, "OWN")


class Files(dict):
    """Texts by path; a folder none of whose files is here is gone."""

    read = dict.get

    def is_gone(self, path):
        return path.rpartition("/")[0] not in {known.rpartition("/")[0] for known in self}


def proof(mode, real):
    """Proof of a mode where the files hold `real` by path."""
    tables = {
        f"{GPU}/available_frequencies": " ".join(map(str, GPU_TABLE)),
        "/sys/devices/system/cpu/cpufreq/policy0/scaling_available_frequencies": " ".join(map(str, CPU_TABLE)),
    }
    return prove(FILE, FILE.mode(mode), None, Files(tables | real))


@pytest.mark.parametrize(
    "mode, path, real, agrees",
    [
        ("50W", f"{GPU}/max_freq", "816000000", True),
        ("50W", f"{GPU}/max_freq", "714000000", False),  # not next to 816 MHz, which is in the table
        ("MAXN", f"{GPU}/max_freq", "1300500000", True),
        ("MAXN", f"{GPU}/max_freq", "816000000", False),  # no cap asked, one there
        ("MAXN", f"{GPU}/min_freq", "306000000", True),  # 0 asked: the table's lowest
        ("MAXN", f"{GPU}/control", "auto", True),  # set twice in a mode: the last value counts
        ("MAXN", f"{GPU}/control", "on", False),
        ("MAXN", "/sys/kernel/nvpmodel_clk_cap/emc", "3199000000", True),  # above every cap of the file
        ("MAXN", "/sys/kernel/nvpmodel_clk_cap/emc", "9223372036854775807", True),
        ("MAXN", "/sys/kernel/nvpmodel_clk_cap/emc", "204000000", False),
        ("15W", "/sys/kernel/nvpmodel_clk_cap/emc", "2133000000", True),
        ("15W", "/sys/kernel/nvpmodel_clk_cap/emc", "3199000000", False),
        ("15W", "/sys/kernel/nvpmodel_clk_cap/emc", "2100000000", True),  # rounded, by a table that is not seen
        ("15W", TPC, "248", True),
        ("15W", TPC, "0", False),
        ("15W", DLA, "", None),
        ("15W", DLA, "Permission denied", None),
    ],
)
def test_proof_of_one_value(mode, path, real, agrees):
    found = proof(mode, {path: real})
    (value,) = [value for value in found.values if value.path == path]
    assert value.agrees is agrees and found.in_force is agrees


def test_a_clock_between_two_of_the_table_is_rounded_either_way():
    file = parse_mode_file(conf_text().replace("816000000", "828750000"))
    for real, agrees in (("816000000", True), ("1300500000", True), ("714000000", False)):
        tables = {f"{GPU}/available_frequencies": " ".join(map(str, GPU_TABLE)), f"{GPU}/max_freq": real}
        assert prove(file, file.mode("50W"), None, Files(tables)).in_force is agrees


def test_what_only_root_may_read_is_seen_by_nvpmodel():
    lines = [
        "NV Power Mode: MODE_15W\n1",
        f"NVPM VERB: PARAM DLA0_CORE: ARG MAX_FREQ: PATH {DLA}: REAL_VAL: 1600000000 CONF_VAL: 614400000",
        "NVPM VERB: PARAM CPU_A78_0: ARG MAX_FREQ: PATH /sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq: "
        "REAL_VAL: 0 CONF_VAL: 1113600",
    ]
    files = Files({DLA + "_min": "0"})  # its folder is there; that of the CPU cluster is not, its cores are off
    found = prove(FILE, FILE.mode("15W"), parse_query("\n".join(lines)), files)
    assert list(map(str, found.differing)) == ["DLA0_CORE MAX_FREQ is 1600000000, asked 614400000"]
    assert found.in_force is False


def test_nothing_seen_proves_nothing():
    found = proof("50W", {})
    assert found.in_force is None and not found.differing and len(found.unseen) == len(found.values)


@pytest.mark.parametrize(
    "board, masks",
    [
        ("agx-orin-64gb", {"MAXN": 0, "15W": 248, "30W": 240, "50W": 0}),
        ("agx-orin-32gb", {"MAXN": 128, "15W": 248, "30W": 240, "40W": 128}),
    ],
)
def test_mode_file_from_the_tables(board, masks):
    file = board_modes(BOARDS[board])
    found = {mode.name: int(mode.values["TPC_POWER_GATING", "TPC_PG_MASK"]) for mode in file.modes}
    assert found == masks, "as NVIDIA's own files have them"
    assert file.mode("15W").limits_mhz == {"gpu": 408.0, "dla": 614.4, "emc": 2133.0, "cpu": 1113.6}
    assert file.mode("15W").values["DLA1_FALCON", "MAX_FREQ"] == "294400000" and file.mode("15W").cpus == 4
    assert file.default == 2 and parse_mode_file(file.dumps()) == file


def test_board_whose_modes_no_table_holds():
    with pytest.raises(PowerError, match="no table holds the power modes of agx-xavier"):
        board_modes(BOARDS["agx-xavier"])
