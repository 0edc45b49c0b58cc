# Works on a machine that has only Python 3.11 with pip: uv is installed into a private environment where it is missing.
SHELL := /bin/bash
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := .venv/bin

.PHONY: setup demo test lint bench clean

setup: .venv/.complete

.venv/.complete: pyproject.toml
	@command -v $(UV) >/dev/null 2>&1 || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv; }
	@test -x .venv/bin/python || $(UV) venv --quiet --python 3.11 .venv 2>/dev/null || $(UV) venv --quiet .venv
	$(UV) pip install --quiet --python .venv/bin/python --editable ".[all,dev]"
	@touch $@

demo: setup
	$(RUN)/omnivae demo --output demo

test: setup
	$(RUN)/python -m pytest -n 2

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

bench: setup
	$(RUN)/python -m benchmarks

clean:
	rm -rf .venv .uv dist build .pytest_cache .mypy_cache .ruff_cache
