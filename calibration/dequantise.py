"""Q/DQ networks read back: a float network, its ranges, and the layers that it keeps in floating point.

Taken as Model Optimizer, PyTorch and ONNX Runtime write them: `x -> QuantizeLinear -> DequantizeLinear` in front of a
reader or behind a maker, weights in float behind a pair or stored as integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibration.errors import CalibrationError
from calibration.qdq_weights import Weights
from calibration.quantiser import DEQUANTISE, QUANTISE, Quantiser, quantiser
from engines.graph import Graph, layer_names, read_graph
from engines.onnx_model import with_batch
from engines.spec import INT8_MAX, Ranges
from engines.unchanged import spread

if TYPE_CHECKING:
    import onnx

FLOATS = ("float32", "float16", "float64")
METHOD = "qdq"


@dataclass(frozen=True)
class FloatNetwork:
    """A network without Q/DQ nodes, the ranges that they held, and the layers that read floating point.

    `graph` is the network read at batch 1; `notes` says what is not exactly as the network had it.
    """

    model: onnx.ModelProto
    graph: Graph
    ranges: Ranges
    fp16_layers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def layer_precisions(self) -> str:
        """What `trtexec --layerPrecisions` takes; CalibrationError where a layer's name cannot stand there."""
        odd = next((name for name in self.fp16_layers if "," in name), None)
        if odd is not None:
            raise CalibrationError(
                f"layer {odd!r} has a comma in its name, which trtexec takes for the next; rename it"
            )
        return ",".join(f"{name}:fp16" for name in self.fp16_layers)


def read_qdq(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> FloatNetwork:
    """Take the Q/DQ nodes out of a network that has some; `shapes` are those of inputs that have none.

    Tensors whose values only move get the range of those beside them, outputs of the network without Q/DQ none. A layer
    is FP16 where it reads a tensor that has no range, or one before it is rounded. CalibrationError names the tensor
    where the DLA cannot have it so: asymmetric, scaled by channel, a pair of two different scales.
    """
    import onnx

    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if not any(node.op_type in (QUANTISE, DEQUANTISE) for node in model.graph.node):
        raise CalibrationError(f"network {model.graph.name!r} has no {QUANTISE}, expected Q/DQ pairs; calibrate it")
    taken = _Taken(model.graph)
    clean = _with_graph(model, taken.graph())
    graph = read_graph(with_batch(clean, 1), model.graph.name or "network", shapes)
    amax = spread(graph, taken.amax)
    fp16_layers = tuple(taken.float_readers(graph, amax))
    return FloatNetwork(clean, graph, Ranges(amax, METHOD, 0), fp16_layers, (*taken.weights.notes, *taken.notes))


def _with_graph(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    made.opset_import.extend(model.opset_import)
    made.graph.CopyFrom(graph)
    return made


class _Taken:
    """A graph whose Q/DQ nodes are taken out: nodes that stay, ranges, and which inputs were read unrounded."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._source = graph
        self.weights = Weights(graph)
        self.amax: dict[str, float] = {}
        self.notes: list[str] = []
        self._pairs: dict[str, Quantiser] = {}
        self._alias: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._unrounded: list[set[str]] = []
        for node in graph.node:
            self._take(node)
        self._settle_outputs()
        for node, name in zip(self._nodes, layer_names(self._nodes), strict=True):
            node.name = name

    def _take(self, node: onnx.NodeProto) -> None:
        if self.weights.take(node):
            return
        if node.op_type == QUANTISE:
            self._quantise(node)
        elif node.op_type == DEQUANTISE:
            self._dequantise(node)
        else:
            self._keep(node)

    def _quantise(self, node: onnx.NodeProto) -> None:
        name = self._root(node.input[0])
        found = quantiser(node, self.weights.values, name)
        if found.scale.ndim:
            raise CalibrationError(
                f"tensor {name!r} has {found.scale.size} scales, one a channel, expected one: the DLA takes one scale a"
                " tensor; quantise activations by tensor"
            )
        amax = float(found.scale) * INT8_MAX
        if self.amax.get(name, amax) != amax:
            self.notes.append(f"tensor {name!r} is rounded with more than one scale: the largest is kept")
        self.amax[name] = max(amax, self.amax.get(name, amax))
        self._pairs[node.output[0]] = Quantiser(name, found.scale, 0, found.kind)

    def _dequantise(self, node: onnx.NodeProto) -> None:
        pair = self._pairs.get(node.input[0])
        if pair is None:
            raise CalibrationError(
                f"tensor {node.input[0]!r} is an integer already, expected QuantizeLinear in front of DequantizeLinear;"
                " export the network with float inputs and Q/DQ pairs"
            )
        if not quantiser(node, self.weights.values, pair.tensor, pair.kind).agrees(pair):
            raise CalibrationError(
                f"tensor {pair.tensor!r} is quantised and dequantised with different scales; export it again"
            )
        self._alias[node.output[0]] = pair.tensor

    def _keep(self, node: onnx.NodeProto) -> None:
        import onnx

        integer = next((name for name in node.input if name in self._pairs), None)
        if integer is not None:
            raise CalibrationError(
                f"tensor {self._pairs[integer].tensor!r} goes as INT8 into {node.op_type} {node.name!r}, expected"
                " DequantizeLinear behind QuantizeLinear; export the network in Q/DQ form"
            )
        self._check_inner(node)
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        kept.input[:] = [self._root(name) for name in node.input]
        self._nodes.append(kept)
        self._unrounded.append({name for name in node.input if name not in self._alias})

    def _check_inner(self, node: onnx.NodeProto) -> None:
        """Refuse a subgraph that reads what a pair makes: it names tensors that are gone."""
        inner = {name for entry in node.attribute for each in entry.g.node for name in each.input}
        gone = next((name for name in sorted(inner) if name in self._alias or name in self.weights.renamed), None)
        if gone is not None:
            raise CalibrationError(f"{node.op_type} {node.name!r} reads {gone!r} in a branch; export without branches")

    def _root(self, name: str) -> str:
        """Return what a node reads in place of a tensor that a pair or a restored weight made."""
        return self._alias.get(name) or self.weights.renamed.get(name, name)

    def _settle_outputs(self) -> None:
        """Let the outputs of the network be made under their names again where a pair made them."""
        from onnx.helper import make_node

        names = {value.name for value in self._source.output}
        for output in (value.name for value in self._source.output):
            if output in self._pairs:
                raise CalibrationError(
                    f"output {output!r} is INT8, expected DequantizeLinear behind it; export it again"
                )
            root = self._root(output)
            if root == output:
                continue
            if root not in names and any(root in node.output for node in self._nodes):
                self._rename(root, output)
            else:
                self._nodes.append(make_node("Identity", [root], [output], f"{output}_Identity"))
                self._unrounded.append(set())
                if root in self.amax:
                    self.amax[output] = self.amax[root]

    def _rename(self, old: str, new: str) -> None:
        for node in self._nodes:
            for ends in (node.input, node.output):
                ends[:] = [new if name == old else name for name in ends]
        self._unrounded = [{new if name == old else name for name in read} for read in self._unrounded]
        self._alias = {made: new if root == old else root for made, root in self._alias.items()}
        self.amax = {new if name == old else name: amax for name, amax in self.amax.items()}

    def graph(self) -> onnx.GraphProto:
        """Return the graph without the nodes that were taken, and without constants that nothing reads any more."""
        from onnx.helper import make_graph
        from onnx.numpy_helper import from_array

        read = {name for node in self._nodes for name in node.input}
        read.update(value.name for value in self._source.output)
        nodes = [node for node in self._nodes if node.op_type != "Constant" or node.output[0] in read]
        stored = [tensor for tensor in self._source.initializer if tensor.name in read]
        known = {tensor.name for tensor in stored}.union(*(node.output for node in nodes))
        restored = [name for name in dict.fromkeys(self.weights.renamed.values()) if name in read - known]
        stored.extend(from_array(self.weights.values[name], name) for name in restored)
        between = {name for node in nodes for name in node.output} - {value.name for value in self._source.output}
        shapes = [value for value in self._source.value_info if value.name in between]
        return make_graph(nodes, self._source.name, self._inputs(read), self._source.output, stored, value_info=shapes)

    def _inputs(self, read: set[str]) -> list[onnx.ValueInfoProto]:
        """Return the inputs, without weights that old files list among them and nothing reads any more."""
        constants = {tensor.name for tensor in self._source.initializer}
        return [value for value in self._source.input if value.name in read or value.name not in constants]

    def float_readers(self, graph: Graph, amax: Mapping[str, float]) -> list[str]:
        """Return the layers that compute in floating point, in the graph's order.

        A tensor is read so for good where it has no range, or one of its own pair that the layer passes over.
        """
        unrounded = {node.name: read for node, read in zip(self._nodes, self._unrounded, strict=True)}
        for_good = {
            name
            for name, tensor in graph.tensors.items()
            if tensor.dtype in FLOATS and (name not in amax or name in self.amax)
        }
        return [
            layer.name
            for layer in graph.layers
            if any(graph.tensors[name].dtype in FLOATS for name in layer.outputs)
            and for_good.intersection(layer.inputs, unrounded[layer.name])
        ]
