# Every target does its own set-up: a virtual environment, the dependencies as the package index gives them, the
# compiled extension. A second call finds the stamps and starts at once; a changed pyproject.toml, setup.py or csrc/
# installs or builds again.
#
#   make demo PYTHON=python3.12     another interpreter (3.10 or newer); the environment is made anew when it differs
#   make test JOBS=1 TESTS=tests/ops   fewer workers, some of the tests

SHELL := /bin/bash
VENV ?= .venv
JOBS ?= 2
TESTS ?= tests
DEMO ?= demo

BIN := $(VENV)/bin
PY := $(BIN)/python
UV := $(BIN)/uv pip install --quiet --python $(PY)
DEPS := $(VENV)/.stamp-dependencies
BUILT := $(VENV)/.stamp-built
# Torch's and the numeric libraries' thread pools: each worker is one thread, two workers fill two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
SOURCES := pyproject.toml $(wildcard setup.py) $(shell find csrc -type f 2>/dev/null)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
VERSION := import sys; print(*sys.version_info[:2])

ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
    $$p -c '$(NEW_ENOUGH)' 2>/dev/null && { echo $$p; break; }; done)
else ifneq ($(wildcard $(PY)),)
ifneq ($(shell $(PYTHON) -c '$(VERSION)' 2>/dev/null),$(shell $(PY) -c '$(VERSION)' 2>/dev/null))
# The environment is of another version: make it anew, whatever its stamps say.
.PHONY: $(PY) $(DEPS)
endif
endif

# Some machines forbid Python to keep compiled modules; importing torch then takes 5.2 s of processor time instead of
# 2.4 in every process that a test starts.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint format test-slow bench clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

install: $(BUILT)  ## environment, dependencies, extension; nothing else

demo: $(BUILT)  ## train two small networks on the digits, find the path between them, certify and draw it
	@$(BIN)/llpf demo --out $(DEMO)

test: lint  ## lint, types and every test but the slow ones
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) -m "not slow" $(TESTS)

lint: $(BUILT)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEPS)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(BUILT)  ## the tests that take minutes (real MNIST, kill -9, ...)
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) -m slow --durations=10 $(TESTS)

bench: $(BUILT)  ## time the kernels, ten minutes on an idle machine; results into benchmarks/results/cpu
	$(BIN)/llpf bench --out benchmarks/results/cpu

clean:  ## remove what was built, not the environment
	rm -rf build dist *.egg-info $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks $(BUILT)
	rm -f llpf_fast/*.so
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)

$(PY):
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 or newer found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { echo "make: $(PYTHON) is missing or older than 3.10; name another: make PYTHON=..." >&2; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(PY); echo "make: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(DEPS): pyproject.toml | $(PY)
	@test -x $(BIN)/uv || $(PY) -m pip install --quiet --disable-pip-version-check uv
	@echo "installing the dependencies (torch is large: the first time takes a while)"
	@$(UV) -r pyproject.toml --extra dev --extra all
	@touch $@

$(BUILT): $(DEPS) $(SOURCES)
	@echo "building the extension"
	@$(UV) --no-build-isolation --no-deps --reinstall-package llpf_fast -e .
	@touch $@
