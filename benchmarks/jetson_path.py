"""The Jetson path on the stand-ins: CPU per batch of the board, copies, and how far its tests reach: lines and mutants.

CPU and copies are measured in every run. Coverage and mutants take many minutes: `--quick` reads them from
results/jetson_path.json and says so, the full run measures them and writes that file. No figure is one of a board.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import run
from typing import Any
from xml.etree import ElementTree

from common import ROOT, arguments, emit, machine, median
from mutants import is_killed, mutants_of, sample

from tests.standins import install

RESULTS = Path(__file__).with_name("results") / "jetson_path.json"
PACKAGES = ("engines.tensorrt", "orin.jetson")  # the builder with the calibrators, and the board
BOARD_TESTS = ("tests/board",)
OTHER_TESTS = ("tests/engines", "tests/orin")  # those of the packages that need no stand-in kill mutants too
OTHER_FILES = ("test_tensorrt_*.py", "test_jetson_*.py")
MUTANTS, SEED, PROCESSES = 100, 5, 2
DEPTH = 2
COUNT = 1024  # samples in memory


def on_the_stand_ins() -> None:
    """Start again in the environment of the stand-ins, or end where they are not built."""
    if not install.is_installed():
        print("the stand-ins of TensorRT and CUDA are not built: run `make standins`", file=sys.stderr)
        raise SystemExit(2)
    wanted = install.environment()
    if os.environ.get("LD_LIBRARY_PATH") != wanted["LD_LIBRARY_PATH"]:
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)
    install.activate()


# -- CPU per batch ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """A board with engines that compute nothing."""

    board: Any
    engines: dict[str, Any]


@contextmanager
def null_engines(gpu_batch: int, dla_batch: int) -> Iterator[Bench]:
    """Engines that TensorRT's bindings built and load, whose work on the stream is nothing."""
    import tensorrt as trt

    from engines.build import build
    from engines.cache import EngineCache
    from engines.tensorrt.builder import Options, TensorRtBuilder
    from tests.board.boards import attached
    from tests.contract.networks import network, spec
    from tests.standins.nvinfer.work import Work

    Work._compute = lambda self: None  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        cache, builder = EngineCache(Path(folder) / "engines", print), TensorRtBuilder(trt, Options())
        specs = {"gpu": spec("gpu", gpu_batch), "dla": spec("dla", dla_batch)}
        engines = {name: build(network(), wanted, cache, "random", builder) for name, wanted in specs.items()}
        with attached(Path(folder) / "root") as board:
            yield Bench(board, engines)


def bare_loop(bench: Bench, accelerator: str) -> Callable[[int], None]:
    """Return a loop over TensorRT's and pycuda's own calls: set an address, enqueue, record an event, wait for it."""
    import pycuda.driver as cuda
    import tensorrt as trt

    engine = bench.engines["gpu" if accelerator == "gpu" else "dla"]
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if accelerator != "gpu":
        runtime.DLA_core = int(accelerator[-1])
    loaded = runtime.deserialize_cuda_engine(engine.path.read_bytes())
    batch, size = engine.manifest.spec.batch, engine.manifest.inputs[0].sample_bytes
    samples = bench.board.allocate(COUNT * size)
    with bench.board.cuda.current():
        slots = [(loaded.create_execution_context(), cuda.Event(), bench.board.allocate(1 << 16)) for _ in range(DEPTH)]
        stream = cuda.Stream()
    for context, _, output in slots:
        context.set_input_shape("x", (batch, *engine.manifest.inputs[0].shape))
        context.set_tensor_address("y", output.address)

    def enqueue(number: int) -> None:
        context, event, _ = slots[number % DEPTH]
        context.set_tensor_address("x", samples.address + number * batch % COUNT * size)
        context.execute_async_v3(stream.handle)
        event.record(stream)

    def loop(batches: int) -> None:
        bench.board.cuda.attach()
        enqueue(0)
        for number in range(1, batches + 1):
            enqueue(number)
            slots[(number - 1) % DEPTH][1].synchronize()
        stream.synchronize()

    return loop


def board_loop(bench: Bench, accelerator: str) -> Callable[[int], None]:
    """Return the same loop over the board's engine, as the pipeline calls it."""
    engine = bench.engines["gpu" if accelerator == "gpu" else "dla"]
    loaded = bench.board.load(engine, accelerator, DEPTH)
    batch, size = engine.manifest.spec.batch, engine.manifest.inputs[0].sample_bytes
    samples = bench.board.allocate(COUNT * size)

    def enqueue(number: int) -> None:
        loaded.enqueue(number % DEPTH, (samples.address + number * batch % COUNT * size,), batch)

    def loop(batches: int) -> None:
        enqueue(0)
        for number in range(1, batches + 1):
            enqueue(number)
            loaded.wait((number - 1) % DEPTH)
            loaded.outputs((number - 1) % DEPTH)
        loaded.wait(batches % DEPTH)

    return loop


def cpu_us(loops: Sequence[Callable[[int], None]], batches: int) -> float:
    """CPU of the whole process per batch, with a thread for each loop."""
    threads = [threading.Thread(target=loop, args=(batches,)) for loop in loops]
    begin = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - begin) / (batches * len(loops)) * 1e6


def pipeline_us(bench: Bench, batches: int) -> float:
    """CPU per work item of the pipeline over the board, from the query on."""
    from pipeline import offline_query

    from orin.pipeline import Pipeline
    from orin.plan import Plan
    from orin.work import WorkItem, rounds

    items = 0

    class Counting:
        def done(self, item: WorkItem, outputs: object) -> None:
            nonlocal items
            items += 1

    batch = {name: engine.manifest.spec.batch for name, engine in bench.engines.items()}
    plan = Plan(network="net", gpu_batch=batch["gpu"], dla_batch=batch["dla"])
    with Pipeline(plan, bench.board, bench.engines, capacity=COUNT) as pipeline:
        positions = offline_query(batches * batch["gpu"])
        pipeline.start(Counting(), ordered=False)
        begin = time.process_time()
        pipeline.put(rounds(positions, list(range(len(positions)))))
        pipeline.stop()
        return (time.process_time() - begin) / items * 1e6


def cost(repeats: int, batches: int) -> dict[str, object]:
    """CPU per batch of bare loops, the board's engines and the pipeline over them: medians, the sides alternating."""
    accelerators = ("gpu", "dla0", "dla1")
    seen: dict[str, list[float]] = defaultdict(list)
    with null_engines(8, 8) as bench:
        loops = {
            "bare_us": [bare_loop(bench, name) for name in accelerators],
            "board_us": [board_loop(bench, name) for name in accelerators],
        }
        for _ in range(repeats):
            for side, used in loops.items():
                seen[side].append(cpu_us(used, batches))
            seen["pipeline_us"].append(pipeline_us(bench, 3 * batches))
        del loops, used
    found: dict[str, object] = {side: median(values) for side, values in seen.items()}
    beyond = [board - bare for board, bare in zip(seen["board_us"], seen["bare_us"])]
    all_beyond = [whole - bare for whole, bare in zip(seen["pipeline_us"], seen["bare_us"])]
    return {**found, "board_beyond_us": median(beyond), "pipeline_beyond_us": median(all_beyond), "repeats": repeats}


# -- copies -----------------------------------------------------------------------------------------------------------


def copied(queries: int) -> dict[str, float]:
    """Copied bytes per sample as a share of the sample's: an Offline query by plan, and single samples."""
    from pipeline import offline_query

    from orin.pipeline import Pipeline
    from orin.plan import Plan
    from orin.work import rounds

    class Nobody:
        def done(self, item: object, outputs: object) -> None: ...

    shares = {}
    positions = offline_query(queries)
    with null_engines(16, 4) as bench:
        for used in ({}, {"dla_cores": 0}, {"gpu_batch": 0}):
            plan = Plan(**{"network": "net", "gpu_batch": 16, "dla_batch": 4, **used})  # type: ignore[arg-type]
            with Pipeline(plan, bench.board, bench.engines, capacity=COUNT) as pipeline:
                pipeline.start(Nobody(), ordered=False)
                pipeline.put(rounds(positions, list(range(queries))))
                pipeline.stop()
                share = pipeline.copied_bytes / queries / pipeline.samples.sample_bytes
            shares[" + ".join(plan.accelerators)] = share
    with null_engines(1, 1) as bench:
        plan = Plan(network="net", gpu_batch=1, dla_cores=0)
        with Pipeline(plan, bench.board, {"gpu": bench.engines["gpu"]}, capacity=COUNT) as pipeline:
            for position in range(COUNT):
                pipeline.run_now([position], position)
            shares["single samples in a graph"] = pipeline.copied_bytes / COUNT / pipeline.samples.sample_bytes
    return shares


# -- lines and mutants ------------------------------------------------------------------------------------------------


@dataclass
class Reach:
    """What the tests execute: lines by file, and the tests of a line, the quickest first."""

    lines: dict[str, dict[str, object]]
    tests: dict[tuple[str, int], set[str]]
    seconds: dict[str, float]

    def of(self, file: str, line: int) -> list[str]:
        """Return the tests that run a line; where fixtures alone do, all tests of the file are taken."""
        found = self.tests.get((file, line)) or {
            test for (f, _), tests in self.tests.items() if f == file for test in tests
        }
        return sorted(found, key=lambda test: self.seconds.get(test, 0.0))


def traced(tests: Sequence[str]) -> Reach:
    """Run tests under coverage, which notes for each line the tests that run it."""
    import coverage

    with tempfile.TemporaryDirectory() as folder:
        data, options, report = (Path(folder) / name for name in ("data", "options", "report.xml"))
        options.write_text(
            f"[run]\nsource = {','.join(PACKAGES)}\ndynamic_context = test_function\ndata_file = {data}\n"
        )
        words = ["-m", "coverage", "run", f"--rcfile={options}", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = run([sys.executable, *words, f"--junitxml={report}", *tests], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the tests fail, so that their reach says nothing:\n{done.stdout[-3000:]}")
        read = coverage.Coverage(data_file=data, config_file=str(options))
        read.load()
        return _reach(read, report)


def _reach(read: Any, report: Path) -> Reach:
    lines: dict[str, dict[str, object]] = {}
    tests: dict[tuple[str, int], set[str]] = defaultdict(set)
    for path in read.get_data().measured_files():
        file = Path(path).relative_to(ROOT).as_posix()
        _, statements, _, missing, _ = read.analysis2(path)
        lines[file] = {"statements": len(statements), "missing": missing}
        for line, contexts in read.get_data().contexts_by_lineno(path).items():
            tests[file, line].update(map(_node, filter(None, contexts)))
    return Reach(lines, tests, _seconds(report))


def _node(context: str) -> str:
    """Return pytest's name of a test from coverage's: tests.board.test_x.TestY.test_z."""
    parts = context.split(".")
    last = max(index for index, part in enumerate(parts) if part.startswith("test_") and part is not parts[-1])
    return "::".join(["/".join(parts[: last + 1]) + ".py", *parts[last + 1 :]])


def _seconds(report: Path) -> dict[str, float]:
    """Return how long each test took, all its parameters together."""
    took: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).iter("testcase"):
        took[_node(f"{case.get('classname')}.{str(case.get('name')).partition('[')[0]}")] += float(case.get("time", 0))
    return took


def other_tests() -> list[str]:
    """Return the packages' test files that need no stand-in."""
    return [str(path) for folder in OTHER_TESTS for name in OTHER_FILES for path in sorted((ROOT / folder).glob(name))]


def covered(reach: Reach) -> dict[str, object]:
    """Lines executed by the board's tests, by package and in all."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        files = {file: seen for file, seen in reach.lines.items() if file.startswith(package.replace(".", "/"))}
        statements = sum(seen["statements"] for seen in files.values())  # type: ignore[misc]
        missing = {file: seen["missing"] for file, seen in files.items() if seen["missing"]}
        share = 1 - sum(map(len, missing.values())) / statements  # type: ignore[arg-type]
        found[package] = {"statements": statements, "share": share, "missing": missing}
    whole = sum(entry["statements"] for entry in found.values())
    left = sum(len(lines) for entry in found.values() for lines in entry["missing"].values())
    return {**found, "share": 1 - left / whole, "pragmas": _pragmas()}


def _sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package.replace(".", "/")).glob("*.py"))]


def _pragmas() -> int:
    return sum(path.read_text().count("pragma: no cover") for path in _sources())


def mutated(board: Reach, other: Reach) -> dict[str, object]:
    """Change the packages in `MUTANTS` places, one at a time, and count the changes that a test notices."""
    chosen = sample([mutant for path in _sources() for mutant in mutants_of(path)], MUTANTS, SEED)

    def tried(mutant: Any) -> tuple[Any, bool]:
        tests = [*other.of(mutant.file, mutant.line), *board.of(mutant.file, mutant.line)]
        killed = is_killed(mutant, tests, dict(os.environ))
        print(f"{'killed' if killed else 'LIVES':<7}{mutant.file}:{mutant.line} {mutant.change[:90]}", file=sys.stderr)
        return mutant, killed

    with ThreadPoolExecutor(PROCESSES) as pool:
        outcomes = list(pool.map(tried, chosen))
    kinds = {kind: [killed for m, killed in outcomes if m.kind == kind] for kind in {m.kind for m in chosen}}
    return {
        "count": len(outcomes),
        "killed": sum(killed for _, killed in outcomes),
        "seed": SEED,
        "by_kind": {kind: [sum(results), len(results)] for kind, results in sorted(kinds.items())},
        "survivors": [asdict(mutant) for mutant, killed in outcomes if not killed],
    }


# -- all of it --------------------------------------------------------------------------------------------------------


def recorded() -> dict[str, Any]:
    """Return coverage and mutants of the last full run."""
    try:
        kept = json.loads(RESULTS.read_text(encoding="utf-8"))
        return {name: {**kept[name], "recorded": True} for name in ("coverage", "mutants")}
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"{RESULTS} has no recorded coverage and mutants ({error}): run without --quick once"
        ) from None


def reached() -> dict[str, Any]:
    """Measure coverage and mutants."""
    board = traced(BOARD_TESTS)
    coverage = covered(board)
    return {"coverage": coverage, "mutants": mutated(board, traced(other_tests()))}


def rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is printed: what, seen, wanted."""
    c, k, lines, m = (results[name] for name in ("cost", "copied", "coverage", "mutants"))
    label = " (recorded)" if lines.get("recorded") else ""
    *plans, graph = k.items()
    return [
        ("CPU per batch: the board beyond bare enqueue and wait", f"{c['board_beyond_us']:.0f} us", "<= 60 us"),
        ("  bare loops of the same calls", f"{c['bare_us']:.0f} us", "(the stand-ins' own)"),
        ("  the pipeline over the board beyond bare loops", f"{c['pipeline_beyond_us']:.0f} us", ""),
        *((f"copied per sample, Offline on {name}", f"{share:.2%}", "<= 1 %") for name, share in plans),
        (f"copied per sample, {graph[0]}", f"{graph[1]:.0%}", "100 %: that copy is counted"),
        (f"lines that the board's tests execute{label}", f"{lines['share']:.1%}", ">= 95 %"),
        ("  pragma: no cover", str(lines["pragmas"]), "0"),
        (f"mutants killed{label}", f"{m['killed']} of {m['count']}", ">= 80 of 100"),
    ]


def main() -> None:
    """Run everything and print it; the full run keeps it."""
    on_the_stand_ins()
    options = arguments(__doc__ or "")
    if not options.quick and find_spec("coverage") is None:
        print("the full run needs the package coverage: pip install -e '.[bench]', or take --quick", file=sys.stderr)
        raise SystemExit(2)
    results: dict[str, Any] = {} if not options.quick else recorded()
    results["cost"] = cost(*((5, 500) if options.quick else (9, 2000)))
    results["copied"] = copied(8_000 if options.quick else 40_000)
    if not options.quick:
        results |= reached()
        RESULTS.write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n", encoding="utf-8")
    emit(results, rows(results), options)


if __name__ == "__main__":
    main()
