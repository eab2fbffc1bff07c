"""Work of varying length: sequences cut short, windows repeated."""

import pytest

from engines import zoo
from orin.parts import LENGTHS, cut


def test_a_sequence_cut_in_half_keeps_its_weights_and_a_quarter_of_its_attention():
    whole = zoo.graph("bert-large").workload
    half = cut(whole, 0.5)
    attention = sum(layer.macs for layer in whole.layers if layer.op == "matmul" and layer.groups > 1)
    assert attention == 24 * 2 * 384 * 384 * 1024  # scores and their product with the values, 24 blocks
    assert half.macs == pytest.approx(0.5 * (whole.macs - attention) + 0.25 * attention, rel=1e-3)
    assert half.weight_bytes == whole.weight_bytes
    assert sum(layer.weight_bytes for layer in half.layers) == sum(layer.weight_bytes for layer in whole.layers)
    for layer in half.layers:
        assert layer.macs == pytest.approx(layer.rows * layer.columns * layer.depth * layer.groups, rel=0.01)


def test_a_volume_is_its_windows_one_after_another():
    length = LENGTHS["unet3d"]
    whole = zoo.graph("unet3d").workload
    assert length.work(whole) is whole and length.runs == pytest.approx(64.6, abs=0.1)
    assert LENGTHS["bert-large"].runs == 1
