"""Photographs for runs without a folder of one's own: those that scikit-image's wheel carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from orin.errors import OrinError

# Photographs in the wheel (public domain or CC0, see scikit-image's data/README): people, animals, things, machines.
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
)


def library_photos() -> list[Path]:
    """Return the photographs' paths; OrinError says what to install where there are none."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise OrinError("no photos: give --data FOLDER, or install scikit-image (pip install 'orin-toolkit[demo]')")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    return [path for path in (folder / name for name in PHOTOGRAPHS) if path.is_file()]
