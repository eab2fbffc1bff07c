"""What INT8 costs a network in answers: place, calibrate, constrain, then run it as the DLA and as the GPU would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.accuracy import Assessment, Int8Network, LabelledBatch, assess
from calibration.labels import LabelledPhotos
from orin.errors import OrinError
from orin.layer_cost import LayerCost, LayerCosts
from orin.subject import Subject, find_subject

if TYPE_CHECKING:
    import onnx

    from calibration.collect import Feed
    from calibration.dataset import Skipped
    from dla.placement import Placement
    from dla.scales import Fitted
    from engines.graph import Graph
    from engines.spec import Ranges

CALIBRATION_SAMPLES = 128
DIGITS = "digits"
BACKGROUND_CLASSES = 1001  # TensorFlow's ImageNet networks: class 0 is background, labels count from 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """A network (of the zoo, or an ONNX file), the photos to answer, and where INT8 ranges come from.

    Without `data` the network `digits` answers scikit-learn's digits that it was not trained on. `images` bounds the
    photos, evenly chosen from all. `cache` wins over `method`. `worst` is how many layers are tried in FP16.
    """

    network: str
    data: Path | None = None
    labels: Path | None = None
    images: int | None = None
    method: str = "entropy"
    cache: Path | None = None
    preprocess: str | None = None
    weights: Path | None = None
    worst: int = 5


@dataclass(frozen=True)
class DlaForm:
    """A network as the DLA runs it: where its layers are placed, ranges fitted to that, what is in INT8."""

    graph: Graph
    placement: Placement
    fitted: Fitted
    int8: Int8Network


@dataclass(frozen=True)
class Answer:
    """The same samples through float32, INT8 as on the DLA and INT8 as on the GPU.

    `costs` belong to the DLA's `gains`: None for a layer that the DLA does not run. `unknown` says why there is no
    top-1, where there is none.
    """

    question: Question
    weights: str
    samples: str
    unknown: str | None
    calibrated: str
    form: DlaForm
    dla: Assessment
    gpu: Assessment
    costs: tuple[LayerCost | None, ...]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Samples:
    """What the network answers, batch after batch and as often as asked, and what its ranges are collected on."""

    batches: Iterable[LabelledBatch]
    calibration: Callable[[], Iterable[Feed]]
    count: int
    calibration_count: int
    about: str
    calibration_about: str


def answer(question: Question, progress: Progress = lambda *_: None) -> Answer:
    """Answer a question; OrinError, EngineError, DlaError or CalibrationError for what cannot be used."""
    from dla.rewrite import rewrite_all

    _check(question)
    subject = find_subject(question.network, question.weights, question.preprocess)
    samples = _samples(question, subject)
    rewritten = rewrite_all(subject.model)
    more = [rewritten.model] if rewritten.new_tensors else []
    ranges = _ranges(question, subject, [subject.model, *more], samples, progress)
    form = dla_form(rewritten.model, subject.name, ranges)
    dla = _assessed("DLA", form.int8, question.worst, samples, progress)
    gpu = _assessed("GPU", Int8Network(subject.model, ranges.amax_by_tensor), 0, samples, progress)
    return Answer(
        question=question,
        weights=subject.weights,
        samples=samples.about,
        unknown=_unknown(dla),
        calibrated=f"{ranges.method} on {samples.calibration_about}" if ranges.images else f"from {question.cache}",
        form=form,
        dla=dla,
        gpu=gpu,
        costs=_costs(form, dla),
        skipped=tuple(samples.batches.skipped) if isinstance(samples.batches, LabelledPhotos) else (),
    )


def dla_form(model: onnx.ModelProto, name: str, ranges: Ranges) -> DlaForm:
    """Place a (rewritten) network and fit the ranges to its DLA layers; tensors that it never rounds stay real."""
    from dla.placement import place
    from dla.scales import fit
    from engines.graph import read_graph

    graph = read_graph(model, name)
    placement = place(graph)
    fitted = fit(graph, placement, ranges)
    rounded = {name: amax for name, amax in fitted.ranges.amax_by_tensor.items() if name not in fitted.unary}
    return DlaForm(graph, placement, fitted, Int8Network(model, rounded, fitted.fp16_layers))


def _unknown(found: Assessment) -> str | None:
    if found.fp32.top1 is not None:
        return None
    why = "no labels" if found.int8.agreement is not None else "the network is no classifier"
    return f"top-1 is unknown: {why}"


def _check(question: Question) -> None:
    if question.images is not None and question.images < 1:
        raise OrinError(f"--images {question.images} leaves nothing to answer; ask for 1 or more")
    if question.worst < 0:
        raise OrinError(f"--worst {question.worst} is not a number of layers; ask for 0 or more")
    if question.data is None and question.network != DIGITS:
        raise OrinError(f"{question.network} needs photos: give --data DIR (only {DIGITS} brings its own)")
    if question.data is None and question.labels is not None:
        raise OrinError(f"--labels {question.labels} is for photos: give their folder with --data DIR")


def _assessed(name: str, network: Int8Network, worst: int, samples: Samples, progress: Progress) -> Assessment:
    total = samples.count * (2 if worst else 1)
    return assess(network, samples.batches, worst, lambda done: progress(f"INT8 as {name}", done, total))


def _costs(form: DlaForm, found: Assessment) -> tuple[LayerCost | None, ...]:
    costs, on_gpu = LayerCosts(form.graph), form.placement.device_by_layer.keys()
    layers = [gain.layer.layers for gain in found.gains]
    return tuple(None if on_gpu & set(names) else costs.of(names) for names in layers)


def _classes(subject: Subject) -> int:
    """Return the classes of a classifier: the second axis of the first output."""
    from engines.graph import read_graph

    graph = read_graph(subject.model)
    shape = graph.tensors[graph.outputs[0]].shape
    return shape[1] if len(shape) > 1 else 0


# -- samples and ranges -----------------------------------------------------------------------------------------------


def _samples(question: Question, subject: Subject) -> Samples:
    return _digits(question) if question.data is None else _photos(question, subject, question.data)


def _digits(question: Question) -> Samples:
    from calibration.digits import load_digits
    from engines.zoo.digits import held_out

    digits, kept = load_digits(), held_out(0)
    chosen, seen = digits.part(kept), digits.part(~kept).rounded[:CALIBRATION_SAMPLES]
    inputs, labels = chosen.inputs[: question.images], chosen.labels[: question.images]
    return Samples(
        batches=[LabelledBatch(inputs, labels)],
        calibration=lambda: [seen],
        count=len(inputs),
        calibration_count=len(seen),
        about="scikit-learn's digits, the part held out from training",
        calibration_about=f"{len(seen)} digits that it was trained on",
    )


def _photos(question: Question, subject: Subject, folder: Path) -> Samples:
    from calibration.dataset import image_files
    from calibration.images import Images
    from calibration.labels import folder_labels, listed_labels

    photos, classes = image_files(folder), _classes(subject)
    paths = _evenly(photos, question.images)
    if question.labels is not None:
        label_of: dict[Path, int] | None = listed_labels(question.labels, paths, folder)
    else:
        label_of = folder_labels(photos, folder, classes)
    if label_of is not None and classes == BACKGROUND_CLASSES:
        label_of = {path: label + 1 for path, label in label_of.items()}
    seen = _evenly(paths, CALIBRATION_SAMPLES)
    images = Images(seen, subject.preprocess, subject.image)
    return Samples(
        batches=LabelledPhotos(paths, subject.preprocess, label_of),
        calibration=lambda: (batch.arrays for batch in images.batches() if batch.arrays),
        count=len(paths),
        calibration_count=len(seen),
        about=f"photos of {folder}",
        calibration_about=f"{len(seen)} of these photos",
    )


def _evenly(paths: Sequence[Path], count: int | None) -> list[Path]:
    """Choose photos at even distances: the first of a sorted folder are often of one class."""
    if count is None or count >= len(paths):
        return list(paths)
    return [paths[index * len(paths) // count] for index in range(count)]


def _ranges(
    question: Question, subject: Subject, models: Sequence[onnx.ModelProto], samples: Samples, progress: Progress
) -> Ranges:
    """Read the question's cache, or collect ranges; those of a tensor of several models are the first one's."""
    from calibration.cache import read_cache
    from calibration.collect import collect_ranges
    from calibration.observers import OBSERVERS
    from engines.spec import Ranges

    if question.cache is not None:
        return read_cache(question.cache).to_ranges()

    def collected(model: onnx.ModelProto) -> Ranges:
        def said(done: int) -> None:
            progress("calibrating", done, samples.calibration_count)

        fixed = {subject.image: subject.preprocess.amax}
        return collect_ranges(model, samples.calibration(), OBSERVERS[question.method](), said, fixed)

    found = [collected(model) for model in models]
    amax = {name: value for ranges in reversed(found) for name, value in ranges.amax_by_tensor.items()}
    return Ranges(amax, found[0].method, found[0].images)
