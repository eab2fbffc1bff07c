"""What is known of each board: figures against the data sheets' arithmetic, and which set of rails makes a total."""

import math

import pytest

from power.boards import (
    AGX_ORIN_32GB,
    AGX_ORIN_64GB,
    BOARDS,
    INA3221_TAU_S,
    TOTAL_RULES,
    board,
    ina3221_step_w,
    no_total_reason,
    total_rule,
)
from power.errors import PowerError


def needed(rule):
    return {rail.name for rail in rule.rails if not rail.optional}


def test_a_step_is_40_microvolt_over_the_shunt_times_the_supply():
    assert ina3221_step_w(0.002, 20.0) == pytest.approx(0.4)
    assert ina3221_step_w(0.002, 12.0) == pytest.approx(0.24)
    steps = {rail.name: rail.step_w for rail in AGX_ORIN_64GB.rails}
    assert steps["VDD_CPU_CV"] == pytest.approx(0.398) and steps["VIN_SYS_5V0"] == pytest.approx(0.1)
    assert [rail.step_w for rail in board("orin-nx-16gb").rails] == pytest.approx([0.04] * 3)
    assert AGX_ORIN_64GB.rails[0].offset_w == pytest.approx(0.796)  # 80 uV


def test_the_filter_is_512_samples_of_three_channels_of_280_us():
    assert pytest.approx(0.43008) == INA3221_TAU_S


def test_no_two_rules_fit_the_same_rails():
    for rule in TOTAL_RULES:
        for names in (needed(rule), {rail.name for rail in rule.rails}):
            assert [other.modules for other in TOTAL_RULES if other.fits(names)] == [rule.modules]


def test_every_board_has_the_rails_of_one_rule():
    for facts in BOARDS.values():
        fitting = [rule for rule in TOTAL_RULES if needed(rule) <= {rail.name for rail in facts.rails}]
        assert fitting and {rule.total for rule in fitting} == {facts.rule.total}, facts.name


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("agx-orin-64gb", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        ("agx-orin-32gb", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        ("agx-orin-industrial", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        ("orin-nx-8gb", ("VDD_IN",)),
        ("orin-nano-8gb", ("VDD_IN",)),
        ("xavier-nx", ("VDD_IN",)),
        ("agx-xavier", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
        ("tx2", ("VDD_IN",)),
        ("tx2-nx", ("VDD_IN",)),
        ("nano", ("POM_5V_IN",)),
        ("agx-thor", ()),
    ],
)
def test_which_rails_are_the_module(name, total):
    assert tuple(rail.name for rail in board(name).total_rails()) == total


def test_where_the_dla_hides():
    for name in ("agx-orin-64gb", "orin-nx-16gb", "xavier-nx", "agx-xavier"):
        holding = [rail.name for rail in board(name).rails if "DLA" in rail.meaning]
        assert len(holding) == 1 and holding[0].endswith("CV")


def test_sets_of_rails_without_a_total_say_why():
    thor = {"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"}
    assert total_rule(thor).total == ()
    assert "AGX Thor: no source says" in no_total_reason(thor)
    assert "no source says" in no_total_reason(thor - {"VIN"}, board("agx-thor"))
    assert total_rule({"VDD_IN"}) is None and "no known module prints just these" in no_total_reason({"VDD_IN"})
    assert no_total_reason({"VDD_IN"}, board("orin-nx-16gb")) is None
    assert no_total_reason({"VDD_CPU_CV"}, AGX_ORIN_64GB).endswith("not printed: VDD_GPU_SOC, VIN_SYS_5V0")
    assert "no rail is printed" in no_total_reason(())
    assert no_total_reason({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}) is None


def test_what_no_source_gives_is_not_a_number():
    assert math.isnan(board("nano").filter_tau_s) and math.isnan(board("tx2").rails[0].step_w)


def test_modes_of_the_two_modules_differ_where_their_files_do():
    assert [mode.name for mode in AGX_ORIN_64GB.modes] == ["MAXN", "15W", "30W", "50W"]
    assert [mode.name for mode in AGX_ORIN_32GB.modes] == ["MAXN", "15W", "30W", "40W"]
    assert AGX_ORIN_32GB.mode("MODE_40W").dla_mhz == 1228.8 and AGX_ORIN_32GB.mode("maxn").tpcs == 7


def test_unknown_names_give_the_known_ones():
    with pytest.raises(PowerError, match=r"board 'orin' is not known; known: agx-orin-64gb, "):
        board("orin")
    with pytest.raises(PowerError, match=r"'60W' is not one of agx-orin-64gb's: MAXN, 15W, 30W, 50W"):
        AGX_ORIN_64GB.mode("60W")
    with pytest.raises(PowerError, match="see /etc/nvpmodel.conf on the board"):
        board("nano").mode("MAXN")
