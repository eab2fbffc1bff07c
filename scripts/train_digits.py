"""Train the zoo's `digits` network: five stratified folds of scikit-learn's digits, one set of weights a fold.

Needs PyTorch (`pip install torch==2.13.0`, the CPU version is enough) and scikit-learn; the toolkit itself needs
neither. Writes `engines/zoo/digits.npz`. One thread and fixed seeds: the same PyTorch on the same kind of CPU gives the
same bytes; elsewhere the order of sums differs, and with it the last images of a fold.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from calibration.digits import Digits, load_digits  # noqa: E402
from engines.zoo.digits import CHANNELS, CLASSES, FOLDS, WEIGHTS  # noqa: E402

EPOCHS = 80
BATCH = 64
RATE, DECAY, SMOOTHING = 4e-3, 5e-2, 0.1
TURN_DEGREES, STRETCH, SHIFT = 12.0, 0.12, 0.12  # how far an image is distorted at most; the last a share of the side


class Normalised(nn.Module):
    """A 3x3 convolution and its batch normalisation, which `folded` merges."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(depth, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised sums."""
        result: Tensor = self.norm(self.conv(x))
        return result

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one convolution that computes the same."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - self.norm.running_mean * scale


class Classifier(nn.Module):
    """The network of `engines/zoo/digits.py`, its layers under the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.normalised = nn.ModuleDict()
        depth = 3
        for number, channels in enumerate(CHANNELS, start=1):
            for name in (f"conv{number}", f"layer{number}.conv1", f"layer{number}.conv2"):
                self.normalised[name.replace(".", "/")] = Normalised(depth, channels)
                depth = channels
        self.classifier = nn.Conv2d(depth, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N,10] of images [N,3,16,16]."""
        for number in range(1, len(CHANNELS) + 1):
            x = functional.relu(self.normalised[f"conv{number}"](x))
            y = functional.relu(self.normalised[f"layer{number}/conv1"](x))
            x = functional.relu(self.normalised[f"layer{number}/conv2"](y) + x)
            if number < len(CHANNELS):
                x = functional.max_pool2d(x, 2)
        logits: Tensor = self.classifier(functional.avg_pool2d(x, x.shape[-1]))
        return logits.flatten(1)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return the weights as the zoo names them, batch normalisation folded, float16."""
        layers = {name.replace("/", "."): layer.folded() for name, layer in self.normalised.items()}
        layers["classifier"] = (self.classifier.weight, self.classifier.bias)
        return {
            f"{name}.{kind}": value.detach().numpy().astype(np.float16)
            for name, pair in layers.items()
            for kind, value in zip(("weight", "bias"), pair)
        }


def distorted(images: Tensor, random: torch.Generator) -> Tensor:
    """Turn, stretch and shift each image a little; what comes in from outside is paper."""
    turn, stretch_x, stretch_y, shift_x, shift_y = torch.rand(5, len(images), generator=random) * 2 - 1
    cos, sin = torch.cos(turn * math.radians(TURN_DEGREES)), torch.sin(turn * math.radians(TURN_DEGREES))
    x, y = 1 + stretch_x * STRETCH, 1 + stretch_y * STRETCH
    rows = (cos * x, -sin * y, 2 * SHIFT * shift_x, sin * x, cos * y, 2 * SHIFT * shift_y)
    grid = functional.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def batches(data: Digits, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the shuffled, distorted images of one epoch and their labels."""
    images, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    for chosen in torch.randperm(len(labels), generator=random).split(BATCH):
        yield distorted(images[chosen], random), labels[chosen]


def train(data: Digits, seed: int) -> Classifier:
    """Return a classifier trained on these images."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = Classifier()
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(data.labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for images, labels in batches(data, random):
            optimiser.zero_grad()
            functional.cross_entropy(network(images), labels, label_smoothing=SMOOTHING).backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def main() -> None:
    """Train every fold and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS, metavar="FILE.npz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_digits()
    fold_of = np.empty(len(data.labels), np.uint8)
    sets, right = [], 0
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(data.labels, data.labels)
    for fold, (seen, kept) in enumerate(splits):
        begin_s = time.perf_counter()
        fold_of[kept] = fold
        network = train(data.part(seen), fold)
        with torch.no_grad():
            answers = network(torch.from_numpy(data.inputs[kept])).argmax(1).numpy()
        hits = int((answers == data.labels[kept]).sum())
        right += hits
        sets.append(network.weights())
        print(f"fold {fold}: {hits} of {len(kept)} right, {time.perf_counter() - begin_s:.0f} s", flush=True)
    print(f"all folds: {right} of {len(data.labels)} right")
    stacked = {name: np.stack([weights[name] for weights in sets]) for name in sets[0]}
    np.savez_compressed(options.output, fold=fold_of, **stacked)


if __name__ == "__main__":
    main()
