"""What the virtual Orin expects of a plan: graph and placement joined with the simulator, nothing built or run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engines.engine import Workload
from orin.build import dla_network
from orin.plan import Plan
from orin.soc import soc
from orin.tails import tail_network_of
from orin.virtual.predict import Options, Prediction, Workloads, predict

if TYPE_CHECKING:
    from engines.graph import Graph


def workloads(plan: Plan) -> Workloads:
    """Return what the plan's engines would hold, from the network's graph alone (no weights are made)."""
    from engines.graph import read_graph
    from engines.zoo import model as zoo_model

    model = zoo_model(plan.network, Path(plan.weights) if plan.weights else None, with_weights=False)
    graph = read_graph(model, plan.network)
    tail = _tail(plan, graph)
    if not plan.dla_cores:
        return Workloads(graph.workload, graph.workload, gpu_tail=tail)
    _, rewritten, placement = dla_network(plan, model)
    layers = tuple(placement.gpu_layers)
    return Workloads(graph.workload, rewritten.workload, layers, tail, _tail(plan, rewritten))


def _tail(plan: Plan, graph: Graph) -> Workload | None:
    """Return the work of the engine that follows a graph on the GPU, where the plan wants one."""
    from engines.bindings import float_outputs
    from engines.graph import read_graph

    network = tail_network_of(plan, float_outputs(graph))
    return read_graph(network, "tail").workload if network is not None else None


def predict_plan(plan: Plan, soc_name: str, scenario: str = "offline", options: Options | None = None) -> Prediction:
    """Predict a plan on a SoC by name; OrinError for what is not known or cannot run."""
    return predict(plan, soc(soc_name), scenario, workloads(plan), options)
