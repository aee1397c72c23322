# The door of the house. `make` alone lists what it can do.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# What `starai up` gets, for example: make up ARGS="--nodes 2 --port 9000"
ARGS ?=
# What pytest gets, for example: make test TESTS="tests/unit/wire -x"
TESTS ?=
# How many processes share the tests; 0: pytest does all itself, which a debugger needs.
TEST_JOBS ?= 2
LOCK := requirements/lock.txt
PIP_LOCKED = $(shell sed -n 's/^pip==/pip==/p' $(LOCK))
# Bytecode is written on first use: compiling all of torch up front costs more than it saves.
INSTALL = $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c $(LOCK)

# Hundreds of the processes that tests start read the same modules: they are compiled once.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest

# What the first start would otherwise compile while somebody waits for it.
WARM_UP = import starai.cli.up; from starai.engines.registry import open_engine; \
  from starai.engines.base import EngineSpec; open_engine(EngineSpec('text', 'embedded'))

.DEFAULT_GOAL := help
.PHONY: help install up test test-all check bench docs lock contracts clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.engine ## set up .venv with what a network on this machine needs

up: $(VENV)/.engine ## start a network on this machine; Ctrl-C stops it (ARGS="--nodes 2")
	@exec $(BIN)/starai up $(ARGS)

test: $(VENV)/.dev ## run the tests (TESTS="tests/unit/wire -x")
	@$(PYTEST) -n $(TEST_JOBS) --dist worksteal $(TESTS)

test-all: $(VENV)/.dev ## run every test, the slow ones too
	@$(PYTEST) -m "slow or not slow" --timeout=900 -o faulthandler_timeout=880 $(TESTS)

check: $(VENV)/.dev $(VENV)/.docs ## lint, format, types, layers, test docstrings, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate --quiet tests
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.engine ## measure the gateway beside a bare echo and LiteLLM
	$(BIN)/python benchmarks/network/gateway.py $(ARGS)

docs: $(VENV)/.docs ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lock: ## resolve all versions afresh into requirements/lock.txt
	$(PYTHON) requirements/lock.py

contracts: $(VENV)/.dev ## compile the settlement's contracts into the artefacts beside them
	$(BIN)/python requirements/contracts.py

clean: ## remove everything that was built or installed here
	rm -rf $(VENV) build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp stands for an installed set; it is rebuilt when the versions or the needs change.
$(VENV)/.pip: $(LOCK)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "StarAI needs Python 3.11: install it, or name yours with  make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || { \
	  echo "StarAI needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)"; exit 1; }
	@echo "Setting up $(VENV) (one to two minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(PIP_LOCKED)
	@touch $@

$(VENV)/.engine: $(VENV)/.pip pyproject.toml
	@$(INSTALL) --build-constraint $(LOCK) -e ".[engine]"
	@$(BIN)/python -m starai.engines.native.build
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c "$(WARM_UP)"
	@touch $@

$(VENV)/.dev: $(VENV)/.engine
	@$(INSTALL) --group dev
	@touch $@

$(VENV)/.docs: $(VENV)/.engine
	@$(INSTALL) --group docs
	@touch $@
