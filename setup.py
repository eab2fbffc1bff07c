"""Packaging of orin-toolkit: five packages, nothing else."""

from pathlib import Path

from setuptools import setup

PACKAGES = [
    "calibration",
    "dla",
    "dla.rewrites",
    "engines",
    "engines.tensorrt",
    "engines.volumes",
    "engines.zoo",
    "orin",
    "orin.cli",
    "orin.export",
    "orin.flash",
    "orin.fleet",
    "orin.jetson",
    "orin.provision",
    "orin.published",
    "orin.report",
    "orin.setup",
    "orin.tune",
    "orin.virtual",
    "orin.volumes",
    "power",
]

# Every base dependency has an aarch64 wheel, or an sdist that compiles on the board (LoadGen);
# benchmarks/resolve_aarch64.py shows it. TensorRT comes from apt on a Jetson, never from pip.
BASE = [
    "numpy>=1.26",
    "onnx>=1.16",
    "onnx-ir>=0.1.12",
    "onnxruntime>=1.18",
    "opencv-python-headless>=4.9",
    "pyyaml>=6",
    "mlcommons-loadgen>=5.1",
    "matplotlib>=3.8",
    "jinja2>=3.1",
    "rich>=13",
]

DEMO = [
    "scikit-image>=0.22",  # its wheel carries the photographs of `orin demo`
    "scikit-learn>=1.3",  # and this one's the digits that the network `digits` was trained on
]

FLEET = ["distributed>=2024.8"]
VOLUMES = ["nibabel>=5", "numba>=0.59"]  # CT scans; adding windows of large volumes up, compiled
TRITON = ["tritonclient>=2.50", "grpcio>=1.60"]

EXTRAS = {
    "jetson": ["pycuda>=2024.1", "jetson-stats>=4.3"],
    "demo": DEMO,
    "fleet": FLEET,
    "triton": TRITON,
    "volumes": VOLUMES,
    "dev": [
        *DEMO,
        *FLEET,
        *TRITON,
        *VOLUMES,
        "asyncssh>=2.14",  # the board that tests of `orin provision` reach over ssh
        "pytest>=8",
        "pytest-xdist>=3.5",
        "hypothesis>=6",
        "ruff>=0.6",
        "mypy>=1.11",
        "types-PyYAML",
    ],
    "bench": ["scipy>=1.11", "jetson-stats>=4.3", "coverage>=7", "optuna>=3.6"],
}

setup(
    name="orin-toolkit",
    version="0.1.0",
    description="Deploy networks on NVIDIA Jetson AGX Orin: GPU + 2 DLA at once, measured, tuned, simulated",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=PACKAGES,
    package_data={
        "engines.volumes": ["*.cu"],
        "engines.zoo": ["*.npz"],
        "orin.flash": ["*.yaml"],
        "orin.published": ["*.yaml"],
        "orin.report": ["*.html.j2"],
        "orin.setup": ["*.yaml"],
        "orin.virtual": ["*.yaml"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["orin = orin.cli.main:main"]},
)
