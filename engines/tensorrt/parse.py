"""From an ONNX model to TensorRT's network: every result checked, errors with node and operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.errors import EngineError
from engines.graph import Graph
from engines.onnx_model import keeps_batch, with_batch
from engines.spec import EngineSpec
from engines.tensorrt.log import BuildLog
from engines.tensorrt.refusals import explain

if TYPE_CHECKING:
    import onnx

BATCH = "N"
MAX_MODEL_BYTES = (1 << 31) - 1  # of a protobuf message
ERRORS_SHOWN = 3


def batched(model: onnx.ModelProto, spec: EngineSpec) -> onnx.ModelProto:
    """Return the model with the batch that the engine is built for: symbolic on the GPU, static on the DLA.

    A GPU engine of batch 1 is static too. EngineError where the network cannot have that batch.
    """
    if spec.batch == 1:
        return with_batch(model, 1)
    if not keeps_batch(model, BATCH):
        raise EngineError(
            f"{spec.network}: a constant shape inside fixes its batch, so batch {spec.batch} cannot be built; "
            f"set {spec.device}_batch to 1, or export the network with a dynamic batch"
        )
    return with_batch(model, BATCH if spec.device == "gpu" else spec.batch)


def parse(parser: Any, model: onnx.ModelProto, name: str, log: BuildLog) -> None:
    """Parse a model into the parser's network, which it has to outlive: weights point into its memory."""
    size = model.ByteSize()
    if size > MAX_MODEL_BYTES:
        raise EngineError(f"{name} has {size} bytes, a model goes to TensorRT's parser in 2 GiB at most; split it")
    parsed = parser.parse(model.SerializeToString())
    errors = [_error(parser.get_error(index)) for index in range(parser.num_errors)]
    if errors:
        more = f" (and {len(errors) - ERRORS_SHOWN} more)" if len(errors) > ERRORS_SHOWN else ""
        raise EngineError(
            f"{name}: TensorRT's ONNX parser refuses {' | '.join(errors[:ERRORS_SHOWN])}{more}; `orin rewrite` changes "
            f"what it can, else export the network with other operators"
        )
    if not parsed:
        raise EngineError(f"{name}: TensorRT's ONNX parser refuses the model: {explain(log.errors)}")


def check_inputs(network: Any, graph: Graph) -> None:
    """Refuse a parsed network whose inputs or outputs are not the graph's."""
    inputs = tuple(network.get_input(index).name for index in range(network.num_inputs))
    outputs = tuple(network.get_output(index).name for index in range(network.num_outputs))
    if (inputs, outputs) != (graph.inputs, graph.outputs):
        raise EngineError(
            f"{graph.name}: TensorRT's parser sees inputs {list(inputs)} and outputs {list(outputs)}, "
            f"expected {list(graph.inputs)} and {list(graph.outputs)}; export the network again"
        )


def _error(error: Any) -> str:
    """Return one parser error as "node (operator): description"."""
    words = " ".join(str(error.desc()).split())
    node = error.node_name() or (f"node {error.node()}" if error.node() >= 0 else "the model")
    operator = error.node_operator()
    return f"{node} ({operator}): {words}" if operator else f"{node}: {words}"
