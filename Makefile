# make demo   everything on a synthetic volume, in minutes
# make test   all tests
# make check  linter and type checker
# make bench  how fast and how large the segmentation core is; see tests/benchmarks/README.md
# make bench-losses  what the losses of training cost
# make bench-metrics  what the scores of tracings cost, beside another package
# make bench-skeletons  what skeletons cost, and how right they are
# make setup  .venv with the exact versions of requirements.lock

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check bench bench-losses bench-metrics bench-skeletons bench-volara lock clean

setup: $(STAMP)

# atomicwrites has no wheel on the package index; it is pure Python and needs no compiler.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("axonloom needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --only-binary=:all: --no-binary=atomicwrites --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/axonloom demo --out runs/demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Interpreter that has waterz, folder of the volumes, and where bench-volara makes its environment.
WATERZ_PYTHON ?= $(BIN)/python
BENCH := runs/benchmarks
VOLARA_ENV ?= $(BENCH)/volara-env

bench: setup
	$(BIN)/python tests/benchmarks/segment_chain.py --folder $(BENCH) --waterz-python $(WATERZ_PYTHON)
	$(BIN)/python tests/benchmarks/worker_memory.py --folder $(BENCH)
	$(BIN)/python tests/benchmarks/region_graph.py --folder $(BENCH)
	$(BIN)/python tests/benchmarks/region_graph_tree.py --folder $(BENCH)
	$(BIN)/python tests/benchmarks/size_scaling.py --folder $(BENCH)

bench-losses: setup
	$(BIN)/python tests/benchmarks/losses.py --folder $(BENCH)

bench-metrics: setup
	$(BIN)/python tests/benchmarks/skeleton_metrics.py --folder $(BENCH)

bench-skeletons: setup
	$(BIN)/python tests/benchmarks/skeleton_speed.py --folder $(BENCH)
	$(BIN)/python tests/benchmarks/skeleton_accuracy.py --folder $(BENCH)

# volara's own requirements do not go together with ours, so it gets an environment of its own.
bench-volara: setup
	test -e $(VOLARA_ENV)/bin/python || $(PYTHON) -m venv $(VOLARA_ENV)
	$(VOLARA_ENV)/bin/python -m pip install --quiet volara==1.0.5
	test -e $(BENCH)/volara_256.zarr || \
	    $(BIN)/python tests/benchmarks/volumes.py $(BENCH)/volara_256.zarr --shape 256 256 256
	$(VOLARA_ENV)/bin/python tests/benchmarks/volara_chain.py $(BENCH)/volara_256.zarr $(BENCH)/volara

# Exact versions of everything that `pyproject.toml` and the tools below ask for.
lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --only-binary=:all: --no-binary=atomicwrites . $(shell grep -v '^\#' requirements-dev.in)
	$(BIN)/python -m pip freeze --exclude axonloom > requirements.lock

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
