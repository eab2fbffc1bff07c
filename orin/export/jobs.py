"""What an export describes: the jobs that TensorRT's builder would get for a plan, engine by engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.bindings import check_dla_precision, input_bindings, native_outputs
from engines.graph import read_graph
from engines.onnx_model import with_batch
from engines.tensorrt.job import Job
from engines.tensorrt.parse import batched
from orin.build import Desk, engine_parts
from orin.jetson.detect import Machine
from orin.plan import Plan
from orin.subject import find_subject

TENSORRT = ("10.3", "11.4")  # implicit INT8 up to 10.x, Q/DQ and strong types from 11 on
FIRST_L4T_WITH_11 = 39


def tensorrt_of(machine: Machine) -> str:
    """Return the TensorRT to export for on this machine: that of its JetPack, 10.3 where it is no Jetson."""
    major = int((machine.l4t or "0").split(".")[0]) if machine.jetson else 0
    return TENSORRT[major >= FIRST_L4T_WITH_11]


def jobs_of(plan: Plan, desk: Desk) -> Mapping[str, Job]:
    """Return the builder's job for each engine of a plan ("gpu", "dla"); nothing is built, INT8 ranges are collected
    where the plan names none. OrinError, EngineError or DlaError where the plan cannot be built."""
    subject = find_subject(plan.network, Path(plan.weights) if plan.weights else None, plan.preprocess)
    parts, _ = engine_parts(plan, subject, desk)
    jobs = {}
    for name, (model, spec) in parts.items():
        graph = read_graph(with_batch(model, 1), spec.network)
        inputs = input_bindings(graph, spec)
        check_dla_precision(inputs, spec)
        jobs[name] = Job(batched(model, spec), spec, graph, inputs, native_outputs(graph, spec))
    return jobs
