# muNeoX: `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp

# One OpenMP thread per process: several processes with more threads would compete for few cores.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo layouts test test-all clusters gpu lint typecheck format bench docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv with pinned packages, or update it if the pins changed
	@echo "$(VENV) is up to date"

$(STAMP): pyproject.toml requirements/constraints.txt tools/setup_env.py
	$(PYTHON) tools/setup_env.py --venv $(VENV)
	@touch $@

demo: $(STAMP)  ## prepare a corpus, check muP, search, forecast and train, in minutes on two CPU cores
	$(BIN)/python tools/demo.py

layouts: $(STAMP)  ## train under 67 layouts in up to four processes and compare each with one process
	$(BIN)/python tools/layouts.py

test: $(STAMP)  ## run the tests that are not marked slow
	$(PYTEST)

test-all: $(STAMP)  ## run all tests
	$(PYTEST) -m ""

clusters: $(STAMP)  ## test launchers with real Slurm, pdsh and ssh on two hosts in namespaces (as root)
	MUNEOX_CLUSTERS=required $(BIN)/python -m pytest -n 0 -m "" tests/clusters

lint: $(STAMP)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory typecheck

typecheck: $(STAMP)  ## run only mypy
	$(BIN)/mypy --strict mup megatron muneox tools benchmarks examples *.py
	$(BIN)/mypy tests

format: $(STAMP)  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Uses the machine's Python because its torch fits the device. Installs nothing.
gpu:  ## run the GPU tests and the GPU benchmark with PYTHON's torch; writes runs/gpu.md
	@mkdir -p runs
	@set -o pipefail; { $(PYTHON) -m pytest -q -n 6 -m gpu tests/gpu; tests=$$?; \
	  PYTHONPATH=.:$$PYTHONPATH $(PYTHON) benchmarks/gpu_training.py && exit $$tests; } 2>&1 | tee runs/gpu.md

bench: $(STAMP)  ## run every benchmark
	@set -e; for script in $(filter-out benchmarks/gpu_%,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(STAMP)  ## build the documentation as a site in build/site, with the API from the docstrings
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove caches and build files; keep .venv, data, runs and checkpoints
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
