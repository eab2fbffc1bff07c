"""`python -m tests.standins.run script.py [arguments]`: run a script as if TensorRT were installed."""

from __future__ import annotations

import runpy
import sys

from tests.standins import install

if __name__ == "__main__":
    install.activate()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
