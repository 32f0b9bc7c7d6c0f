# make demo | test | check | test-all | bench | bench-NAME.  TORCH=SPEC names another torch: make TORCH=torch==2.11.0 demo
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
TORCH ?=
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: setup demo check test test-all bench clean
setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" ./setup.sh

demo: setup
	$(BIN)/mos demo --out mos-demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	tests/install_system_packages.sh
	$(BIN)/python -m pytest --require-everything

# The peer that bench-registry measures beside the registry; nothing else needs it.
$(VENV)/.peers: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt mlflow-skinny sqlalchemy alembic
	touch $@
bench-registry bench: $(VENV)/.peers

bench-%: setup
	$(BIN)/python -m benchmarks.$*

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) mos-demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
