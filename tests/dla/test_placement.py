import numpy as np
import pytest

from dla.errors import DlaError
from dla.partition import Step, keep_largest, partition
from dla.placement import place
from dla.rewrite import rewrite
from engines import zoo
from engines.graph import read_graph
from tests.dla.networks import CUSTOM_DOMAIN, conv, model, node


def loadables(nodes, outputs=("y",), inputs=None, weights=None, **more):
    network = model(nodes, inputs or {"x": (1, 4, 8, 8)}, dict.fromkeys(outputs), weights, **more)
    return place(read_graph(network)).loadables


def test_resnet50_as_exported_has_two_gpu_layers():
    placement = place(zoo.graph("resnet50"))
    assert placement.gpu_layers == ("avgpool", "reshape_after_fc")
    assert placement.device_by_layer == {"avgpool": "gpu"}
    assert [len(group) for group in placement.loadables] == [119, 1]
    assert not placement.zero_gpu_layers


def test_resnet50_rewritten_is_one_loadable_and_leaves_the_gpu_alone():
    network, changes = rewrite(zoo.model("resnet50", with_weights=False), ("global-pool", "gemm-to-conv", "cut-tail"))
    graph = read_graph(network)
    placement = place(graph)
    assert placement.zero_gpu_layers
    assert [len(group) for group in placement.loadables] == [len(graph.layers)]
    assert {entry.final for entry in placement.layers} == {"dla"}
    assert [change.rewrite for change in changes] == ["global-pool", "gemm-to-conv"]
    assert graph.tensors["logits"].shape == (1, 1000, 1, 1)


def test_a_gpu_layer_cuts_a_chain():
    nodes = [node("Relu", "x", "a"), node("Elu", "a", "b"), node("Relu", "b", "c"), node("Sigmoid", "c", "y")]
    assert loadables(nodes) == (("a_node",), ("c_node", "y_node"))


def test_a_branch_around_a_gpu_layer_does_not_close_a_cycle():
    # a -> Elu -> y and a -> b -> y: {a, b, y} in one piece would wait for what waits for itself.
    nodes = [node("Relu", "x", "a"), node("Elu", "a", "e"), node("Relu", "a", "b"), node("Add", "b e", "y")]
    assert loadables(nodes) == (("a_node", "b_node"), ("y_node",))


def test_a_branch_from_elsewhere_does_not_cut():
    nodes = [node("Relu", "x", "a"), node("Elu", "z", "e"), node("Add", "a e", "y")]
    assert loadables(nodes, inputs={"x": (1, 4, 8, 8), "z": (1, 4, 8, 8)}) == (("a_node", "y_node"),)


def test_two_loadables_never_wait_for_each_other():
    # a -> gpu -> w and b -> gpu -> v; v also reads a, w also reads b: {a, v} and {b, w} would wait for each other.
    steps = [
        Step("a", (), batch=1),
        Step("b", (), batch=1),
        Step("g1", ("a",)),
        Step("g2", ("b",)),
        Step("v", ("a", "g2"), batch=1),
        Step("w", ("b", "g1"), batch=1),
    ]
    assert partition(steps) == (("a", "b"), ("v", "w"))


def test_siblings_that_do_not_touch_share_a_loadable_as_q_k_and_v_do():
    steps = [
        Step("gpu", ()),
        Step("q", (), ("gpu",), batch=850),
        Step("k", (), ("gpu",), batch=850),
        Step("v", (), ("gpu",), batch=850),
        Step("product", ("q", "k", "v")),
        Step("out", ("product",), batch=850),
    ]
    assert partition(steps) == (("q", "k", "v"), ("out",))


def test_another_batch_and_a_shuffle_in_between_cut():
    assert partition([Step("a", (), batch=1), Step("b", ("a",), batch=2), Step("c", ("b",), batch=2)]) == (
        ("a",), ("b", "c")
    )  # fmt: skip
    assert partition([Step("a", (), batch=1), Step("b", (), ("a",), batch=1)]) == (("a",), ("b",))


def _reaches(reads, start, target, inside):
    """Whether a layer outside the group lies between the group and one of its members."""
    waiting, seen = [name for name in reads[start] if name not in inside], set()
    while waiting:
        name = waiting.pop()
        if name in target:
            return True
        if name not in seen:
            seen.add(name)
            waiting += reads[name]
    return False


@pytest.mark.parametrize("seed", range(20))
def test_no_group_of_a_random_network_waits_for_itself(seed):
    rng = np.random.default_rng(seed)
    steps, reads = [], {}
    for index in range(60):
        chosen = rng.choice(index, min(index, int(rng.integers(1, 4))), replace=False) if index else []
        name, reads[str(index)] = str(index), [str(entry) for entry in chosen]
        steps.append(Step(name, tuple(reads[name]), batch=None if rng.random() < 0.3 else int(rng.random() < 0.8)))
    groups = partition(steps)
    assert sorted(name for group in groups for name in group) == sorted(s.name for s in steps if s.batch is not None)
    for group in groups:
        members = set(group)
        assert len({step.batch for step in steps if step.name in members}) == 1
        assert not any(_reaches(reads, name, members, members) for name in group)


def test_the_largest_groups_are_kept_in_their_order():
    groups = (("a",), ("b", "c"), ("d",), ("e", "f", "g"))
    assert [keep_largest(groups, limit) for limit in (1, 2, 3)] == [groups[3:], (groups[1], groups[3]), (
        groups[0], groups[1], groups[3]
    )]  # fmt: skip


def test_tensors_of_less_than_four_axes_cut_and_cost_shuffles():
    nodes = [node("Gemm", "x w", "a"), node("Relu", "a", "y")]
    network = model(nodes, {"x": (2, 8)}, {"y": None}, {"w": (8, 4)})
    placement = place(read_graph(network))
    assert placement.loadables == (("a_node",), ("y_node",))
    assert placement.gpu_layers == (
        "reshape_before_a_node",
        "reshape_after_a_node",
        "reshape_before_y_node",
        "reshape_after_y_node",
    )
    assert placement.device_by_layer == {}


def test_a_flatten_between_pool_and_gemm_is_absorbed():
    # As TensorRT 8.4 did for a small classifier on AGX Orin: one loadable, and the shuffle after the Gemm on the GPU.
    nodes = [
        conv("x", "a", "w"),
        node("AveragePool", "a", "p", kernel_shape=[2, 2]),
        node("Flatten", "p", "f"),
        node("Gemm", "f v", "y"),
    ]
    network = model(nodes, {"x": (32, 3, 4, 4)}, {"y": None}, {"w": (8, 3, 3, 3), "v": (8, 10)})
    placement = place(read_graph(network))
    assert placement.loadables == (("a_node", "p_node", "y_node"),)
    assert placement.gpu_layers == ("reshape_after_y_node",)


def test_a_flatten_of_a_larger_map_is_the_gpus():
    nodes = [node("Relu", "x", "a"), node("Flatten", "a", "f"), node("Gemm", "f v", "y")]
    network = model(nodes, {"x": (1, 2, 2, 2)}, {"y": None}, {"v": (8, 10)})
    placement = place(read_graph(network))
    assert placement.gpu_layers == ("f_node", "reshape_before_y_node", "reshape_after_y_node")


def test_beyond_the_limit_the_largest_loadables_stay_and_ties_go_to_the_first():
    # Three chains of 1, 2 and 2 layers, cut by Elu.
    ops = ["Relu", "Elu", "Relu", "Relu", "Elu", "Relu", "Relu"]
    names = ["x", *"abcdefy"[: len(ops) - 1], "y"]
    nodes = [node(op, names[index], names[index + 1]) for index, op in enumerate(ops)]
    network = model(nodes, {"x": (1, 4, 8, 8)}, {"y": None})
    two, one = (place(read_graph(network), limit=limit) for limit in (2, 1))
    assert two.loadables == (("c_node", "d_node"), ("f_node", "y_node"))
    assert one.loadables == (("c_node", "d_node"),)
    dropped = {entry.node: entry for entry in one.layers if entry.rule == "loadable-limit"}
    assert set(dropped) == {"a_node", "f_node", "y_node"}
    assert (dropped["y_node"].candidate, dropped["y_node"].final) == ("dla", "gpu")
    assert dropped["y_node"].message == (
        "DLA supports only 1 subgraphs per DLA core. Switching to GPU for layer f_node"
    )


def test_constants_identities_and_dropout_are_folded():
    nodes = [node("Relu", "x", "a"), node("Identity", "a", "b"), node("Dropout", "b", "c"), node("Relu", "c", "y")]
    network = model(nodes, {"x": (1, 4, 8, 8)}, {"y": None})
    placement = place(read_graph(network))
    assert [entry.final for entry in placement.layers] == ["dla", "folded", "folded", "dla"]
    assert placement.loadables == (("a_node", "y_node"),)
    assert placement.zero_gpu_layers


def test_a_custom_operator_is_one_gpu_layer():
    nodes = [node("Relu", "x", "a"), node("Fancy", "a", "f", domain=CUSTOM_DOMAIN)]
    entry = place(read_graph(model(nodes, {"x": (1, 4, 8, 8)}, {"f": None}))).layers[1]
    assert (entry.final, entry.trt_layer, entry.rule) == ("gpu", "PLUGIN", "plugin")
    assert "plugin needed" in entry.fix


def test_what_follows_an_operator_of_unknown_shape_is_said_to_be_unknown():
    nodes = [node("Fancy", "x", "f", domain=CUSTOM_DOMAIN), node("Relu", "f", "y")]
    network = model(nodes[:1], {"x": (1, 4, 8, 8)}, {"f": None})
    network.graph.node.append(nodes[1])
    assert [entry.rule for entry in place(read_graph(network)).layers] == ["plugin", "unknown-shape"]


def test_batch_normalisation_and_the_bias_of_a_matmul_go_into_the_convolution():
    nodes = [
        conv("x", "a", "w"),
        node("BatchNormalization", "a s s s s", "b"),
        node("Relu", "b", "y"),
    ]
    placement = place(read_graph(model(nodes, {"x": (1, 4, 8, 8)}, {"y": None}, {"w": (4, 4, 1, 1), "s": (4,)})))
    assert [(entry.trt_layer, entry.final) for entry in placement.layers] == [
        ("CONVOLUTION", "dla"), ("CONVOLUTION", "folded"), ("ACTIVATION", "dla")
    ]  # fmt: skip
    assert placement.kept[0].fusions == (("a_node", "y_node"),)
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "y")]
    placement = place(read_graph(model(nodes, {"x": (3, 8)}, {"y": None}, {"w": (8, 5), "b": (5,)})))
    assert [entry.final for entry in placement.layers if entry.op] == ["dla", "folded"]


def test_a_transpose_beside_a_reshape_of_the_gpu_is_the_gpus():
    nodes = [
        node("Relu", "x", "a"),
        node("Transpose", "a", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t s", "y"),
    ]
    inputs = {"x": (1, 4, 8, 8)}
    placement = place(read_graph(model(nodes, inputs, {"y": None}, {"s": np.array([1, 256])})))
    assert [entry.rule for entry in placement.layers] == [None, "shuffle-fused", "shuffle"]
    placement = place(read_graph(model(nodes, inputs, {"y": None}, {"s": np.array([1, 4, 4, 16])})))
    assert [entry.rule for entry in placement.layers] == [None, None, None]
    both = place(read_graph(model(nodes, inputs, {"y": None, "t": None}, {"s": np.array([1, 256])})))
    assert [entry.rule for entry in both.layers] == [None, None, "shuffle"]


def test_a_loadable_says_its_fusions_what_stays_in_sram_and_its_pools():
    # conv + sum + relu + pool run as one operation; the sum's other operand comes from an operation before.
    nodes = [
        conv("x", "a", "w"),
        conv("a", "b", "w"),
        node("Add", "b a", "c"),
        node("Relu", "c", "d"),
        node("MaxPool", "d", "y", kernel_shape=[2, 2]),
    ]
    placement = place(read_graph(model(nodes, {"x": (1, 4, 64, 64)}, {"y": None}, {"w": (4, 4, 1, 1)})))
    (loadable,) = placement.kept
    assert loadable.fusions == (("b_node", "c_node", "d_node", "y_node"),)
    assert loadable.chained == ("a",)  # 32 channels after padding x 64 x 64 = 128 KiB; y leaves the network
    assert loadable.pools_bytes["DLA_MANAGED_SRAM"] == 1 << 20
    large = place(read_graph(model(nodes, {"x": (1, 4, 256, 256)}, {"y": None}, {"w": (4, 4, 1, 1)})))
    assert large.kept[0].chained == ()  # 2 MiB


def test_pools_grow_with_the_tensors_alive_at_once_and_with_the_weights():
    # 64 x 4096 x 4096 bytes are 1 GiB; of a chain of three only two are alive at once, and twice that is asked for.
    nodes = [node("Relu", "x", "a"), node("Sigmoid", "a", "b"), node("Tanh", "b", "y")]
    placement = place(read_graph(model(nodes, {"x": (1, 64, 4096, 4096)}, {"y": None})))
    assert placement.kept[0].pools_bytes["DLA_LOCAL_DRAM"] == 4 << 30


def test_reformats_are_at_the_network_s_ends_and_where_the_gpu_feeds_the_dla():
    nodes = [node("Relu", "x", "a"), node("Elu", "a", "b"), node("Relu", "b", "y")]
    placement = place(read_graph(model(nodes, {"x": (1, 4, 8, 8)}, {"y": None})), precision="fp16")
    assert [(entry.tensor, entry.source, entry.target) for entry in placement.reformats] == [
        ("x", "LINEAR", "CHW16"), ("b", "LINEAR", "CHW16"), ("y", "CHW16", "LINEAR")
    ]  # fmt: skip
    assert "b_node" in placement.reformats[1].why
    assert (placement.tensorrt, placement.precision) == ("10.3", "fp16")


def test_a_precision_that_is_not_the_dlas_is_refused():
    graph = read_graph(model([node("Relu", "x", "y")], {"x": (1, 4, 8, 8)}, {"y": None}))
    with pytest.raises(DlaError, match="'fp32' is not one of the DLA's: int8, fp16"):
        place(graph, precision="fp32")
