"""`orin accuracy`: what INT8 costs a network in answers, layer by layer, and what FP16 would win back."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    from calibration.accuracy import Assessment, Fp16Gain, Score, Share
    from orin.accuracy import Answer
    from orin.layer_cost import LayerCost

ABSENT = "–"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from calibration.observers import OBSERVERS
    from engines.preprocess import PREPROCESS

    parser.add_argument("network", metavar="NETWORK", help="network of the zoo, or an ONNX file with one image input")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of photos; digits brings its own")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="lines 'name class'; without: the folders that photos are in"
    )
    parser.add_argument("--images", type=int, metavar="N", help="N photos, evenly chosen; without: all")
    ranges = parser.add_mutually_exclusive_group()
    ranges.add_argument("--method", default="entropy", choices=OBSERVERS, help="how a range is chosen (entropy)")
    ranges.add_argument("--calibration", type=Path, metavar="CACHE", help="ranges from a calibration cache instead")
    parser.add_argument("--preprocess", choices=PREPROCESS, help="how photos become inputs")
    parser.add_argument("--weights", type=Path, metavar="ONNX", help="checkpoint of a zoo network")
    parser.add_argument("--worst", type=int, default=5, metavar="K", help="layers to try in FP16 (5)")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.accuracy import Question, answer

    talk = Talk(options.quiet)
    question = Question(
        network=options.network,
        data=options.data,
        labels=options.labels,
        images=options.images,
        method=options.method,
        cache=options.calibration,
        preprocess=options.preprocess,
        weights=options.weights,
        worst=options.worst,
    )
    found = answer(question, talk.progress)
    for skipped in found.skipped:
        talk.say(f"skipped {skipped.source}: {skipped.reason}")
    if found.form.fitted.warning:
        talk.say(found.form.fitted.warning)
    if options.json:
        print_json(as_json(found))
    else:
        print_answer(found)
    return 0


def as_json(found: Answer) -> dict[str, Any]:
    """Return an answer as plain JSON values."""
    form = found.form
    return {
        "network": found.question.network,
        "weights": found.weights,
        "samples": found.dla.samples,
        "about": found.samples,
        "skipped": [vars(skipped) for skipped in found.skipped],
        "top1_unknown": found.unknown,
        "calibrated": found.calibrated,
        "fp32": found.gpu.fp32.as_json(),
        "int8_dla": {
            **_assessed(found.dla),
            "gpu_layers": list(form.placement.gpu_layers),
            "fp16_layers": [vars(layer) for layer in form.fitted.fp16],
            "changed_ranges": [vars(change) for change in form.fitted.changes],
            "fp16_gains": [_gain(gain, cost) for gain, cost in zip(found.dla.gains, found.costs, strict=True)],
        },
        "int8_gpu": _assessed(found.gpu),
    }


def _assessed(found: Assessment) -> dict[str, Any]:
    return {**found.int8.as_json(), "layers": [vars(layer) for layer in found.layers]}


def _gain(gain: Fp16Gain, cost: LayerCost | None) -> dict[str, Any]:
    simulated = cost and {**vars(cost), "provenance": "simulated"}
    return {"layers": list(gain.layer.layers), **gain.score.as_json(), "cost": simulated}


def print_answer(found: Answer) -> None:
    """Print an answer as tables."""
    form, dla = found.form, found.dla
    rows = [_row("FP32", found.gpu.fp32), _row("INT8 as DLA", dla.int8), _row("INT8 as GPU", found.gpu.int8)]
    title = f"{found.question.network} ({found.weights}): 95 % intervals (Wilson), SQNR at the outputs"
    print_table(title, rows, ("", "top-1", "top-5", "top-1 as FP32", "SQNR"))
    unknown = f"; {found.unknown}" if found.unknown else ""
    facts = [
        ("samples", f"{dla.samples}, {found.samples}{unknown}"),
        ("ranges", f"{found.calibrated}; for the DLA {len(form.fitted.changes)} changed"),
        ("DLA", f"{len(form.placement.gpu_layers)} layers on the GPU, {len(form.fitted.fp16)} in FP16"),
    ]
    print_table("", facts)
    if dla.gains:
        rows = [_layer_row(*each, dla.int8) for each in zip(dla.gains, found.costs, strict=True)]
        title = "\nDLA: the layers that add most noise, each alone put in FP16 (time of one DLA: SIMULATED)"
        print_table(title, rows, ("layer", "", "SQNR", "adds", "FP16 wins", "top-1 as FP32", "ms a sample"))


def _row(name: str, score: Score) -> tuple[str, ...]:
    shares = (score.top1, score.top5, score.agreement)
    return name, *map(_share, shares), ABSENT if score.sqnr_db == math.inf else f"{score.sqnr_db:.1f} dB"


def _share(share: Share | None) -> str:
    if share is None:
        return ABSENT
    low, high = share.interval
    return f"{share.value:.2%} ({low:.2%}-{high:.2%})".replace("%", "") + " %"


def _layer_row(gain: Fp16Gain, cost: LayerCost | None, int8: Score) -> tuple[str, ...]:
    layer, agreement = gain.layer, gain.score.agreement
    return (
        " + ".join(layer.layers),
        layer.op,
        f"{layer.sqnr_db:.1f} dB",
        f"{layer.added:.3%}",
        f"{gain.score.sqnr_db - int8.sqnr_db:+.2f} dB",
        f"{agreement.value:.2%}" if agreement else ABSENT,
        f"{cost.engine_ms:.3g} -> {cost.engine_ms + cost.more_ms:.3g}" if cost else "runs on the GPU",
    )
