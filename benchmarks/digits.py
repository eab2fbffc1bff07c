"""The digits classifier over all 1,797 images of scikit-learn: float32 and INT8 as on the DLA, for each method.

Five folds: each image is answered by the weights that have not seen it, with ranges from images of the other folds.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import numpy as np
from common import arguments, emit

from calibration.accuracy import Assessment, LabelledBatch, Share, assess
from calibration.collect import collect_ranges
from calibration.digits import Digits, load_digits
from calibration.observers import OBSERVERS
from dla.rewrite import rewrite_all
from engines.preprocess import PREPROCESS
from engines.zoo.digits import FOLDS, held_out, trained
from orin.accuracy import CALIBRATION_SAMPLES, dla_form

WANTED_AGREEMENT = 0.995
QUICK_FOLDS = 2
BATCH = 90


def digits_accuracy(quick: bool) -> dict[str, Any]:
    """Return top-1 in float32, then by method top-1 and agreement of INT8 with the DLA's constraints, all as shares.

    `quick` takes two folds of the five. The SQNR is that of the worst fold.
    """
    digits = load_digits()
    folds = range(QUICK_FOLDS if quick else FOLDS)
    found = {method: [_fold(digits, fold, method) for fold in folds] for method in OBSERVERS}
    first = next(iter(found.values()))
    return {
        "folds": len(folds),
        "samples": sum(each.samples for each in first),
        "calibration_samples": CALIBRATION_SAMPLES,
        "wanted_agreement": WANTED_AGREEMENT,
        "fp32_top1": _joined([each.fp32.top1 for each in first]),
        "methods": {method: _method(each) for method, each in found.items()},
    }


def _fold(digits: Digits, fold: int, method: str) -> Assessment:
    kept, model = held_out(fold), rewrite_all(trained(fold)).model
    seen = digits.part(~kept).rounded[:CALIBRATION_SAMPLES]
    fixed = {model.graph.input[0].name: PREPROCESS["digits"].amax}
    ranges = collect_ranges(model, [seen], OBSERVERS[method](), fixed=fixed)
    form = dla_form(model, "digits", ranges)
    part = digits.part(kept)
    chunks = np.array_split(np.arange(len(part.labels)), -(-len(part.labels) // BATCH))
    return assess(form.int8, [LabelledBatch(part.inputs[chunk], part.labels[chunk]) for chunk in chunks])


def _method(found: list[Assessment]) -> dict[str, Any]:
    agreement = _joined([each.int8.agreement for each in found])
    return {
        "top1": _joined([each.int8.top1 for each in found]),
        "agreement": agreement,
        "agrees": agreement["value"] >= WANTED_AGREEMENT,
        "sqnr_db": min(each.int8.sqnr_db for each in found),
    }


def _joined(shares: list[Share | None]) -> dict[str, float]:
    """Return the share over all folds."""
    return reduce(add, [share for share in shares if share is not None]).as_json()


def _text(share: dict[str, float]) -> str:
    return f"{share['value']:.2%} ({share['low']:.2%}-{share['high']:.2%})"


def main() -> None:
    """Run the folds and print."""
    options = arguments(__doc__ or "")
    found = digits_accuracy(options.quick)
    rows = [("FP32, top-1", _text(found["fp32_top1"]), "99 % or more")]
    for method, each in found["methods"].items():
        rows.append((f"INT8 {method}, top-1", _text(each["top1"]), ""))
        wanted = f"{WANTED_AGREEMENT:.1%} or more"
        rows.append((f"INT8 {method}, same top-1 as FP32", _text(each["agreement"]), wanted))
        rows.append((f"INT8 {method}, SQNR at the output, worst fold", f"{each['sqnr_db']:.1f} dB", ""))
    emit({"digits": found}, rows, options)


if __name__ == "__main__":
    main()
