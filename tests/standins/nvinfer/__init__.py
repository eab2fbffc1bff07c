"""A stand-in for libnvinfer: see `tests/standins/README.md`."""
