"""Train the zoo's `unet3d-small` network on phantoms at half of KiTS19's resolution.

Needs PyTorch (`pip install torch==2.13.0`, the CPU version is enough); the toolkit itself does not. Writes
`engines/zoo/unet3d_small.npz` in a quarter of an hour. One thread and fixed seeds: the same PyTorch on the same kind of
CPU gives the same bytes; elsewhere the order of sums differs, and with it the last digits of DICE.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engines.volumes.phantom import TUMOUR, phantom  # noqa: E402
from engines.volumes.preprocess import GRIDS, normalise  # noqa: E402
from engines.zoo import network  # noqa: E402
from engines.zoo.unet3d_small import CLASSES, FORM, TRAINING_SEEDS, WEIGHTS  # noqa: E402

SHAPE = (64, 96, 160)  # a whole abdomen at half of KiTS19's resolution
DECAY = 1e-3
REACH = 16  # voxels between the middle of a crop and that of a kidney or a tumour around which it lies


@dataclass(frozen=True)
class Stage:
    """How to train: crops a step and their side, the highest rate, and what shares lie around kidneys and tumours."""

    steps: int
    batch: int
    crop: int
    rate: float
    kidneys: float
    tumours: float


STAGES = (
    Stage(1100, batch=2, crop=48, rate=1e-2, kidneys=0.4, tumours=0.4),  # where there is most to learn
    Stage(240, batch=1, crop=64, rate=4e-3, kidneys=0.0, tumours=0.0),  # windows as they are met: mostly background
)


class Block(nn.Module):
    """A convolution without bias, instance normalisation and ReLU."""

    def __init__(self, depth: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(depth, channels, 3, stride, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return functional.relu(self.norm(self.conv(x)))


class UNet(nn.Module):
    """The network of `engines/zoo/unet3d_small.py`, its layers in the same order."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.ups, self.merges = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        depth = 1
        for level, width in enumerate((*FORM.widths, FORM.bottleneck)):
            self.down.append(nn.Sequential(Block(depth, width, 2 if level else 1), Block(width, width)))
            depth = width
        for width in reversed(FORM.widths):
            self.ups.append(nn.ConvTranspose3d(depth, width, 2, stride=2))
            self.merges.append(nn.Sequential(Block(2 * width, width), Block(width, width)))
            depth = width
        self.last = nn.Conv3d(depth, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N,3,D,H,W] of windows [N,1,D,H,W]."""
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        for up, merge, skip in zip(self.ups, self.merges, reversed(skips[:-1])):
            x = merge(torch.cat([up(x), skip], 1))
        logits: Tensor = self.last(x)
        return logits

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return the weights as the zoo names them, float16."""
        return {name: value.detach().contiguous().numpy().astype(np.float16) for name, value in self._named()}

    def load(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Take the weights that `weights` gave."""
        for name, value in self._named():
            value.data.copy_(torch.from_numpy(weights[name].astype(np.float32)))

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every weight under its name in the graph, where each node has a number."""
        pairs = [list(level) for level in self.down]
        for up, merge in zip(self.ups, self.merges):
            pairs.append([up, *merge])
        number = 0
        for layer in [*(layer for pair in pairs for layer in pair), self.last]:
            if isinstance(layer, Block):
                nodes = {f"Conv_{number}": layer.conv, f"InstanceNormalization_{number + 1}": layer.norm}
            else:
                nodes = {f"{type(layer).__name__.removesuffix('3d')}_{number}": layer}
            number += len(nodes) + 1  # ReLU follows a block, a concatenation the rest
            for name, node in nodes.items():
                yield from ((f"{name}.{kind}", value) for kind, value in node.named_parameters())


class Crops:
    """Random crops of training phantoms, most of them on kidneys and tumours, mirrored left to right or not."""

    def __init__(self, seeds: range, seed: int) -> None:
        spacing_mm = GRIDS[network(FORM.name).preprocess].spacing_mm
        cases = [phantom(seed, SHAPE, spacing_mm) for seed in seeds]
        self._volumes = [normalise(case.hounsfield) for case in cases]
        self._labels = [case.labels for case in cases]
        self._places = [(np.argwhere(case.labels > 0), np.argwhere(case.labels == TUMOUR)) for case in cases]
        self._rng = np.random.default_rng(seed)

    def batch(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [N,1,D,H,W] and labels int64 [N,D,H,W]."""
        cases = self._rng.integers(len(self._volumes), size=stage.batch).tolist()
        volumes, labels = (
            np.ascontiguousarray(np.stack(column)) for column in zip(*(self._crop(case, stage) for case in cases))
        )
        return torch.from_numpy(volumes[:, None]), torch.from_numpy(labels).long()

    def _crop(self, case: int, stage: Stage) -> tuple[NDArray[Any], NDArray[Any]]:
        middle = self._middle(*self._places[case], stage)
        shift = self._rng.integers(-REACH, REACH + 1, 3)
        start = np.clip(middle - stage.crop // 2 + shift, 0, np.subtract(SHAPE, stage.crop))
        box = tuple(slice(first, first + stage.crop) for first in start.tolist())
        step = self._rng.choice([-1, 1])
        return self._volumes[case][box][..., ::step], self._labels[case][box][..., ::step]

    def _middle(self, kidneys: NDArray[Any], tumours: NDArray[Any], stage: Stage) -> NDArray[Any]:
        chance = self._rng.random()
        if chance < stage.tumours and len(tumours):
            return tumours[self._rng.integers(len(tumours))]
        if chance < stage.tumours + stage.kidneys:
            return kidneys[self._rng.integers(len(kidneys))]
        return self._rng.integers(0, SHAPE)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross entropy plus one minus the soft DICE of kidneys and tumours."""
    truth = functional.one_hot(labels, CLASSES).movedim(-1, 1)[:, 1:]
    share = torch.softmax(logits, 1)[:, 1:]
    axes = (0, 2, 3, 4)
    dice = (2 * (share * truth).sum(axes) + 1) / (share.sum(axes) + truth.sum(axes) + 1)
    return functional.cross_entropy(logits, labels) + (1 - dice).mean()


def train(network: UNet, crops: Crops, stage: Stage) -> None:
    """Train a network for one stage."""
    optimiser = torch.optim.AdamW(network.parameters(), stage.rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.rate, total_steps=stage.steps)
    begin_s, mean = time.perf_counter(), 0.0
    for step in range(stage.steps):
        inputs, labels = crops.batch(stage)
        optimiser.zero_grad()
        loss = loss_of(network(inputs.to(memory_format=torch.channels_last_3d)), labels)
        loss.backward()
        optimiser.step()
        schedule.step()
        mean += 0.05 * (loss.item() - mean) if step else loss.item()
        if step % 20 == 19:
            seconds = time.perf_counter() - begin_s
            print(f"step {step + 1} of {stage.steps}: loss {mean:.3f}, {seconds:.0f} s", flush=True)


def main() -> None:
    """Train the network and write its weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS, metavar="FILE.npz")
    parser.add_argument("--from", dest="first", type=Path, metavar="FILE.npz", help="begin with this, the last stage")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    network = UNet().to(memory_format=torch.channels_last_3d)
    if options.first:
        network.load(np.load(options.first))
    for number, stage in enumerate(STAGES):
        if options.first and stage is not STAGES[-1]:
            continue
        train(network, Crops(range(TRAINING_SEEDS), number), stage)
        network.load(network.weights())  # as it is stored, so that `--from` gives the same
        np.savez_compressed(options.output, **network.weights())


if __name__ == "__main__":
    main()
