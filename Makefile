PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STANDINS := $(CURDIR)/build/standins

.PHONY: demo test test-board standins lint bench clean

demo: $(VENV)/.installed  ## set up and run the main job, on the virtual Orin where no board is at hand
	$(BIN)/orin demo

test: $(VENV)/.installed lint  ## every test that needs no hardware
	$(BIN)/python -m pytest -n 2

test-board: standins  ## the Jetson path without a Jetson: the real bindings and pycuda, on stand-ins for what is below
	LD_LIBRARY_PATH=$(STANDINS)/lib PYTHONPATH=$(STANDINS)/python \
		$(BIN)/python -m pytest -n 2 --junitxml $(STANDINS)/board.xml tests/board

standins: $(VENV)/.installed  ## a few minutes once: pycuda and CUDA's headers are then kept in the user's cache
	$(BIN)/python -m tests.standins.build

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: standins  ## every benchmark, quick
	$(BIN)/python -m pip install -q -e '.[bench]'
	for file in pipeline fidelity placement calibration power jetson_path volumes volumes_gpu fleet tuner; do $(BIN)/python benchmarks/$$file.py --quick; done

$(VENV)/.installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "orin-toolkit needs Python 3.10 or later, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
