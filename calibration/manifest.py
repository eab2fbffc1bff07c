"""What a calibration was made from: network, method, pre-processing, and the SHA-256 of each file, in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from calibration.dataset import Skipped
from calibration.errors import CalibrationError

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """What decides a network's ranges beside the files: the same files and the same recipe give the same ranges."""

    model_sha256: str
    method: str
    source: Mapping[str, Any]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def canonical(self) -> str:
        """Return the recipe as JSON, always the same for the same recipe."""
        return json.dumps(asdict(self), sort_keys=True)

    def differs(self, other: Recipe) -> str | None:
        """Return what is different in plain words, None if nothing is."""
        mine, others = json.loads(self.canonical()), json.loads(other.canonical())
        words = {"model_sha256": "network", "method": "method", "source": "data", "fixed": "input range"}
        return next((word for key, word in words.items() if mine[key] != others[key]), None)


@dataclass(frozen=True)
class Manifest:
    """A recipe and the files that were used with it.

    `files` maps the name of each file, in the order of use, to the SHA-256 of what was read of it; `cache_sha256` is
    that of the cache that came of it.
    """

    recipe: Recipe
    samples: int
    files: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()
    cache_sha256: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of recipe and files; names and folders of files do not count."""
        return digest(self.recipe, self.files)

    def dumps(self) -> str:
        """Return the manifest as JSON."""
        values = {"version": MANIFEST_VERSION, "digest": self.digest, **asdict(self)}
        return json.dumps({**values, "files": list(self.files.items())}, indent=1) + "\n"


def digest(recipe: Recipe, files: Mapping[str, str]) -> str:
    """Return the SHA-256 of a recipe and of its files' SHA-256 in their order, in hex."""
    return hashlib.sha256("\n".join([recipe.canonical(), *files.values()]).encode()).hexdigest()


def read_manifest(text: str) -> Manifest:
    """Read a manifest's JSON; CalibrationError where it is none, of another version, or not what its digest says."""
    try:
        values = json.loads(text)
        if values["version"] != MANIFEST_VERSION:
            raise CalibrationError(f"manifest has version {values['version']}, expected {MANIFEST_VERSION}")
        skipped = tuple(Skipped(**entry) for entry in values["skipped"])
        recipe, files = Recipe(**values["recipe"]), dict(values["files"])
        manifest = Manifest(recipe, values["samples"], files, skipped, values["cache_sha256"])
        damaged = manifest.digest != values["digest"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"manifest cannot be read: {' '.join(str(error).split())}") from None
    if damaged:
        raise CalibrationError(f"manifest has the digest {values['digest']}, its content {manifest.digest}")
    return manifest
