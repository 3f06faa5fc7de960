# make demo   everything on a synthetic volume, in minutes
# make test   all tests
# make check  linter and type checker
# make setup  .venv with the exact versions of requirements.lock

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check lock clean

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

# Exact versions of everything that `pyproject.toml` and the tools below ask for.
lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --only-binary=:all: --no-binary=atomicwrites . $(shell grep -v '^\#' requirements-dev.in)
	$(BIN)/python -m pip freeze --exclude axonloom > requirements.lock

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
