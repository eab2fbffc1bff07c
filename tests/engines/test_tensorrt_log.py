"""TensorRT's log of a build, its progress, and what its refusals mean."""

import re
import types

import pytest

from dla.logs import parse_log
from engines.errors import EngineError
from engines.tensorrt.adapt import adapt
from engines.tensorrt.log import BuildLog, Logger
from engines.tensorrt.progress import Monitor
from engines.tensorrt.refusals import QUOTED_CHARACTERS, explain, shortened


def severity(name):
    return types.SimpleNamespace(name=name)


def test_messages_are_on_disk_at_once_as_trtexec_prints_them(tmp_path):
    path = tmp_path / "deep" / "build.log"
    with BuildLog(path) as log:
        logger = Logger(log)
        logger.log(
            severity("WARNING"), "Layer 'pool' (REDUCE): Unsupported on DLA. Switching this layer's device type to GPU."
        )
        logger.log(severity("INFO"), "---------- Layers Running on DLA ----------")
        logger.log(severity("INFO"), "[DlaLayer] {ForeignNode[conv1...add]}")
        logger.log(severity("VERBOSE"), "nothing to keep")
        logger.log(severity("ERROR"), "it failed")
        logger.log(severity("INTERNAL_ERROR"), "it broke")
        text = path.read_text()
    assert re.match(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[W\] \[TRT\] Layer 'pool'", text)
    assert "nothing to keep" not in text
    assert log.errors == ["it failed", "it broke"] and len(log.warnings) == 1
    read = parse_log(text.splitlines())
    assert dict(read.refused) == {"pool": "REDUCE"}
    assert [loadable.region.name for loadable in read.loadables] == ["{ForeignNode[conv1...add]}"]
    logger.log(severity("ERROR"), "late")  # TensorRT's objects may outlive the file
    assert path.read_text() == text


def test_verbose_messages_are_kept_on_request(tmp_path):
    with BuildLog(tmp_path / "build.log", verbose=True) as log:
        log.take("VERBOSE", "every layer")
    assert "[V] [TRT] every layer" in (tmp_path / "build.log").read_text()


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EngineError, match="cannot be written: .*choose another cache"),
        BuildLog(tmp_path / "file" / "x"),
    ):
        pass


def test_an_adapter_is_of_the_base_and_answers_with_ours():
    class Base:
        def __init__(self):
            self.made = True

        def step(self, number):
            raise NotImplementedError  # the base's own, which ours must stand in front of

    class Ours:
        def step(self, number):
            return number + 1

    made = adapt(Base, Ours())
    assert isinstance(made, Base) and made.made
    assert made.step(1) == 2


def monitored(*calls):
    seen = []
    monitor = Monitor("building", lambda *step: seen.append(step))
    answers = [getattr(monitor, name)(*arguments) for name, *arguments in calls]
    return seen, answers


def test_outermost_phases_are_shown_and_inner_ones_are_not():
    seen, answers = monitored(
        ("phase_start", "Building", None, 2),
        ("phase_start", "Timing", "Building", 50),
        ("step_complete", "Timing", 0),
        ("phase_finish", "Timing"),
        ("step_complete", "Building", 0),
        ("step_complete", "Building", 1),
        ("phase_finish", "Building"),
    )
    assert seen == [("building", 1, 2), ("building", 2, 2)]
    assert [answer for answer in answers if answer is not None] == [True, True, True]


def test_a_phase_that_ends_early_ends_its_bar():
    seen, _ = monitored(("phase_start", "B", "", 9), ("step_complete", "B", 0), ("phase_finish", "B"))
    assert seen == [("building", 1, 9), ("building", 9, 9)]


def test_what_the_callable_raises_ends_the_build_and_is_raised_later():
    def broken(*step):
        raise KeyboardInterrupt

    monitor = Monitor("building", broken)
    monitor.raise_failure()
    monitor.phase_start("B", None, 2)
    assert monitor.step_complete("B", 0) is False
    monitor.phase_finish("B")
    with pytest.raises(KeyboardInterrupt):
        monitor.raise_failure()


# Messages of TensorRT 8.4 to 10.3 as logs and public issues quote them, and a word of the advice that each must get.
MESSAGES = [
    ("libnvdla_compiler.so: cannot open shared object file: No such file or directory", "nvidia-l4t-dla-compiler"),
    ("Cannot create DLA engine, 0 not available", "orin doctor"),
    ("Requested amount of GPU memory (1073741824 bytes) could not be allocated: out of memory", "lower the batch"),
    ("DLA Layer conv1 does not support dynamic shapes in any dimension.", "static shapes"),
    (
        "DLA LAYER: Batch size (combined volume except for CHW dimensions) 5000 for layer x exceeds max batch size "
        "allowed of 4096.",
        "lower dla_batch",
    ),
    ("DLA supports only 16 subgraphs per DLA core. Switching to GPU for layer x", "more loadables than"),
    ("x: DLA layer is too big, reduce size of input or weights", "convolution buffer"),
    ("Parameter check failed: memory pool DLA_MANAGED_SRAM must be a power of 2", "each a power of two"),
    ("kDIRECT_IO is set but a reformat is needed for input", "a format that the DLA takes"),
    (
        "Calibrator is not being used. Users must provide dynamic range for all tensors that are not Int32 or Bool.",
        "orin calibrate",
    ),
    (
        "Input tensor has less than 4 dimensions for fc. At least one shuffle layer will be inserted which cannot run "
        "on DLA.",
        "gemm-to-conv",
    ),
    ("DLA only supports FP16 and Int8 precision type. Switching x device type to GPU.", "int8 or fp16"),
    ("setDefaultDeviceType was called but no layer in the network can run on DLA.", "dla_cores to 0"),
    ("Layer 'pool' (REDUCE): Unsupported on DLA. Switching this layer's device type to GPU.", "--allow-gpu-layers"),
    ("Default DLA is enabled but layer pool is not supported on DLA, falling back to GPU.", "--allow-gpu-layers"),
    ("pool: DLA cores do not support AVG Reduce operation.", "--allow-gpu-layers"),
    ("fc: MatMul is unsupported on DLA, relax constraints or use Convolution layer instead.", "--allow-gpu-layers"),
    ("Validation failed for DLA layer: x. Switching to GPU fallback.", "--allow-gpu-layers"),
    ("10: [optimizer.cpp] Could not find any implementation for node {ForeignNode[conv1...fc]}.", "larger pools_bytes"),
    ("CUDA initialization failure with error: 100", "orin doctor"),
    ("Plugin not found, are the plugin name, version, and namespace correct?", "orin rewrite"),
]


@pytest.mark.parametrize(("message", "advice"), MESSAGES, ids=[advice for _, advice in MESSAGES])
def test_a_refusal_is_quoted_explained_and_answered(message, advice):
    text = explain(["[W] something before", message + "\n"])
    assert text.startswith(message.rstrip("."))
    assert advice in text and "\n" not in text


def test_the_last_error_is_quoted_and_an_earlier_one_may_explain_it():
    text = explain(["conv: DLA cores do not support DIV ElementWise operation.", "buildSerializedNetwork failed"])
    assert text.startswith("buildSerializedNetwork failed; that is: a layer cannot run on the DLA")
    assert explain(["something quite new"]) == "something quite new; build again with --verbose-log and read the log"
    assert "gives no reason" in explain([])


def test_long_messages_are_cut():
    assert len(shortened("word " * 1000)) == QUOTED_CHARACTERS
    assert shortened("two\nlines.") == "two lines"
