# Everything sets itself up: a virtual environment in .venv, PyTorch pinned, the rest by constraints.txt.
# Another Python or environment: make test PYTHON=python3.12 VENV=/path/to/venv
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.onereel-ready
# The version that the tests ran with; pyproject.toml itself allows torch >= 2.11. TORCH_OPTIONS are pip's, for a build
# other than the default one, for example: make setup TORCH_OPTIONS='--index-url URL-OF-THE-CPU-BUILDS'
TORCH = torch==2.13.0
TORCH_OPTIONS ?=

.PHONY: help setup demo test test-slow lint check bench clean
help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make the virtual environment

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "onereel needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) $(TORCH_OPTIONS)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## videos -> chunk store -> trained model -> evaluation -> runs/demo/report.html
	$(BIN)/python -m onereel.demo --out runs/demo

test: $(READY)  ## the tests, without those that take minutes
	$(BIN)/python -m pytest

test-slow: $(READY)  ## the tests that take minutes (some train on real videos)
	$(BIN)/python -m pytest -m 'slow and not gpu' --timeout 7200

lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test  ## lint, then the tests

bench: $(READY)  ## every benchmark at its small size; JSON beside the printed tables in runs/bench
	@mkdir -p runs/bench
	@for script in $$(ls benchmarks/*.py | grep -v -e common.py -e baselines.py); do \
	  echo "== $$script"; $(BIN)/python $$script --size small \
	    --json runs/bench/$$(basename $$script .py).json || exit 1; done

clean:  ## remove the environment and what runs have written
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
