"""What TensorRT's refusals mean, and the next thing to try.

Sources of the messages: build logs of TensorRT 8.4 to 10.3 on Jetson and the public issues that quote them (NVIDIA/
TensorRT 3438, 3499, 3847); developer guide, "Working with DLA".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

QUOTED_CHARACTERS = 400
READ_LOG = "build again with --verbose-log and read the log"


@dataclass(frozen=True)
class Refusal:
    """A kind of refusal: the form of its message, our words for the reason, and what to try next."""

    pattern: re.Pattern[str]
    reason: str
    next_step: str


def _table(*rows: tuple[str, str, str]) -> tuple[Refusal, ...]:
    return tuple(Refusal(re.compile(pattern, re.IGNORECASE), reason, step) for pattern, reason, step in rows)


PLACE = "`orin place MODEL` says which layers and what to rewrite"

# The first row that fits an error counts, so that the special ones stand before the general.
REFUSALS = _table(
    (
        r"libnvdla_compiler",
        "the DLA's compiler is not installed",
        "sudo apt install nvidia-l4t-dla-compiler",
    ),
    (
        r"cannot create DLA engine|DLA core.* (?:not available|exceeds)|invalid DLA core",
        "this board or TensorRT has no such DLA core",
        "`orin doctor` says what is missing; or set dla_cores to 0",
    ),
    (
        r"out of memory|OutOfMemory|MEM_ALLOC_FAILED|insufficient (?:device )?memory",
        "the memory that CPU, GPU and DLA share is full",
        "close other programs, lower the batch, or add swap for the build",
    ),
    (
        r"does not support dynamic shapes",
        "a DLA engine has static shapes",
        "export the network with static shapes",
    ),
    (
        r"exceeds max batch size allowed",
        "the batch times the leading axes is over the DLA's limit",
        "lower dla_batch",
    ),
    (
        r"only \d+ subgraphs|too many (?:subgraphs|loadables)",
        "the network falls into more loadables than a DLA core holds",
        "pin the small ones to the GPU or rewrite what cuts them: " + PLACE,
    ),
    (
        r"reduc\w+ (?:the )?size of (?:input|weights)|CBUF|convolution buffer",
        "a convolution's input and weights do not fit the DLA's convolution buffer",
        "split its channels or its width, or let it run on the GPU: --allow-gpu-layers",
    ),
    (
        r"power of (?:2|two)|memory pool|memPool|(?:SRAM|(?:Local|Global) DRAM).*(?:insufficient|exceed|enough|limit)",
        "a DLA memory pool is too small or no power of two",
        "give larger pools_bytes, each a power of two and 4 KiB or more",
    ),
    (
        r"direct.?IO|reformat",
        "an input or output would need a reformat on the GPU",
        "give it a format that the DLA takes as it is (input DLA_HWC4, CHW32, DLA_LINEAR; output DLA_LINEAR, CHW32)",
    ),
    (
        r"dynamic range|missing scale|quantization (?:params|data)|[Cc]alibrat",
        "a tensor has no dynamic range",
        "calibrate the network: `orin calibrate`",
    ),
    (
        r"less than 4 dimensions",
        "a tensor of under four axes needs a shuffle, which runs on the GPU",
        "keep tensors as [N,C,H,W] (`orin rewrite MODEL --only gemm-to-conv`), or --allow-gpu-layers",
    ),
    (
        r"only supports FP16 and Int8",
        "a layer computes in a type that the DLA does not have",
        "build with precision int8 or fp16, and keep integer layers out of the DLA's network",
    ),
    (
        r"no layer in the network can run on DLA",
        "nothing of this network fits a DLA",
        "set dla_cores to 0, or rewrite it: " + PLACE,
    ),
    (
        r"(?:not|un)[ -]?supported (?:on|by|for) DLA|DLA (?:cores )?(?:do not|does not|only)|GPU fallback|"
        r"Switching .*to GPU|Validation failed for DLA layer|setDeviceType",
        "a layer cannot run on the DLA",
        PLACE + "; or allow it on the GPU: --allow-gpu-layers",
    ),
    (
        r"Could not find any implementation for node",
        "no kernel fits a layer, or the DLA's compiler refused a loadable as a whole",
        "try a smaller batch, larger pools_bytes, or --verbose-log and `orin place MODEL --log LOG`",
    ),
    (
        r"weights.*(?:sparse|sparsity)|SPARSE_WEIGHTS",
        "the weights are not sparse in the form that TensorRT wants",
        "build without --sparse",
    ),
    (
        r"plugin",
        "an operator needs a plugin that is not loaded",
        "rewrite or cut it: `orin rewrite MODEL -o OUT.onnx`",
    ),
    (
        r"cuda (?:initiali[sz]ation|driver|runtime|error)|CUDA (?:error|failure)|no CUDA-capable device",
        "CUDA does not work here",
        "`orin doctor` says what is missing",
    ),
)


def explain(messages: Sequence[str], otherwise: str = READ_LOG) -> str:
    """Return what TensorRT said last, our reason and the next thing to try, in one line; messages oldest first.

    `otherwise` is the next thing where no reason is known.
    """
    if not messages:
        return f"TensorRT gives no reason; {otherwise}"
    quoted = shortened(messages[-1])
    for message in reversed(messages):
        for refusal in REFUSALS:
            if refusal.pattern.search(message):
                return f"{quoted}; that is: {refusal.reason}; {refusal.next_step}"
    return f"{quoted}; {otherwise}"


def shortened(message: str) -> str:
    """Return a message in one line of at most `QUOTED_CHARACTERS`, without the line's end."""
    line = " ".join(message.split()).rstrip(".;")
    return line if len(line) <= QUOTED_CHARACTERS else line[: QUOTED_CHARACTERS - 3] + "..."
