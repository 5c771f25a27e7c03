.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
ITEM ?= --list
STAMP := $(VENV)/.installed

.PHONY: help setup quickstart reproduce test coverage lint format bench assets clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with the pinned full set of packages

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
		|| { echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); Python 3.11 or 3.12 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[tensorboard,joblib,submitit,optuna,dev]'
	@touch $@

quickstart: setup  ## Fine-tune, merge, route and score five tasks on this machine, in minutes
	$(BIN)/python run.py +exp=quickstart

reproduce: setup  ## Compute a table or figure of the paper: make reproduce ITEM=table_8
	$(BIN)/python reproduce.py $(ITEM)

test: setup  ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

coverage: setup  ## Run all tests and show which lines none of them runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

lint: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## Rewrite the code in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Compare speed and memory of merges and of routed batches with others, in ratios (an hour, 14 GB of disk)
	$(BIN)/python benchmarks/merging.py --json outputs/merging.json
	$(BIN)/python benchmarks/dynamic.py --json outputs/dynamic.json

assets: setup  ## Fetch and verify the offline models and data
	$(BIN)/python -m twin_merging.assets fetch

clean:  ## Remove the environment and tool caches; results and artefacts stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .coverage *.egg-info
