"""Build logs read back: rendered from recorded cases, and hand-written ones of the forms that users quote."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dla.errors import DlaError
from dla.log_placement import confusion, real_placement
from dla.logs import parse_log, read_log
from dla.placement import LayerPlacement, Placement
from engines.graph import Graph, Layer, Tensor

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "dla_cases"
VERBOSE_CASES = ("c01_resnet50_tv_int8_trt10.3", "c03_detr_r50_fp16_trt10.3")
DEVICES = {"DLA": "dla", "DLA_CANDIDATE": "dla", "GPU": "gpu", "FOLDED_OR_FUSED": "folded"}
MIB = 1 << 20


def trtexec(severity, text):
    return f"[09/10/2025-14:03:21] [{severity}] [TRT] {text}"


def python_api(severity, text):
    return f"[09/10/2025-14:03:21] [TRT] [{severity}] {text}"


def coloured(severity, text):
    return f"\x1b[33m[{severity}] [TRT] {text}\x1b[0m\r\n"


def graph_of(nodes):
    """A graph with nothing but names: what reading a log needs."""
    layers = [Layer(name, op, tuple(inputs), (), tuple(outputs), {}, 0) for name, op, inputs, outputs in nodes]
    tensors = {name: Tensor(name, (1, 1, 1, 1), "float32") for layer in layers for name in layer.inputs + layer.outputs}
    return Graph("small", 17, layers[0].inputs, layers[-1].outputs, tuple(layers), tensors)


def chain(*names):
    """A graph of nodes in a row; the operator is the name up to the first underscore."""
    return graph_of([(name, name.split("_")[0], [f"t{i}"], [f"t{i + 1}"]) for i, name in enumerate(names)])


def predicted(graph, folded=()):
    """A prediction that knows nothing: all on the DLA, but for what is folded."""
    devices = {layer.name: "folded" if layer.name in folded else "dla" for layer in graph.layers}
    layers = (LayerPlacement(layer.name, layer.op, "", *[devices[layer.name]] * 2) for layer in graph.layers)
    return Placement("10.3", "int8", tuple(layers), (), (), ())


def places(placement):
    return {layer.node: layer.final for layer in placement.layers if layer.op}


def read(lines, graph, folded=()):
    return real_placement(parse_log(lines), graph, predicted(graph, folded))


@pytest.fixture(params=VERBOSE_CASES)
def case(request):
    path = CASES / f"{request.param}.json"
    if not path.is_file():
        pytest.skip("the recorded cases are not here")
    return json.loads(path.read_text())


def case_graph(case):
    return graph_of(
        (node["name"], node["op"], *([tensor["name"] for tensor in node[side]] for side in ("inputs", "outputs")))
        for node in case["onnx_nodes"]
    )


def pools(mib):
    return "Managed SRAM = {} MiB, Local DRAM = {} MiB, Global DRAM = {} MiB".format(*mib)


def render(case, form):
    """The verbose log of a case in TensorRT's order: reasons, candidates, the limit, loadables, the engine."""
    trt = case["trt"]
    reasons = {entry["name"]: entry["message"] for entry in trt["reason_messages"]}
    yield f"&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # {case['cmd']}"
    for warning in trt["unsupported_on_dla_warnings"]:
        name = warning["name"]
        if name in reasons:
            yield form("W", f"{name}: {reasons[name]}")
        unsupported = "Unsupported on DLA. Switching this layer's device type to GPU."
        yield form("W", f"Layer '{name}' ({warning['type']}): {unsupported}")
    yield form("V", "---------- Layers Running on DLA ----------")
    yield from (form("V", f"[DlaLayer] CONVOLUTION: {name}") for name in trt["layers_running_on_dla"])
    yield form("V", "---------- Layers Running on GPU ----------")
    yield from (form("V", f"[GpuLayer] {entry['type']}: {entry['name']}") for entry in trt["layers_running_on_gpu"])
    for name in trt["subgraph_limit_switched_to_gpu"]:
        yield form("W", f"DLA supports only 16 subgraphs per DLA core. Switching to GPU for layer {name}")
    for loadable in trt["foreign_nodes_offloaded"]:
        yield form("V", f"{loadable['node']} successfully offloaded to DLA.")
        yield form("V", "Memory consumption details:")
        yield form("V", f"Pool Sizes: {pools((1, 1024, 512))}")
        yield form("V", f"Required: {pools(loadable['mem_mib'])}")
    kept, found = trt["candidates_offloaded_of"]
    yield form("V", f"Number of DLA node candidates offloaded : {kept} out of {found}")
    yield form("V", f"Total memory required by accepted candidates: {pools((16, 4096, 4096))}")
    for loadable in trt["dla_loadables_final"]:
        yield form("V", "DLA Network Layer Information:")
        for layer in loadable["layers"]:
            yield f"Layer({layer['type']}): {layer['name']}, Precision: {layer['precision']}"
    yield form("V", "Engine Layer Information:")
    nodes = [node["name"] for node in case["onnx_nodes"]]
    yield f"Layer(Myelin): {{ForeignNode[{nodes[0]}...{nodes[-1]}]}}, Tactic: 0x0000000000000000,  -> y (Half[1,1])"
    yield from (f"Layer(DLA): {entry['node']}, Tactic: 0x3, x (Int8[1]) -> y" for entry in trt["dla_loadables_final"])
    yield "&&&& PASSED TensorRT.trtexec [TensorRT v100300]"


@pytest.mark.parametrize("form", [trtexec, python_api, coloured])
def test_a_verbose_log_gives_back_its_case(case, form):
    real = read(render(case, form), case_graph(case))
    found = {layer.node: (layer.candidate, layer.final) for layer in real.layers if layer.op}
    assert found == {
        node["name"]: (DEVICES[node["trt_assignment"]], DEVICES[node["final_assignment"]])
        for node in case["onnx_nodes"]
    }
    assert real.tensorrt == "10.3.0"
    assert (len(real.kept), len(real.candidates)) == tuple(case["trt"]["candidates_offloaded_of"])
    parts = [
        [layer["name"].split(" + ")[0] for layer in entry["layers"]] for entry in case["trt"]["dla_loadables_final"]
    ]
    assert sorted(map(list, real.loadables)) == sorted(parts)
    needed = {tuple(loadable.pools_bytes.values()) for loadable in real.kept}
    assert needed == {
        tuple(size * MIB for size in entry["mem_mib"]) for entry in case["trt"]["foreign_nodes_offloaded"]
    }


def test_each_reason_of_a_case_stands_at_its_node(case):
    real = read(render(case, trtexec), case_graph(case))
    said = {layer.node: layer for layer in real.layers}
    for node in case["onnx_nodes"]:
        if "reason" in node:
            assert said[node["name"]].message == f"{node['name']}: {node['reason']}"
        elif node.get("lost_to_16_subgraph_limit_head_of_group"):
            assert said[node["name"]].rule == "loadable-limit"
    dropped = sum(node["trt_assignment"] != "GPU" and node["final_assignment"] == "GPU" for node in case["onnx_nodes"])
    assert sum(layer.rule == "loadable-limit" for layer in real.layers) == dropped


def test_confusion_counts_what_a_careless_prediction_got_wrong(case):
    graph = case_graph(case)
    careless = predicted(graph)
    found = confusion(careless, real_placement(parse_log(render(case, trtexec)), graph, careless))
    assert found.final == Counter(("dla", DEVICES[node["final_assignment"]]) for node in case["onnx_nodes"])
    assert found.candidate == Counter(("dla", DEVICES[node["trt_assignment"]]) for node in case["onnx_nodes"])
    wrong = [node["name"] for node in case["onnx_nodes"] if node["final_assignment"] != "DLA"]
    assert [miss.node for miss in found.misses] == wrong
    assert found.unsaid == ()


# The lists that NVIDIA's DLA tutorial prints of TensorRT 8.4, informational messages only.
TUTORIAL = [f"Conv_{i}" if i % 2 == 0 else f"Relu_{i}" for i in range(8)]
POOLED = """
[03/31/2022-15:36:41] [I] [TRT] ---------- Layers Running on DLA ----------
[03/31/2022-15:36:41] [I] [TRT] [DlaLayer] {ForeignNode[Conv_0...Relu_7]}
[03/31/2022-15:36:41] [I] [TRT] [DlaLayer] {ForeignNode[Gemm_15 + linear.bias + (Unnamed Layer* 19) [Shuffle] + \
unsqueeze_node_after_linear.bias + ... + (Unnamed Layer* 20) [ElementWise]]}
[03/31/2022-15:36:41] [I] [TRT] ---------- Layers Running on GPU ----------
[03/31/2022-15:36:41] [I] [TRT] [GpuLayer] REDUCE: GlobalAveragePool_8
[03/31/2022-15:36:41] [I] [TRT] [GpuLayer] SHUFFLE: copied_squeeze_after_(Unnamed Layer* 20) [ElementWise]
"""
WINDOWED = """
[04/28/2022-10:11:12] [I] TensorRT version: 8.4.0
[04/28/2022-10:11:12] [I] [TRT] ---------- Layers Running on DLA ----------
[04/28/2022-10:11:12] [I] [TRT] [DlaLayer] {ForeignNode[Conv_0...Gemm_15]}
[04/28/2022-10:11:12] [I] [TRT] ---------- Layers Running on GPU ----------
[04/28/2022-10:11:12] [I] [TRT] [GpuLayer] SHUFFLE: reshape_after_Gemm_15
"""


def test_a_plain_log_names_loadables_by_their_ends():
    graph = chain(*TUTORIAL, "GlobalAveragePool_8", "Flatten_14", "Gemm_15")
    real = read(POOLED.splitlines(), graph, folded=("Flatten_14",))
    assert real.loadables == (tuple(TUTORIAL), ("Gemm_15",))
    assert places(real)["GlobalAveragePool_8"] == "gpu" and places(real)["Flatten_14"] == "folded"
    assert real.gpu_layers == ("GlobalAveragePool_8", "copied_squeeze_after_(Unnamed Layer* 20) [ElementWise]")


def test_what_is_folded_inside_a_loadable_does_not_run_on_it():
    graph = chain(*TUTORIAL, "AveragePool_8", "Flatten_14", "Gemm_15")
    real = read(WINDOWED.splitlines(), graph, folded=("Flatten_14",))
    assert real.loadables == ((*TUTORIAL, "AveragePool_8", "Gemm_15"),)
    assert real.gpu_layers == ("reshape_after_Gemm_15",) and not real.zero_gpu_layers
    assert real.tensorrt == "8.4.0"


GROUP_NORM = """
[W] [TRT] Default DLA is enabled but layer InstanceNormalization_5 is not supported on DLA, falling back to GPU.
[I] [TRT] ---------- Layers Running on DLA ----------
[I] [TRT] [DlaLayer] {ForeignNode[Conv_0]}
[I] [TRT] [DlaLayer] {ForeignNode[Relu_10...Conv_11]}
[I] [TRT] ---------- Layers Running on GPU ----------
[I] [TRT] [GpuLayer] SHUFFLE: Reshape_2 + (Unnamed Layer* 7) [Shuffle]
[I] [TRT] [GpuLayer] PLUGIN_V2: InstanceNormalization_5
[I] [TRT] [GpuLayer] SHUFFLE: (Unnamed Layer* 12) [Shuffle] + Reshape_7
[I] [TRT] [GpuLayer] SCALE: 71 + (Unnamed Layer* 16) [Shuffle] + Mul_8
[I] [TRT] [GpuLayer] SCALE: 72 + (Unnamed Layer* 19) [Shuffle] + Add_9
"""


def test_a_fused_gpu_layer_names_each_of_its_nodes():
    names = ("Conv_0", "Reshape_2", "InstanceNormalization_5", "Reshape_7", "Mul_8", "Add_9", "Relu_10", "Conv_11")
    real = read(GROUP_NORM.splitlines(), chain(*names))
    on_dla = ("Conv_0", "Relu_10", "Conv_11")
    assert places(real) == {name: "dla" if name in on_dla else "gpu" for name in names}
    said = {layer.node: layer for layer in real.layers}
    assert "InstanceNormalization_5 is not supported on DLA" in said["InstanceNormalization_5"].message
    assert said["InstanceNormalization_5"].trt_layer == "PLUGIN_V2"


def test_a_myelin_region_is_the_gpus():
    log = """[TRT] [I] ---------- Layers Running on DLA ----------
[TRT] [I] [DlaLayer] {ForeignNode[Conv_0...Relu_1]}
[TRT] [I] ---------- Layers Running on GPU ----------
[TRT] [I] [GpuLayer] MYELIN: {ForeignNode[MatMul_2...Softmax_4]}"""
    real = read(log.splitlines(), chain("Conv_0", "Relu_1", "MatMul_2", "Mul_3", "Softmax_4"))
    assert real.loadables == (("Conv_0", "Relu_1"),)
    assert real.gpu_layers == ("MatMul_2", "Mul_3", "Softmax_4")


def test_what_was_announced_but_not_offloaded_is_the_gpus():
    log = """[V] [TRT] ---------- Layers Running on DLA ----------
[V] [TRT] [DlaLayer] CONVOLUTION: Conv_0
[V] [TRT] [DlaLayer] SLICE: Slice_1
[V] [TRT] [DlaLayer] CONVOLUTION: Conv_2
[V] [TRT] ---------- Layers Running on GPU ----------
[W] [TRT] Validation failed for DLA layer: Slice_1. Switching to GPU fallback.
[I] [TRT] {ForeignNode[Conv_0]} successfully offloaded to DLA.
[I] [TRT] {ForeignNode[Conv_2]} successfully offloaded to DLA."""
    real = read(log.splitlines(), chain("Conv_0", "Slice_1", "Conv_2"))
    slice_ = real.layers[1]
    assert real.loadables == (("Conv_0",), ("Conv_2",))
    assert (slice_.candidate, slice_.final) == ("dla", "gpu") and "Validation failed" in slice_.message


def test_a_node_without_a_name_goes_by_its_output():
    log = """[I] [TRT] ---------- Layers Running on DLA ----------
[I] [TRT] [DlaLayer] {ForeignNode[node_of_9...node_of_10]}
[I] [TRT] ---------- Layers Running on GPU ----------
[I] [TRT] [GpuLayer] SHUFFLE: node_of_11 + node_of_12"""
    graph = graph_of(
        (f"{op}_{i}", op, [str(8 + i)], [str(9 + i)]) for i, op in enumerate("Conv Relu Reshape Cos".split())
    )
    assert list(places(read(log.splitlines(), graph)).values()) == ["dla", "dla", "gpu", "gpu"]


def test_a_node_of_several_layers_is_the_gpus_where_one_of_them_is():
    log = """[V] [TRT] ---------- Layers Running on DLA ----------
[V] [TRT] [DlaLayer] CONVOLUTION: Conv
[V] [TRT] [DlaLayer] SLICE: Split
[V] [TRT] ---------- Layers Running on GPU ----------
[V] [TRT] [GpuLayer] SLICE: Split_3
[V] [TRT] {ForeignNode[Conv...Split]} successfully offloaded to DLA."""
    assert places(read(log.splitlines(), chain("Conv", "Split"))) == {"Conv": "dla", "Split": "gpu"}


def test_a_network_that_stays_off_the_dla():
    log = [
        "[W] [TRT] Default DLA is enabled but layer TopK_0 is not supported on DLA, falling back to GPU.",
        "[W] [TRT] setDefaultDeviceType was called but no layer in the network can run on DLA.",
        "[I] [TRT] ---------- Layers Running on GPU ----------",
        "[I] [TRT] [GpuLayer] TOPK: TopK_0",
    ]
    real = read(log, chain("TopK_0"))
    assert real.loadables == () and real.gpu_layers == ("TopK_0",)


# The catalogue of messages: what TensorRT says, and of which layer.
MESSAGES = {
    "Default DLA is enabled but layer /a/Mish is not supported on DLA, falling back to GPU.": "/a/Mish",
    "DLA Layer Conv_3 does not support dynamic shapes in any dimension.": "Conv_3",
    "/m.22/Div: DLA cores do not support DIV ElementWise operation.": "/m.22/Div",
    "/avgpool/Pool: DLA cores do not support AVG Reduce operation.": "/avgpool/Pool",
    "a (b): MatMul is unsupported on DLA, relax constraints or use Convolution layer instead.": "a (b)",
    "/IsNaN: Unary operation: ISNAN is not supported on DLA.": "/IsNaN",
    "/Concat: DLA only supports concatenation on the C dimension.": "/Concat",
    "route_3: Concatenation on DLA requires at least two inputs.": "route_3",
    "/Expand_1: DLA only supports slicing 4 dimensional tensors.": "/Expand_1",
    "/Tile_1: DLA does not support out-of-bounds slice operation. Set slice mode to SliceMode::kDEFAULT": "/Tile_1",
    "leaky_1: ActivationLayer (with ActivationType = LEAKY_RELU) not supported for DLA.": "leaky_1",
    "Validation failed for DLA layer: /a.b/Slice. Switching to GPU fallback.": "/a.b/Slice",
    "Splitting DLA subgraph at: /Reshape because DLA validation failed for this layer.": "/Reshape",
    "DLA LAYER: Batch size (combined volume except for CHW dimensions) 128 for layer EltWise exceeds max batch size "
    "allowed of 32.": "EltWise",
    "DLA only supports FP16 and Int8 precision type. Switching /Gather device type to GPU.": "/Gather",
}


@pytest.mark.parametrize("message,layer", MESSAGES.items(), ids=MESSAGES.values())
def test_each_message_of_the_catalogue_is_understood(message, layer):
    log = parse_log([trtexec("W", message), trtexec("I", "---------- Layers running on GPU ----------")])
    assert log.reasons == {layer: message} and log.dropped == ()


def test_a_warning_that_refuses_nothing_is_no_refusal():
    lines = [
        "Input tensor has less than 4 dimensions for /Add. At least one shuffle layer will be inserted which cannot "
        "run on DLA.",
        "DLA Softmax optimization is enabled because the volume of non-axis dimensions is greater than 1.",
        "---------- Layers Running on DLA ----------",
    ]
    log = parse_log(trtexec("W", line) for line in lines)
    assert log.refused == {} and log.reasons == {}


@pytest.mark.parametrize(
    "head,version",
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8401] # trtexec", "8.4.1"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec", "8.6.2"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec", "10.3.0"),
        ("[09/10/2025-14:03:21] [I] TensorRT version: 10.3.0", "10.3.0"),
    ],
)
def test_the_version_that_built_it(head, version):
    assert parse_log([head, trtexec("I", "---------- Layers Running on DLA ----------")]).tensorrt == version


REFUSED = {
    "no log at all": ("hello\nworld\n", "is no TensorRT log"),
    "empty": ("", "is no TensorRT log"),
    "no DLA": ("[I] [TRT] Engine generated in 3.2 seconds.\n", "build with --useDLACore=0"),
    "failed": (
        "[E] [TRT] 10: Could not find any implementation for node {ForeignNode[/cnn/cnn.0/Conv]}.\n",
        "the build failed: 10: Could not find any implementation",
    ),
}


@pytest.mark.parametrize("text,says", REFUSED.values(), ids=REFUSED)
def test_a_log_that_says_nothing_is_one_line(text, says, tmp_path):
    path = tmp_path / "build.log"
    path.write_text(text)
    with pytest.raises(DlaError, match="build.log") as error:
        read_log(path)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_binary_file_is_no_log(tmp_path):
    path = tmp_path / "engine.plan"
    path.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(DlaError, match="is no TensorRT log"):
        read_log(path)


def test_the_log_of_another_network_is_refused():
    with pytest.raises(DlaError, match="names none of the 2 nodes"):
        read(POOLED.splitlines(), chain("/a/Conv", "/a/Relu"))
