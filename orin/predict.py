"""What the virtual Orin expects of a plan: graph and placement joined with the simulator, nothing built or run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.engine import Workload
from engines.volumes.plan import WINDOW, plan_windows
from orin.build import dla_network
from orin.errors import OrinError
from orin.parts import RNNT, cut, rnnt_workload
from orin.plan import Plan
from orin.soc import Soc, soc
from orin.subject import light_subject
from orin.tails import tail_network_of
from orin.virtual.predict import Options, Prediction, Varied, Workloads, predict, service_ms
from orin.virtual.varied import KITS19, LIBRISPEECH, SQUAD, over
from orin.volumes.cost import NETWORK as UNET
from orin.volumes.cost import volume_cost
from power.boards import AGX_ORIN_RAILS

if TYPE_CHECKING:
    from engines.graph import Graph

BERT, BERT_TOKENS = "bert-large", 384  # of the zoo's graph


def workloads(plan: Plan) -> Workloads:
    """Return what the plan's engines would hold, from the network's graph alone (no weights are made), or its parts.

    OrinError for RNN-T on a DLA, EngineError for a network that is not known, either for a file that cannot be used.
    """
    if plan.network == RNNT:
        return _rnnt(plan)
    from engines.graph import read_graph

    model = light_subject(plan.network, Path(plan.weights) if plan.weights else None, plan.preprocess)
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


def _rnnt(plan: Plan) -> Workloads:
    if plan.dla_cores:
        raise OrinError("rnnt runs on the GPU alone, an LSTM is no layer of the DLA: set dla_cores: 0 (--dla-cores 0)")
    return Workloads(rnnt_workload(), rnnt_workload())


def predict_plan(plan: Plan, soc_name: str, scenario: str = "offline", options: Options | None = None) -> Prediction:
    """Predict a plan on a SoC by name, over its data set too where that varies in length.

    OrinError for what is not known or cannot run.
    """
    board, work = soc(soc_name), workloads(plan)
    prediction = predict_on(plan, board, scenario, work, options)
    found = varied(plan, board, scenario, work, options or Options())
    return replace(prediction, varied=found, notes=(found.note, *prediction.notes)) if found else prediction


def predict_on(plan: Plan, board: Soc, scenario: str, work: Workloads, options: Options | None = None) -> Prediction:
    """Predict a plan whose workloads are at hand; notes say what its mode's clocks and its power do not show."""
    prediction = predict(plan, board, scenario, work, options)
    mode = plan.mode or (board.fullest_mode if plan.clocks_mhz is None else None)
    notes = board.notes(mode) if mode and plan.dla_cores > 1 else ()
    if board.board.rails == AGX_ORIN_RAILS:
        return replace(prediction, notes=(*prediction.notes, *notes))
    whose = f"power: AGX Orin's constants on {board.name}'s rails, of which none are published"
    return replace(prediction, notes=(*prediction.notes, *notes, whose))


def varied(plan: Plan, board: Soc, scenario: str, work: Workloads, options: Options) -> Varied | None:
    """Predict a plan over its network's data set; None where lengths do not vary, or work is not the GPU's alone.

    Sentences hold no padding: MLPerf's harness concatenates tokens, and sorts Offline's query by length: a batch is
    of one. So are utterances here. A volume runs window by window, one case at a time in both scenarios.
    """
    alone = plan.gpu_batch and (scenario == "singlestream" or (scenario == "offline" and not plan.dla_cores))
    if not alone or options.dvfs is not None:  # each length would leave a governed clock elsewhere
        return None
    batch = plan.gpu_batch if scenario == "offline" else None

    def sentence_ms(tokens: int) -> float:
        shorter = replace(work, gpu=cut(work.gpu, tokens / BERT_TOKENS))
        return service_ms(plan, board, shorter, options, batch)

    def utterance_ms(steps: int) -> float:
        return service_ms(plan, board, replace(work, gpu=rnnt_workload(steps)), options, batch)

    def volume_ms(windows: int) -> float:
        depth, height, width = WINDOW
        row = plan_windows(((windows + 1) * depth // 2, height, width))  # each overlaps half of the next
        return volume_cost(plan, board, work.gpu, row).latency_ms

    if plan.network == BERT:
        return over(SQUAD, sentence_ms, scenario)
    if plan.network == RNNT:
        return over(LIBRISPEECH, utterance_ms, scenario)
    if plan.network == UNET and not plan.sparsity:  # a volume's cost is of dense engines
        return over(KITS19, volume_ms, scenario)
    return None
