"""How far a pass has come, kept on disk so that a killed one goes on where it was."""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import Skipped
from calibration.manifest import Recipe
from calibration.observers import Observer
from calibration.source import Batch
from engines.files import replace_file

STATE_VERSION = 1
PREFIX = "observer."  # of the observer's arrays in the file
EVERY_S = 10.0
TIMES_ITS_OWN = 20  # histograms of a large network are hundreds of MiB: writing them takes a twentieth at most
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass
class Tally:
    """What a pass has done so far: batches, items and samples, files with their SHA-256, and what was skipped."""

    batches: int = 0
    items: int = 0
    samples: int = 0
    files: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Count a batch that is done."""
        self.batches += 1
        self.items += batch.items
        self.samples += batch.samples
        self.files.update(batch.files)
        self.skipped.extend(batch.skipped)


@dataclass
class Checkpoint:
    """The state of a pass in one file; `say` is told when that cannot be used.

    The file is an .npz of plain arrays, replaced at most every `every_s` seconds of `clock`, and less often where
    writing it takes long.
    """

    path: Path
    say: Callable[[str], None]
    every_s: float = EVERY_S
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._next_s = self.clock() + self.every_s

    def load(self, recipe: Recipe) -> tuple[Tally, Mapping[str, NDArray[Any]]] | None:
        """Return the tally and the observer's state of an interrupted pass with this recipe; None where none is."""
        try:
            with np.load(self.path, allow_pickle=False) as state:
                header = json.loads(str(state["header"]))
                if header["version"] != STATE_VERSION:
                    raise ValueError(f"version {header['version']}, expected {STATE_VERSION}")
                other = recipe.differs(Recipe(**header["recipe"]))
                tally = Tally(**header["tally"])
                arrays = {name: state[PREFIX + name] for name in header["arrays"]}
        except FileNotFoundError:
            return None
        except READ_ERRORS as error:
            self.drop(f"it cannot be read ({' '.join(str(error).split())})")
            return None
        if other:
            self.drop(f"its {other} is another")
            return None
        tally.skipped = [Skipped(**entry) for entry in header["tally"]["skipped"]]
        return tally, arrays

    def drop(self, reason: str) -> None:
        """Say that the state is not used, and why."""
        self.say(f"{self.path} is not continued: {reason}; calibrating from the first sample")

    def save_if_due(self, recipe: Recipe, tally: Tally, observer: Observer) -> None:
        """Write the state where the last one is old enough."""
        began_s = self.clock()
        if began_s < self._next_s:
            return
        arrays = observer.state()
        values = {"recipe": asdict(recipe), "tally": asdict(tally), "arrays": list(arrays)}
        members: dict[str, Any] = {PREFIX + name: array for name, array in arrays.items()}
        members["header"] = np.array(json.dumps({"version": STATE_VERSION, **values}))
        replace_file(self.path, lambda file: np.savez(file, **members))
        ended_s = self.clock()
        self._next_s = ended_s + max(self.every_s, TIMES_ITS_OWN * (ended_s - began_s))

    def remove(self) -> None:
        """Remove the state: the pass is done."""
        self.path.unlink(missing_ok=True)
