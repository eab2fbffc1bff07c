"""`orin export`: a plan's engines for trtexec or Triton, runs as a submission tree for MLPerf."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    from orin.build import Desk
    from orin.plan import Plan

TENSORRT_HELP = "TensorRT to export for: 10.3 (JetPack 6) or 11.4 (JetPack 7.2.2); without: this machine's, else 10.3"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    trtexec = kinds.add_parser("trtexec", help="the trtexec lines that build and run the same engines")
    _add_plan(trtexec)
    trtexec.add_argument("--seconds", type=int, default=10, metavar="S", help="length of a run (10)")
    trtexec.set_defaults(handler=_trtexec)
    triton = kinds.add_parser("triton", help="a model repository for Triton Inference Server: GPU and DLA")
    _add_plan(triton)
    triton.add_argument("--name", help="name of the models; without: the network's")
    triton.set_defaults(handler=_triton)
    ask = kinds.add_parser("ask", help="answer arrays through a running Triton, split between GPU and DLA")
    ask.add_argument("repository", type=Path, metavar="REPO", help="folder that orin export triton wrote")
    ask.add_argument("--url", default="localhost:8001", metavar="HOST:PORT", help="gRPC door (localhost:8001)")
    ask.add_argument("--data", type=Path, required=True, metavar="X.npy", help="samples [N,...]; .npz: one an input")
    ask.add_argument("-o", "--output", type=Path, required=True, metavar="Y.npz", help="outputs, samples first")
    ask.set_defaults(handler=_ask)
    mlperf = kinds.add_parser("mlperf", help="a closed/edge submission tree from own runs on a board")
    mlperf.add_argument("runs", type=Path, nargs="?", metavar="RUNS", help="submission file (YAML), see docs/mlperf.md")
    mlperf.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="root of the tree")
    mlperf.add_argument("--check", action="store_true", help="check the tree at DIR, export nothing")
    mlperf.set_defaults(handler=_mlperf)
    for kind in (trtexec, triton, ask, mlperf):
        add_output_arguments(kind)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from orin.export.jobs import TENSORRT

    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan file (YAML), as orin build and deploy write it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--tensorrt", choices=TENSORRT, help=TENSORRT_HELP)
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos for INT8 ranges, where the plan names none")
    parser.add_argument("--preprocess", metavar="NAME", help="how photos become inputs, where the network is a file")
    parser.add_argument("--sparse", action="store_true", help="use weights that are zero in 2 of 4")


def _plan_and_desk(options: argparse.Namespace, talk: Talk) -> tuple[Plan, Desk]:
    from orin.bench import photos_in
    from orin.build import Desk
    from orin.plan import Plan

    plan = Plan.load(options.plan)
    plan = replace(plan, preprocess=options.preprocess or plan.preprocess)
    needed = plan.precision == "int8" and plan.calibration is None
    photos = photos_in(options.data) if options.data or needed else ()
    return plan, Desk(photos=photos, say=talk.say, progress=talk.progress, sparse=options.sparse)


def _trtexec(options: argparse.Namespace) -> int:
    from orin.export.jobs import jobs_of, tensorrt_of
    from orin.export.trtexec import Target, build_options, export_trtexec, run_options
    from orin.jetson.detect import Machine

    talk = Talk(options.quiet)
    plan, desk = _plan_and_desk(options, talk)
    target = Target(options.tensorrt or tensorrt_of(Machine()), seconds=options.seconds)
    jobs = jobs_of(plan, desk)
    files = export_trtexec(plan, jobs, options.output, target)
    lines = {
        "build": {name: ["trtexec", *build_options(name, job, target)] for name, job in jobs.items()},
        "run": {name: ["trtexec", *run_options(name, plan, jobs, target)] for name in plan.accelerators},
    }
    if options.json:
        print_json(
            {"output": str(options.output), "tensorrt": target.tensorrt, **lines, "files": list(map(str, files))}
        )
        return 0
    rows = [(kind, name, " ".join(words)) for kind, named in lines.items() for name, words in named.items()]
    print_table(f"{plan.network} for trtexec of TensorRT {target.tensorrt} -> {options.output}", rows)
    return 0


def _triton(options: argparse.Namespace) -> int:
    from orin.export.jobs import jobs_of, tensorrt_of
    from orin.export.triton import Repository, export_triton
    from orin.jetson.detect import Machine

    talk = Talk(options.quiet)
    plan, desk = _plan_and_desk(options, talk)
    tensorrt = options.tensorrt or tensorrt_of(Machine())
    repository = Repository(plan, jobs_of(plan, desk), options.name or Path(plan.network).stem, tensorrt)
    files = export_triton(repository, options.output)
    models = {device: repository.model(device) for device in repository.jobs}
    if options.json:
        print_json(
            {"output": str(options.output), "tensorrt": tensorrt, "models": models, "files": list(map(str, files))}
        )
        return 0
    rows = [(device, model, f"models/{model}/config.pbtxt") for device, model in models.items()]
    print_table(f"{plan.network} for Triton, TensorRT {tensorrt} -> {options.output}; next: ./start.sh there", rows)
    return 0


def _ask(options: argparse.Namespace) -> int:
    from orin.export.arrays import read_samples, write_outputs
    from orin.export.splitter import Split, Splitter

    split = Split.load(options.repository)
    ends = next(iter(split.models.values()))
    samples = read_samples(options.data, [binding.name for binding in ends.inputs])
    begin = time.monotonic()
    with Splitter(split, options.url) as splitter:
        splitter.check()
        outputs = splitter.infer(*samples)
    seconds = time.monotonic() - begin
    write_outputs(options.output, dict(zip((binding.name for binding in ends.outputs), outputs, strict=True)))
    summary = {
        "output": str(options.output),
        "samples": len(samples[0]),
        "seconds": seconds,
        "requests": splitter.dispatched,
    }
    if options.json:
        print_json(summary)
    else:
        requests = ", ".join(f"{name} {count}" for name, count in splitter.dispatched.items())
        print(f"{len(samples[0])} samples in {seconds:.2f} s -> {options.output} (requests: {requests})")
    return 0


def _mlperf(options: argparse.Namespace) -> int:
    from orin.errors import OrinError
    from orin.export.mlperf import export_mlperf, load_submission
    from orin.export.mlperf_check import check_tree

    if options.runs is None and not options.check:
        raise OrinError("RUNS is missing: name a submission file, or --check to look at a tree that is there")
    files = [] if options.check else export_mlperf(load_submission(options.runs), options.output)
    faults = check_tree(options.output)
    if options.json:
        found = [{"name": fault.name, "path": str(fault.path), "text": fault.text} for fault in faults]
        print_json({"output": str(options.output), "files": list(map(str, files)), "faults": found})
    else:
        rows = [(fault.name, str(fault.path.relative_to(options.output)), fault.text) for fault in faults]
        count = f"{len(faults)} fault{'s' * (len(faults) != 1)}"
        print_table(f"{options.output}: {count} (not a review by MLCommons)", rows)
    return 1 if faults else 0
