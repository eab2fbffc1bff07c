"""What a command's MODEL is: a network of the zoo or an ONNX file, and how photos become its input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orin.errors import OrinError

if TYPE_CHECKING:
    import onnx

    from engines.preprocess import Preprocess

USUAL_PREPROCESS = "imagenet"
USUAL_QSL_SAMPLES = 1024  # loaded at once for a network that MLPerf does not know


@dataclass(frozen=True)
class Subject:
    """A network at batch 1, its one image input, how photos become that, what its weights are, and how many samples
    are loaded at once."""

    name: str
    model: onnx.ModelProto
    image: str
    preprocess_name: str
    preprocess: Preprocess
    weights: str
    qsl_samples: int


@dataclass(frozen=True)
class Found:
    """A network as it was found: its name, what its weights are, and how many samples are loaded at once."""

    name: str
    model: onnx.ModelProto
    weights: str
    qsl_samples: int


def is_file(network: str) -> bool:
    """Whether a command's MODEL is a path, not a name of the zoo: a folder that is called like a network is neither."""
    path = Path(network)
    return bool(path.suffix) or len(path.parts) > 1 or path.is_file()


def usual_preprocess(network: str) -> str:
    """Return the pre-processing that a network has where none is asked for; EngineError for an unknown name."""
    from engines import zoo

    return USUAL_PREPROCESS if is_file(network) else zoo.network(network).preprocess


def find_network(network: str, checkpoint: Path | None = None) -> Found:
    """Find a network by its name in the zoo or the path of its file; EngineError or OrinError where there is none."""
    from engines import zoo
    from engines.onnx_model import load_model

    path = Path(network)
    if is_file(network):
        _check_no_checkpoint(network, checkpoint)
        return Found(path.stem, load_model(path), f"those of {path.name}", USUAL_QSL_SAMPLES)
    known = zoo.network(network)
    weights = f"checkpoint {checkpoint.name}" if checkpoint else known.weights
    return Found(network, zoo.model(network, checkpoint), weights, known.qsl_samples)


def light_network(network: str, checkpoint: Path | None = None) -> onnx.ModelProto:
    """Find a network as `find_network` does and leave its large weights out: enough for shapes, placement and cost."""
    from engines import zoo
    from engines.onnx_model import load_model, without_weights

    if not is_file(network):
        return zoo.model(network, checkpoint, with_weights=False)
    _check_no_checkpoint(network, checkpoint)
    return without_weights(load_model(Path(network), external_data=False))


def light_subject(network: str, checkpoint: Path | None = None, preprocess: str | None = None) -> onnx.ModelProto:
    """Find a network as `light_network` does; a file's is at batch 1, and its axes without a size have a photo's."""
    from engines.onnx_model import model_inputs, shape_of, with_batch
    from engines.preprocess import PREPROCESS

    found = light_network(network, checkpoint)
    if not is_file(network):
        return found
    model = with_batch(found, 1)
    if any(None in (shape_of(value) or (None,)) for value in model_inputs(model)):
        name = preprocess or USUAL_PREPROCESS
        _fit_photos(network, model, name, PREPROCESS[name])
    return model


def _check_no_checkpoint(network: str, checkpoint: Path | None) -> None:
    if checkpoint:
        raise OrinError(f"weights {checkpoint} are for a network of the zoo; {network} has weights of its own")


def find_subject(network: str, checkpoint: Path | None = None, preprocess: str | None = None) -> Subject:
    """Find a network that takes photos; EngineError or OrinError where it cannot be used.

    Without `preprocess`: that of a zoo network, "imagenet" for a file.
    """
    from engines.onnx_model import with_batch
    from engines.preprocess import PREPROCESS

    name = preprocess or usual_preprocess(network)
    prepared = PREPROCESS[name]  # a network without one is refused before its weights are made
    found = find_network(network, checkpoint)
    model = with_batch(found.model, 1)
    image = _fit_photos(network, model, name, prepared)
    return Subject(found.name, model, image, name, prepared, found.weights, found.qsl_samples)


def _fit_photos(network: str, model: onnx.ModelProto, name: str, preprocess: Preprocess) -> str:
    """Give the axes of the one image input that have no size the one of a photo; returns the input's name.

    OrinError where photos pre-processed like that do not fit it.
    """
    from engines.onnx_model import model_inputs, shape_of

    inputs, wanted = model_inputs(model), (3, preprocess.crop, preprocess.crop)
    shapes = [shape_of(value) or () for value in inputs]
    fits = [len(shape) == 4 and all(size in (None, want) for size, want in zip(shape[1:], wanted)) for shape in shapes]
    if fits != [True]:
        sizes = [["?" if size is None else size for size in shape] for shape in shapes]
        seen = ", ".join(f"{value.name}{size}" for value, size in zip(inputs, sizes))
        raise OrinError(
            f"{network} has the inputs {seen or 'none'}, expected one image input [N,{','.join(map(str, wanted))}] "
            f"for the pre-processing {name!r}; choose another with --preprocess"
        )
    for axis, size in zip(inputs[0].type.tensor_type.shape.dim, (1, *wanted)):
        axis.dim_value = size
    return str(inputs[0].name)
