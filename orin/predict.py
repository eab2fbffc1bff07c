"""What the virtual Orin expects of a plan: graph and placement joined with the simulator, nothing built or run."""

from __future__ import annotations

from pathlib import Path

from orin.build import dla_network
from orin.plan import Plan
from orin.soc import soc
from orin.virtual.predict import Options, Prediction, Workloads, predict


def workloads(plan: Plan) -> Workloads:
    """Return what the plan's engines would hold, from the network's graph alone (no weights are made)."""
    from engines.graph import read_graph
    from engines.zoo import model as zoo_model

    model = zoo_model(plan.network, Path(plan.weights) if plan.weights else None, with_weights=False)
    graph = read_graph(model, plan.network)
    if not plan.dla_cores:
        return Workloads(graph.workload, graph.workload)
    _, rewritten, placement = dla_network(plan, model)
    return Workloads(graph.workload, rewritten.workload, tuple(placement.gpu_layers))


def predict_plan(plan: Plan, soc_name: str, scenario: str = "offline", options: Options | None = None) -> Prediction:
    """Predict a plan on a SoC by name; OrinError for what is not known or cannot run."""
    return predict(plan, soc(soc_name), scenario, workloads(plan), options)
