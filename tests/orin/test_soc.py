"""The SoC's limits against published figures and hand computation."""

import pytest

from orin.errors import OrinError
from orin.plan import Plan
from orin.roofline import roofline
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.soc import soc

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


def test_unknown_soc_names_the_known():
    with pytest.raises(OrinError, match="'agx-thor' is not known; known: agx-orin-64gb"):
        soc("agx-thor")
