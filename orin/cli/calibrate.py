"""`orin calibrate`: photos in, a TensorRT calibration cache out; no board and no GPU needed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    import onnx

    from calibration.dataset import FloatBatches
    from engines.preprocess import Preprocess

USUAL_PREPROCESS = "imagenet"
BATCH_PIXELS = 4 * 224 * 224  # whole activations of a batch are in memory: 4 photos of a classifier, 1 of a detector


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from calibration.observers import OBSERVERS
    from engines.preprocess import PREPROCESS

    parser.add_argument("model", metavar="MODEL", help="ONNX file with one image input, or a network of the zoo")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of JPEG and PNG photos")
    parser.add_argument("--method", default="entropy", choices=OBSERVERS, help="how a range is chosen (entropy)")
    parser.add_argument("--images", type=int, metavar="N", help="the first N photos by name; without: all")
    parser.add_argument(
        "--preprocess",
        choices=PREPROCESS,
        help=f"how photos become inputs; without: that of a zoo network, {USUAL_PREPROCESS} for a file",
    )
    parser.add_argument("--weights", type=Path, metavar="ONNX", help="checkpoint of a zoo network; without: untrained")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="calibration cache to write")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from calibration.cache import CalibrationCache
    from calibration.collect import collect_ranges
    from calibration.dataset import FloatBatches
    from calibration.observers import OBSERVERS
    from orin.record import write_atomically

    talk = Talk(options.quiet)
    photos = _photos(options)
    subject = _subject(options)
    image, preprocess = _image(options.model, subject), subject.preprocess
    batches = FloatBatches(photos, preprocess, batch=max(1, BATCH_PIXELS // preprocess.crop**2))

    def progress(done: int) -> None:
        talk.progress("calibrating", done + len(batches.skipped), len(photos))

    ranges = collect_ranges(subject.model, batches, OBSERVERS[options.method](), progress, {image: preprocess.amax})
    cache = CalibrationCache.from_ranges(ranges)
    write_atomically(options.output, cache.dumps())
    _report(
        options,
        {
            "output": str(options.output),
            "model": options.model,
            "weights": subject.weights,
            "method": ranges.method,
            "preprocess": subject.preprocess_name,
            "images": ranges.images,
            "tensors": len(cache.scales),
            "version": cache.version,
            "algorithm": cache.algorithm,
        },
        batches,
    )
    return 0


def _photos(options: argparse.Namespace) -> list[Path]:
    """Return the photos to use, and refuse what would only fail after the pass."""
    from calibration.dataset import image_files
    from orin.errors import OrinError

    if options.images is not None and options.images < 1:
        raise OrinError(f"--images {options.images} leaves nothing to calibrate with; ask for 1 or more")
    if options.output.is_dir() or not options.output.parent.is_dir():
        raise OrinError(f"{options.output} cannot be written; name a file in a folder that exists")
    return image_files(options.data)[: options.images]


@dataclass(frozen=True)
class _Subject:
    """A network, how photos become its input, and what its weights are."""

    model: onnx.ModelProto
    preprocess_name: str
    preprocess: Preprocess
    weights: str


def _subject(options: argparse.Namespace) -> _Subject:
    from engines import zoo
    from engines.onnx_model import load_model, with_batch
    from engines.preprocess import PREPROCESS
    from orin.build import weights_of
    from orin.errors import OrinError

    path, checkpoint = Path(options.model), options.weights
    if path.suffix == ".onnx" or path.exists():
        if checkpoint:
            raise OrinError(f"--weights {checkpoint} is for a network of the zoo; {path} has weights of its own")
        name = options.preprocess or USUAL_PREPROCESS
        return _Subject(with_batch(load_model(path), 1), name, PREPROCESS[name], f"those of {path.name}")
    name = options.preprocess or zoo.network(options.model).preprocess
    preprocess = PREPROCESS[name]  # a network without one is refused before its weights are made
    return _Subject(zoo.model(options.model, checkpoint), name, preprocess, weights_of(checkpoint))


def _image(name: str, subject: _Subject) -> str:
    """Give the axes of the network's one input that have no size the one of a photo; returns the input's name.

    OrinError where photos pre-processed like that do not fit it.
    """
    from engines.onnx_model import model_inputs, shape_of
    from orin.errors import OrinError

    inputs = model_inputs(subject.model)
    wanted = (3, subject.preprocess.crop, subject.preprocess.crop)
    shapes = [shape_of(value) or () for value in inputs]
    fits = [len(shape) == 4 and all(size in (None, want) for size, want in zip(shape[1:], wanted)) for shape in shapes]
    if fits != [True]:
        sizes = [["?" if size is None else size for size in shape] for shape in shapes]
        seen = ", ".join(f"{value.name}{size}" for value, size in zip(inputs, sizes))
        raise OrinError(
            f"{name} has the inputs {seen or 'none'}, expected one image input [N,{','.join(map(str, wanted))}] "
            f"for the pre-processing {subject.preprocess_name!r}; choose another with --preprocess"
        )
    for axis, size in zip(inputs[0].type.tensor_type.shape.dim, (1, *wanted)):
        axis.dim_value = size
    return str(inputs[0].name)


def _report(options: argparse.Namespace, summary: dict[str, object], batches: FloatBatches) -> None:
    for skipped in batches.skipped:
        Talk(options.quiet).say(f"skipped {skipped.source}: {skipped.reason}")
    if options.json:
        skips = [{"source": skipped.source, "reason": skipped.reason} for skipped in batches.skipped]
        print_json({**summary, "skipped": skips})
        return
    rows = [(key, str(summary[key])) for key in ("tensors", "images", "method", "preprocess", "weights")]
    print_table(f"{options.model} calibrated -> {options.output}", [*rows, ("skipped", str(len(batches.skipped)))])
