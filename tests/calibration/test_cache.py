import struct
from pathlib import Path

import numpy as np
import pytest

from calibration.cache import CalibrationCache, read_cache
from calibration.errors import CalibrationError
from engines.spec import Ranges

CACHES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "calibration_caches"

# 0x3f810204 is 128/127 (NVIDIA's ResNet-50 input), 0x3c010204 is 1/127: both worked out by hand.
TEXT = "TRT-100300-EntropyCalibration2\ninput_1:0: 3f810204\n(Unnamed Layer* 4) [Shuffle]_output: 0\nprob: 3c010204\n"


def test_reads_header_last_colon_spaces_and_zero():
    cache = read_cache(TEXT)
    assert (cache.version, cache.algorithm) == (100300, "EntropyCalibration2")
    assert list(cache.scales) == ["input_1:0", "(Unnamed Layer* 4) [Shuffle]_output", "prob"]
    assert cache.scales["input_1:0"] == float(np.float32(128 / 127))
    assert cache.scales["(Unnamed Layer* 4) [Shuffle]_output"] == 0.0
    assert cache.scales["prob"] == float(np.float32(1 / 127))
    assert cache.warnings == ()


def test_writes_what_it_read():
    assert read_cache(TEXT).dumps() == TEXT
    assert read_cache(TEXT.rstrip("\n")).dumps() == TEXT.rstrip("\n")


def test_fewer_than_eight_digits_are_filled_from_the_left():
    cache = read_cache("TRT-8600-MinMaxCalibration\nx: 800000\n")
    assert cache.scales["x"] == struct.unpack(">f", bytes.fromhex("00800000"))[0]
    assert cache.dumps() == "TRT-8600-MinMaxCalibration\nx: 800000\n"


def test_of_duplicates_the_last_wins_with_a_warning_and_all_are_written_back():
    text = (
        "TRT-8001-EntropyCalibration2\na: 3f800000\nb: 40000000\na: 40400000\nc: 3f800000\na: 40800000\nb: 40000000\n"
    )
    cache = read_cache(text)
    assert cache.scales == {"a": 4.0, "b": 2.0, "c": 1.0}
    assert len(cache.warnings) == 2
    assert "'a'" in cache.warnings[0]
    assert "line 6" in cache.warnings[0]
    assert cache.dumps() == text


def test_from_and_to_ranges():
    ranges = Ranges({"input": 128.0, "x y:0": 0.0, "logits": 7.25}, "minmax", 3)
    cache = CalibrationCache.from_ranges(ranges)
    assert cache.dumps().splitlines()[:3] == ["TRT-100300-EntropyCalibration2", "input: 3f810204", "x y:0: 0"]
    back = read_cache(cache.dumps()).to_ranges()
    for name, amax in ranges.amax_by_tensor.items():
        assert back.amax_by_tensor[name] == float(np.float32(amax / 127)) * 127
    assert CalibrationCache.from_ranges(back).dumps() == cache.dumps()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("TRT-\nx: 3f800000\n", 1),
        ("x: 3f800000\n", 1),
        ("TRT-8600-EntropyCalibration2\nx 3f800000\n", 2),
        ("TRT-8600-EntropyCalibration2\nx: 3f800000\ny: 3f8000001\n", 3),
        ("TRT-8600-EntropyCalibration2\nx: 3f800000\ny:0\n", 3),
        ("TRT-8600-EntropyCalibration2\nx: 3g800000\n", 2),
        ("TRT-8600-EntropyCalibration2\nx: 3f800000\n\n", 3),
        ("TRT-8600-EntropyCalibration2\nx: 3f800000\ny: 3f80", 3),
        ("TRT-8600-EntropyCalibration2\nx: 7fc00000\n", 2),
        ("TRT-8600-EntropyCalibration2\nx: bf800000\n", 2),
        ("TRT-8600-EntropyCalibration2\n: 3f800000\n", 2),
    ],
)
def test_garbled_text_is_one_line_with_the_line_number(text, line):
    with pytest.raises(CalibrationError) as caught:
        read_cache(text)
    assert f"line {line} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_cache(tmp_path / "none.cache")
    (tmp_path / "bytes.cache").write_bytes(b"TRT-8600-EntropyCalibration2\nx: 3f800000\n\xff: 3f800000\n")
    with pytest.raises(CalibrationError, match="line 3 holds the byte 0xff"):
        read_cache(tmp_path / "bytes.cache")


@pytest.mark.parametrize("amax", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_range_that_is_none_is_refused(amax):
    with pytest.raises(CalibrationError, match="'x'"):
        CalibrationCache.from_ranges(Ranges({"x": amax}, "minmax", 1))


def test_a_name_of_two_lines_is_refused():
    with pytest.raises(CalibrationError, match="one line a tensor"):
        CalibrationCache.from_ranges(Ranges({"x\ny": 1.0}, "minmax", 1))


@pytest.mark.skipif(not CACHES.is_dir(), reason="real calibration caches are not here")
def test_real_caches_are_written_back_byte_by_byte():
    paths = sorted(CACHES.glob("*.cache"))
    assert paths
    for path in paths:
        cache = read_cache(path)
        assert cache.dumps().encode() == path.read_bytes()
        again = CalibrationCache.from_ranges(cache.to_ranges(), cache.version, cache.algorithm)
        assert again.scales == cache.scales


@pytest.mark.skipif(not CACHES.is_dir(), reason="real calibration caches are not here")
def test_the_real_resnet50_input_has_range_128():
    ranges = read_cache(CACHES / "mlperf30_resnet50.cache").to_ranges()
    assert ranges.amax_by_tensor["input_tensor_0"] == pytest.approx(128.0, rel=1e-7)
