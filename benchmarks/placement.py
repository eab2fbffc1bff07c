"""Placement against what TensorRT did: recall over the published cases, single layers by operator, speed and memory.

Then what rewriting makes of the zoo and of the shapes that people bring.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from common import arguments, emit, median
from onnx import ModelProto, TensorProto, helper, save

from dla.placement import place
from dla.rewrite import rewrite_all
from engines.graph import read_graph
from engines.onnx_model import declared_tensor
from engines.zoo import NETWORKS
from engines.zoo import model as zoo_model
from tests.dla.cases import CASES
from tests.dla.excerpts import Case, Net, all_cases
from tests.dla.shapes import SHAPES
from tests.dla.sweep import expected, network, rows

GIB = 1 << 30
CLASSES = ("dla", "gpu", "folded")


def recall(cases: list[Case]) -> dict[str, object]:
    """Return, over all cases, how many nodes of each class and of each reason are predicted, and each wrong one."""
    right, total, said, asked = Counter(), Counter(), Counter(), Counter()
    wrong, each = [], []
    for case in cases:
        placement = place(read_graph(case.model), case.tensorrt, precision=case.precision)
        layers = {entry.node: entry for entry in placement.layers if entry.op}
        hits = sum(layers[node].candidate == device for node, device in case.real.items())
        for node, device in case.real.items():
            total[device] += 1
            right[device] += layers[node].candidate == device
            if layers[node].candidate != device:
                wrong.append([case.name, node, device, layers[node].candidate, layers[node].rule])
        for node, message in case.messages.items():
            asked[message] += 1
            said[message] += (layers[node].message or "").endswith(message)
        each.append(
            {
                "case": case.name,
                "board": case.board,
                "tensorrt": case.tensorrt,
                "precision": case.precision,
                "nodes": len(case.real),
                "right": hits,
                "final_nodes": len(case.final),
                "final_right": sum(layers[node].final == device for node, device in case.final.items()),
                "final_dla": [
                    sum(layers[node].final == "dla" for node in case.final),
                    sum(device == "dla" for device in case.final.values()),
                ],
                "loadables": [len(placement.candidates), case.candidates],
                "kept": [len(placement.kept), case.kept],
            }
        )
    return {
        "cases": each,
        "recall": {device: [right[device], total[device]] for device in CLASSES},
        "reasons": {message: [said[message], asked[message]] for message in asked},
        "wrong": wrong,
    }


def sweep(tensorrt: str) -> dict[str, object]:
    """Return how many rows of NVIDIA's table of operators agree for a layer alone, and those that do not."""
    apart, skipped, right = [], [], 0
    for op, says in rows():
        made = network(op)
        if made is None:
            skipped.append(op)
            continue
        seen = next(entry.candidate for entry in place(read_graph(made), tensorrt).layers if entry.node == "op")
        right += seen == expected(op, says, tensorrt == "10.3")
        if seen != expected(op, says, tensorrt == "10.3"):
            apart.append([op, says, seen])
    return {"tensorrt": tensorrt, "agree": right, "apart": apart, "skipped": skipped}


def chain(nodes: int) -> Net:
    """Return a network of residual blocks and, now and then, what the DLA does not take."""
    net = Net(1, 64, 56, 56)
    index = 0
    while len(net.nodes) < nodes - 5:
        skip = net.last if net.nodes else "x"
        net.add("Conv", f"conv{index}", (64, 64, 3, 3), pads=[1, 1, 1, 1])
        net.add("BatchNormalization", f"bn{index}", (64,), (64,), (64,), (64,))
        net.add("Relu", f"relu{index}")
        net.add("Add", f"add{index}", skip)
        if index % 7 == 0:
            net.add("Elu", f"elu{index}")
        index += 1
    while len(net.nodes) < nodes:
        net.add("Relu", f"last{len(net.nodes)}")
    return net


def seconds(nodes: int, runs: int) -> float:
    """Return the median time to read and place a file of that many nodes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        save(chain(nodes).model(), path)
        taken = []
        for _ in range(runs):
            start = time.perf_counter()
            place(read_graph(path))
            taken.append(time.perf_counter() - start)
    return median(taken)


def external_peak_bytes() -> int:
    """Return the process's peak memory after placing a network beside 2 GiB of external weights (a sparse file)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.onnx"
        features = 8192
        count = 2 * GIB // (features * features * 4)
        with (Path(folder) / "weights.bin").open("wb") as file:
            file.truncate(2 * GIB)
        weights = [_external(f"w{index}", features, index) for index in range(count)]
        nodes = [
            helper.make_node("Gemm", [f"t{index}", f"w{index}"], [f"t{index + 1}"], name=f"fc{index}")
            for index in range(count)
        ]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, features)) for name in ("t0", f"t{count}")]
        graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
        place(read_graph(path))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _external(name: str, features: int, index: int) -> TensorProto:
    tensor = declared_tensor(name, (features, features), TensorProto.FLOAT)
    del tensor.external_data[:]
    size = features * features * np.dtype(np.float32).itemsize
    for key, value in (("location", "weights.bin"), ("offset", index * size), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def rewriting(quick: bool) -> list[dict[str, object]]:
    """Loadables and GPU layers before and after every identical rewrite, and the largest difference it makes.

    The difference is that of the outputs, over their largest value, in ONNX Runtime's float32 on a random input; it
    is not run (None) for networks over 10 GMACs, nor where nothing changes.
    """
    found = []
    names = ("resnet50", "mobilenet-v2") if quick else NETWORKS
    makers = {name: (lambda name=name: zoo_model(name, None, with_weights=_small(name))) for name in names}
    for name, make in {**makers, **SHAPES}.items():
        before = make()
        after = rewrite_all(before)
        placements = [place(read_graph(model)) for model in (before, after.model)]
        small = name in SHAPES or _small(name)
        found.append(
            {
                "network": name,
                "loadables": [len(p.loadables) for p in placements],
                "gpu_layers": [len(p.gpu_layers) for p in placements],
                "changes": len(after.changes),
                "largest_difference": difference(before, after.model) if small and after.changes else None,
            }
        )
    return found


def _small(name: str) -> bool:
    return NETWORKS[name].published_gmacs < 10


def difference(before: ModelProto, after: ModelProto) -> float:
    """Return the largest difference of any output, over that output's largest value."""
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    feed, answers = {}, []
    for model in (before, after):
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for item in session.get_inputs():
            shape = [size if isinstance(size, int) else 1 for size in item.shape]
            feed.setdefault(item.name, rng.standard_normal(shape).astype(np.float32))
        names = [item.name for item in session.get_outputs()]
        answers.append(dict(zip(names, session.run(names, feed))))
    first, second = answers
    pairs = [(first[name].ravel(), second[name].ravel()) for name in first if name in second]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def print_rewriting(found: list[dict[str, object]]) -> None:
    """Print the networks before and after."""
    print(f"{'network':<20}{'loadables':>14}{'GPU layers':>16}{'changes':>10}{'largest difference':>22}")
    for line in found:
        seen = line["largest_difference"]
        pair = [f"{a} -> {b}" for a, b in (line["loadables"], line["gpu_layers"])]
        print(
            f"{line['network']:<20}{pair[0]:>14}{pair[1]:>16}{line['changes']:>10}"
            f"{'-' if seen is None else f'{seen:.1e}':>22}"
        )


def print_tables(found: dict[str, object], sweeps: list[dict[str, object]]) -> None:
    """Print each case, each reason, and every wrong prediction."""
    print(f"{'case':<6}{'board':<16}{'TensorRT':<10}{'nodes right':>14}{'final right':>14}{'loadables':>14}{'real':>6}")
    for case in found["cases"]:
        final = f"{case['final_right']}/{case['final_nodes']}" if case["final_nodes"] else "-"
        seen, real = case["loadables"]
        print(
            f"{case['case']:<6}{case['board']:<16}{case['tensorrt']:<10}{case['right']}/{case['nodes']:<10}"
            f"{final:>14}{seen:>12}{'-' if real is None else real:>8}"
        )
    for message, (said, asked) in found["reasons"].items():
        print(f"reason {said}/{asked}: {message}")
    for case, node, real, seen, _ in found["wrong"]:
        print(f"wrong: {case} {node}: TensorRT {real}, predicted {seen}")
    for entry in sweeps:
        for op, says, seen in entry["apart"]:
            print(f"apart under TensorRT {entry['tensorrt']}: {op}: the table says {says!r}, predicted {seen}")


def main() -> None:
    """Run everything that the machine has data for."""
    options = arguments(__doc__ or "")
    results: dict[str, object] = {}
    lines = []
    if CASES.is_dir():
        found, sweeps = recall(all_cases()), [sweep("8.6"), sweep("10.3")]
        if not options.json:
            print_tables(found, sweeps)
        results.update(found, sweep=sweeps)
        lines += [
            (f"recall, {device}", f"{right}/{total}", "all") for device, (right, total) in found["recall"].items()
        ]
        lines += [
            (f"single layers, TensorRT {entry['tensorrt']}", f"{entry['agree']}/{len(rows())}", "each parting named")
            for entry in sweeps
        ]
    results["rewriting"] = rewritten = rewriting(options.quick)
    if not options.json:
        print_rewriting(rewritten)
    runs = 1 if options.quick else 5
    for nodes, limit in ((650, 1), (5000, 10)):
        taken = seconds(nodes, runs)
        results[f"place_{nodes}_nodes_s"] = taken
        lines.append((f"read and place {nodes} nodes, s", f"{taken:.3f}", f"under {limit}"))
    peak = external_peak_bytes()
    results["peak_bytes_beside_2_gib"] = peak
    lines.append(("peak memory beside 2 GiB of external weights, GiB", f"{peak / GIB:.2f}", "under 1"))
    emit(results, lines, options)


if __name__ == "__main__":
    main()
