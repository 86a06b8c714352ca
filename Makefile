# Everything a developer does, from a clean clone. `make` alone prints this list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPES := build/types
# Two processes; tests of one file share what they compute, so they stay together. Files with slow tests come
# first (tests/conftest.py): one that began last would keep a process waiting.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup model test test-fast test-faults bench reproduce-table lint types audit clean

help: ## Print what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install the package and its pinned dependencies into .venv

# PyTorch comes first, by its exact version: a build for the CPU that pip can see locally is then kept.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[endpoint,ray,quant,tensorboard,dev]'
	touch $@

model: setup ## Build the small default model in ~/.cache/sapo (once a machine)
	$(BIN)/sapo fetch model smollm2_135m

test: setup model ## Run every test
	$(BIN)/pytest $(PARALLEL)

test-fast: setup ## Run the tests that neither train nor evaluate the real small model
	$(BIN)/pytest $(PARALLEL) -m "not slow"

test-faults: setup ## Kill a small experiment 200 times, starve it, damage what it stored
	$(BIN)/pytest tests/faults --kills 200

bench: setup model ## Time scoring, training and evaluation against plain Transformers and PEFT
	$(BIN)/python tests/scale/bench.py all

reproduce-table: setup model ## Make Table 1 with the small model and the generated tasks
	$(BIN)/sapo reproduce table1 --scale mini

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders get their import names from the package mapping, so the types are those of the unpacked wheel.
types: setup ## Check the types of the package as a wheel installs it
	rm -rf build
	mkdir -p $(TYPES)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(TYPES) .
	$(BIN)/python -m zipfile --extract $(TYPES)/*.whl $(TYPES)
	MYPYPATH=$(TYPES) $(BIN)/mypy --package sapo

audit: ## Look the pinned dependencies up among published vulnerabilities (needs the network)
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean: ## Remove what was built here; results and the model cache stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
