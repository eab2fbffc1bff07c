"""The SoC's limits against published figures and hand computation."""

import pytest

from orin.boards import open_board
from orin.errors import OrinError
from orin.plan import Plan
from orin.predict import predict_plan
from orin.roofline import roofline
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.soc import SOCS, soc
from power.boards import board
from power.errors import PowerError
from power.modes import board_modes

MACS = 4_089_184_256


def test_peaks_are_the_data_sheets():
    full = SOC.clocks("MAXN")
    assert SOC.gpu_peak_ops(full) / 1e12 == pytest.approx(85.2, abs=0.1)
    assert 2 * SOC.dla_peak_ops(full) / 1e12 == pytest.approx(52.4, abs=0.1)
    assert SOC.dram_peak_bytes_per_s(full) / 1e9 == pytest.approx(204.8, abs=0.1)


@pytest.mark.parametrize("mode,published", [("MAXN", 189.5), ("50W", 170.8), ("30W", 128.0), ("15W", 81.2)])
def test_gpu_draws_from_dram_what_stream_measured(mode, published):
    assert SOC.gpu_dram_bytes_per_s(SOC.clocks(mode)) / 1e9 == pytest.approx(published, rel=0.06)


def test_modes_are_nvpmodels():
    clocks = SOC.clocks("MODE_15W")
    assert (clocks.gpu_mhz, clocks.dla_mhz, clocks.emc_mhz, clocks.sms, clocks.cpus) == (408.0, 614.4, 2133.0, 6, 4)


def test_roofline_is_two_operations_a_mac_or_dram():
    full = SOC.clocks("MAXN")
    both = roofline(Plan(), SOC, full, MACS, 22e6)
    assert both.compute_samples_per_s == pytest.approx((16 * 4096 * 1300.5e6 + 4 * 8192 * 1600e6) / (2 * MACS))
    assert both.samples_per_s == both.dram_samples_per_s == pytest.approx(0.924 * 64 * 3199e6 / 22e6)
    dla = roofline(Plan(gpu_batch=0, dla_cores=1), SOC, full, MACS, 0)
    assert dla.samples_per_s == pytest.approx(2 * 8192 * 1600e6 / (2 * MACS)) and dla.bound == "arithmetic"


@pytest.mark.parametrize(
    "name,sparse_tops", [("agx-orin-32gb", 200), ("orin-nx-16gb", 100), ("orin-nx-16gb-super", 157)]
)
def test_the_smaller_modules_add_up_to_the_tops_that_nvidia_states(name, sparse_tops):
    facts = soc(name)
    full = facts.clocks(facts.fullest_mode)
    dense = facts.gpu_peak_ops(full) + facts.dla_cores * facts.dla_peak_ops(full)
    assert 2 * dense / 1e12 == pytest.approx(sparse_tops, rel=0.01)


@pytest.mark.parametrize("mode,published", [("MAXN", 92.6), ("25W", 43.8), ("15W", 65.0), ("10W", 60.3)])
def test_an_nx_gpu_draws_from_dram_what_stream_measured(mode, published):
    facts = soc("orin-nx-16gb")
    assert facts.gpu_dram_bytes_per_s(facts.clocks(mode)) / 1e9 == pytest.approx(published, rel=0.06)


def test_maxn_and_maxn_super_are_told_apart():
    assert soc("orin-nx-16gb").clocks("MAXN").gpu_mhz == 918.0
    assert soc("orin-nx-16gb-super").clocks("MAXN_SUPER").gpu_mhz == 1173.0
    for name, wrong in (("orin-nx-16gb", "MAXN_SUPER"), ("orin-nx-16gb-super", "MAXN")):
        with pytest.raises(PowerError, match=f"'{wrong}' is not one of {name}'s"):
            soc(name).clocks(wrong)


def test_every_module_has_its_full_size_in_its_fullest_mode():
    for facts in SOCS.values():
        full = facts.clocks(facts.fullest_mode)
        assert full == facts.max_clocks and full.sms == facts.sms, facts.name


def test_an_nx_mode_file_masks_the_tpcs_that_its_module_lacks_and_leaves_what_no_source_gives():
    modes = {mode.name: mode.values for mode in board_modes(board("orin-nx-16gb")).modes}
    assert {name: values["TPC_POWER_GATING", "TPC_PG_MASK"] for name, values in modes.items()} == {
        "MAXN": "240", "10W": "252", "15W": "252", "25W": "240"
    }  # fmt: skip
    slowest = modes["10W"]
    assert (slowest["DLA0_CORE", "MAX_FREQ"], slowest["DLA1_CORE", "MAX_FREQ"]) == ("153600000", "115200000")
    assert modes["15W"]["DLA1_CORE", "MAX_FREQ"] == "614400000"
    assert ("DLA0_FALCON", "MAX_FREQ") not in slowest and modes["MAXN"]["DLA0_FALCON", "MAX_FREQ"] == "-1"


@pytest.mark.parametrize(
    "asked,given", [(3200, 3199.0), (3199.0, 3199.0), (3000, 2133.0), (2133, 2133.0), (700, 665.6)]
)
def test_the_emc_takes_the_step_below(asked, given):
    assert SOC.free_clocks({"emc": asked}).emc_mhz == given


def test_free_clocks_leave_the_others_at_their_highest():
    clocks = soc("agx-orin-32gb").free_clocks({"gpu": 624.75, "cpu": 576})
    assert clocks.as_mhz() == {"gpu": 624.75, "dla": 1408.0, "emc": 3199.0, "cpu": 576}
    assert (clocks.sms, clocks.cpus) == (14, 8)


@pytest.mark.parametrize(
    "clocks,words",
    [
        ({"npu": 1.0}, "has 'npu'; clocks are gpu, dla, emc, cpu"),
        ({"gpu": 1400.0}, "has gpu: 1400.0, expected MHz up to 1300.5"),
        ({"dla": True}, "has dla: True, expected MHz up to 1600.0"),
        ({"emc": 100.0}, "at least the lowest of 204, 665.6, 2133, 3199 MHz"),
    ],
)
def test_clocks_that_the_module_does_not_have(clocks, words):
    with pytest.raises(OrinError, match=words):
        SOC.free_clocks(clocks)


@pytest.mark.parametrize("name", [name for name in SOCS if "nx" in name])
def test_an_nx_is_predicted_on_its_own_rails_and_says_whose_power_that_is(name):
    prediction = predict_plan(Plan(gpu_batch=8, dla_cores=2), name)
    assert list(prediction.rails_w) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    watts = [rail.value for rail in prediction.rails_w.values()]
    assert watts[0] == pytest.approx(prediction.module_w.value) and watts[1] + watts[2] < watts[0]
    assert prediction.board == f"virtual:{name}" and any("none are published" in note for note in prediction.notes)


def test_a_second_dla_with_a_cap_of_its_own_is_said():
    both = predict_plan(Plan(gpu_batch=0, dla_cores=2, mode="10W"), "orin-nx-16gb")
    assert any("10W caps dla1 at 115.2 MHz" in note for note in both.notes)
    one = predict_plan(Plan(gpu_batch=0, dla_cores=1, mode="10W"), "orin-nx-16gb")
    assert not any("dla1" in note for note in one.notes)


def test_a_smaller_module_is_slower():
    rates = [predict_plan(Plan(), name).samples_per_s for name in ("agx-orin-64gb", "agx-orin-32gb", "orin-nx-16gb")]
    assert rates == sorted(rates, reverse=True)


def test_an_nx_is_run_in_wall_time_with_its_own_rails():
    board = open_board("virtual:orin-nx-16gb", "results")
    assert [rail.name for rail in board.soc.board.rails] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


def test_unknown_soc_names_the_known():
    with pytest.raises(OrinError, match="'agx-thor' is not known; known: agx-orin-64gb"):
        soc("agx-thor")


def test_a_gpu_governor_steps_up_to_its_cap():
    assert SOC.gpu_steps_mhz(624.75) == (306.0, 408.0, 510.0, 612.0, 624.75)
    assert SOC.gpu_steps_mhz(306.0) == (306.0,)
    assert len(SOC.gpu_steps_mhz(1300.5)) == 11  # as `available_frequencies` of an AGX Orin devkit
