"""From a plan to its engines: placement, ranges and formats meet in the specs."""

import dataclasses

import cv2
import numpy as np
import pytest

from orin.build import Desk, build_engines
from orin.errors import OrinError
from orin.plan import Plan

PLAN = Plan(gpu_batch=4, dla_batch=2)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    photos = [folder / f"{k}.png" for k in range(4)]
    for photo in photos:
        cv2.imwrite(str(photo), rng.integers(0, 255, (260, 300, 3), dtype=np.uint8))
    return Desk(cache=folder / "cache", photos=photos)


def test_gpu_and_dla_engines_share_the_photos_bytes(desk):
    built = build_engines(PLAN, desk)
    gpu, dla = (built.engines[name].manifest for name in ("gpu", "dla"))
    assert (gpu.spec.batch, dla.spec.batch) == (4, 2)
    assert (gpu.inputs[0].format, dla.inputs[0].format) == ("CHW4", "DLA_HWC4")
    assert gpu.inputs[0].scale == dla.inputs[0].scale == pytest.approx(128 / 127)
    assert gpu.inputs[0].sample_bytes == dla.inputs[0].sample_bytes == 4 * 224 * 224
    assert gpu.workload.macs == dla.workload.macs == 4_089_184_256


def test_rewritten_the_dla_engine_holds_no_gpu_layer(desk):
    built = build_engines(PLAN, desk)
    assert built.placement.zero_gpu_layers and built.engines["dla"].manifest.gpu_layers == ()
    assert len(built.placement.loadables) == 1
    as_it_is = build_engines(dataclasses.replace(PLAN, rewrites=(), gpu_batch=0), desk)
    assert as_it_is.engines["dla"].manifest.gpu_layers and not as_it_is.placement.zero_gpu_layers


def test_ranges_are_collected_once_and_kept_as_a_tensorrt_cache(desk):
    build_engines(PLAN, desk)
    kept = list((desk.cache / "ranges").iterdir())
    assert len(kept) == 1 and kept[0].read_text().startswith("TRT-100300-EntropyCalibration2\n")
    seen = []
    again = build_engines(
        dataclasses.replace(PLAN, calibration=str(kept[0])), dataclasses.replace(desk, photos=(), say=seen.append)
    )
    assert again.engines["gpu"].manifest == build_engines(PLAN, desk).engines["gpu"].manifest
    assert seen == []  # found in the cache, nothing rebuilt


def test_other_precisions_need_no_calibration(desk):
    built = build_engines(
        dataclasses.replace(PLAN, precision="fp32", dla_cores=0), dataclasses.replace(desk, photos=())
    )
    assert built.engines["gpu"].manifest.inputs[0].dtype == "int8"


def test_int8_without_ranges_is_refused(desk):
    with pytest.raises(OrinError, match="INT8 needs ranges: name a calibration cache"):
        build_engines(PLAN, Desk(cache=desk.cache))
