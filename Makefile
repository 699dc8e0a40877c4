# `make` lists what can be done. Everything runs in .venv, which `make setup` creates.
PYTHON ?= python3
LAKE ?= lake
VENV := .venv/bin

.PHONY: help setup demo test test-slow test-e2e lint bench format clean

help:            ## this list
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*##/\t/' | expand -t 12

.venv/ready: pyproject.toml infra/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Gradus needs Python 3.11 or newer; make PYTHON=/path/to/python3.11 …") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[dev]'
	@touch $@

setup: .venv/ready ## make .venv and install Gradus with pinned versions

demo: .venv/ready ## run the whole loop on the embedded corpus (about 6 minutes on 2 cores)
	@$(VENV)/gradus demo --lake $(LAKE)

test: .venv/ready ## all tests
	@$(VENV)/python -m pytest -n 2 --dist loadgroup

test-slow: .venv/ready ## tests of minutes: real schedules, kills on an object store, Dask and Ray
	@$(VENV)/pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[dev,dask,ray]'
	@$(VENV)/python -m pytest --slow -m slow

test-e2e: .venv/ready ## the pages in a real browser (needs Chromium)
	@$(VENV)/pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[e2e]'
	@$(VENV)/python -m pytest tests/e2e

lint: .venv/ready ## style, types, direction of imports
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/pyright
	@$(VENV)/lint-imports

format: .venv/ready ## lay the code out
	@$(VENV)/ruff format .
	@$(VENV)/ruff check --fix .

bench: .venv/ready ## the quick benchmarks, each with its table
	@for f in tests/benchmarks/*.py; do echo "== $$f"; $(VENV)/python $$f --quick; done

clean:           ## remove .venv and caches (never a lake)
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
