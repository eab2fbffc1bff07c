"""Recorded machines: what the device tree, release file and folders of each board look like, laid out below a root."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def machine(root, name):
    """Lay a recorded machine out below `root`; returns it."""
    recorded = json.loads((HERE / f"{name}.json").read_text())
    for folder in recorded["folders"]:
        (root / folder).mkdir(parents=True)
    for path, text in recorded["files"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def jetson(root, module="p3701-0005", compiler="nvidia", release="R36 (release), REVISION: 4.4"):
    """An AGX Orin as recorded, with another module number, library folder or release line (none: no release file)."""
    machine(root, "agx-orin-64gb")
    tree = root / "proc/device-tree/compatible"
    tree.write_text(tree.read_text().replace("p3701-0005", module))
    libraries = root / "usr/lib/aarch64-linux-gnu"
    (libraries / "nvidia").rename(libraries / compiler)
    told = root / "etc/nv_tegra_release"
    told.write_text(f"# {release}, GCID: 1, BOARD: generic") if release else told.unlink()
    return root
