"""`orin calibrate`: photos, arrays or volumes in, a TensorRT calibration cache out; no board and no GPU needed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, check_file, print_json, print_table

if TYPE_CHECKING:
    from calibration.job import Calibrated, Job
    from orin.volumes.cases import Source


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from calibration.observers import OBSERVERS
    from engines.preprocess import PREPROCESS
    from engines.qdq import Target
    from orin.subject import USUAL_PREPROCESS

    parser.add_argument("model", metavar="MODEL", help="ONNX file, or a network of the zoo")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DATA",
        help="folder of JPEG and PNG photos or of .npy and .npz files, or one such file; for a 3D-UNet one volume a "
        "file, [D,H,W] in float32 or int8, cut into windows, or scans: .nii, .nii.gz, folders of KiTS19 or of scans, "
        "phantom:SEED[:DxHxW], each with a --data of its own",
    )
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="use the files that FILE names, one a line, relative to --data"
    )
    parser.add_argument("--method", default="entropy", choices=OBSERVERS, help="how a range is chosen (entropy)")
    parser.add_argument("--images", type=int, metavar="N", help="the first N photos, samples or volumes; without: all")
    parser.add_argument(
        "--preprocess",
        choices=PREPROCESS,
        help=f"how photos become inputs; without: that of a zoo network, {USUAL_PREPROCESS} for a file",
    )
    parser.add_argument("--weights", type=Path, metavar="ONNX", help="checkpoint of a zoo network; without: untrained")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="calibration cache to write")
    parser.add_argument("--qdq", type=Path, metavar="ONNX", help="also write the INT8 network with Q/DQ layers")
    parser.add_argument(
        "--qdq-for",
        default="onnxruntime",
        choices=[target.value for target in Target],
        help="who runs that network (onnxruntime)",
    )
    parser.add_argument("--force", action="store_true", help="calibrate again, whatever is there")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from calibration.job import calibrate_to
    from engines.files import write_model
    from engines.qdq import insert_qdq

    talk = Talk(options.quiet)
    _check_outputs(options)
    subject = _subject(options)
    job = subject.job
    made = calibrate_to(options.output, job, talk.say, _pace(talk), options.force)
    if made.unchanged:
        talk.say(f"{options.output} is of this network, data and method already: nothing to do (--force does it again)")
    if made.resumed:
        talk.say(f"went on after {made.resumed} samples of an interrupted run")
    if options.qdq:
        write_model(insert_qdq(job.model, made.ranges.amax_by_tensor, target=options.qdq_for), options.qdq)
    _report(options, subject, made)
    return 0


@dataclass(frozen=True)
class _Subject:
    """A calibration to do, with the names of its pre-processing and of its weights."""

    job: Job
    preprocess: str
    weights: str


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse what would only fail after the pass."""
    from orin.errors import OrinError

    if options.images is not None and options.images < 1:
        raise OrinError(f"--images {options.images} leaves nothing to calibrate with; ask for 1 or more")
    for path in filter(None, (options.output, options.qdq)):
        check_file(path)
    if options.qdq and options.qdq.resolve() in (options.output.resolve(), Path(options.model).resolve()):
        raise OrinError(f"--qdq {options.qdq} would replace another file of this run; name a file of its own")


def _subject(options: argparse.Namespace) -> _Subject:
    """Join network, data and method; what is wrong with the data is said before weights are made."""
    from calibration.files import are_arrays, data_files
    from calibration.images import Images
    from calibration.job import Job
    from calibration.source import batch_of
    from orin.errors import OrinError
    from orin.subject import find_subject
    from orin.volumes.data import scans_of

    scans = scans_of(options.data, options.list)
    if len(options.data) > 1 and (options.list or not scans):
        words = "which is for scans alone, without --list; name one folder or file"
        raise OrinError(f"--data is given {len(options.data)} times, {words}")
    paths = [] if scans else data_files(Path(options.data[0]), options.list)
    if scans or are_arrays(paths):
        return _of_arrays(options, scans, paths)
    photos = find_subject(options.model, options.weights, options.preprocess)
    images = Images(paths[: options.images], photos.preprocess, photos.image, fixed_batch=batch_of(photos.model))
    return _Subject(Job.of_images(photos.model, images, options.method), photos.preprocess_name, photos.weights)


def _of_arrays(options: argparse.Namespace, scans: list[Source], paths: list[Path]) -> _Subject:
    """Join a network with scans, with volumes in arrays, or with arrays of its samples."""
    from calibration.arrays import Arrays
    from calibration.job import Job
    from calibration.source import batch_of, inputs_of
    from engines.volumes.preprocess import KITS19
    from orin.errors import OrinError
    from orin.subject import find_network
    from orin.volumes.cases import grid_of
    from orin.volumes.data import array_windows, scan_windows

    if options.preprocess:
        raise OrinError(f"--preprocess {options.preprocess} is for photos; arrays and scans have their own")
    found = find_network(options.model, options.weights)
    inputs, batch = inputs_of(found.model), batch_of(found.model)
    if scans:
        volumes = scan_windows(inputs, scans[: options.images], grid_of(options.model) or KITS19, batch or 1)
        return _Subject(Job(found.model, volumes, options.method), "volumes", found.weights)
    source = array_windows(inputs, paths[: options.images], batch or 1) or Arrays(paths, inputs, options.images, batch)
    return _Subject(Job(found.model, source, options.method), "none", found.weights)


def _pace(talk: Talk) -> Callable[[int, int], None]:
    """Return a progress bar with the rate of this run and the time that is left."""
    began: tuple[float, int] | None = None

    def progress(done: int, total: int) -> None:
        nonlocal began
        now_s = time.monotonic()
        began = began or (now_s, done)
        used_s = now_s - began[0]
        rate = (done - began[1]) / max(used_s, 1e-9)
        left_s = (total - done) / rate if rate else 0.0
        words = f"calibrating {rate:7.2f}/s, {_clock(left_s)} left" if done < total else ""
        talk.progress(words or f"calibrated  {rate:7.2f}/s, {_clock(used_s)} used", done, total)

    return progress


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:3d}:{rest:02d}"


def _report(options: argparse.Namespace, subject: _Subject, made: Calibrated) -> None:
    from calibration.cache import read_cache
    from calibration.job import manifest_path

    manifest, cache = made.manifest, read_cache(options.output)
    for skipped in manifest.skipped:
        Talk(options.quiet).say(f"skipped {skipped.source}: {skipped.reason}")
    values: dict[str, Any] = {
        "output": str(options.output),
        "model": options.model,
        "weights": subject.weights,
        "method": made.ranges.method,
        "preprocess": subject.preprocess,
        "images": made.ranges.images,
        "tensors": len(cache.scales),
        "version": cache.version,
        "algorithm": cache.algorithm,
        "qdq": str(options.qdq) if options.qdq else None,
        "manifest": str(manifest_path(options.output)),
        "digest": manifest.digest,
        "unchanged": made.unchanged,
        "resumed": made.resumed,
        "skipped": [{"source": skipped.source, "reason": skipped.reason} for skipped in manifest.skipped],
    }
    if options.json:
        print_json(values)
        return
    values["skipped"] = len(manifest.skipped)
    shown = ("tensors", "images", "method", "preprocess", "weights", "skipped", "digest")
    done = "was calibrated already" if made.unchanged else "calibrated"
    print_table(f"{options.model} {done} -> {options.output}", [(key, str(values[key])) for key in shown])
