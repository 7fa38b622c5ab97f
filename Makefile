PYTHON ?= python3
BIN := .venv/bin
SOURCES := t2i_gcpo rewards
# A process a core, each with one thread (tests/conftest.py) and some 3 GB of memory; a file's tests stay together.
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile
.DEFAULT_GOAL := help
.PHONY: help install quickstart notebooks test test-slow test-browser lint format figures docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed ## make .venv here, with pinned versions (constraints.txt)

# The stamp is written last, so an installation that was interrupted is done again. Python compiles what it imports;
# compiling all 20,000 files of the packages beforehand costs more than a minute.
.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: install ## train the embedded generator for some minutes
	$(BIN)/t2i-gcpo train --config configs/quickstart.yaml

notebooks: install ## execute notebooks/*.py into .ipynb
	$(BIN)/python notebooks/execute.py

test: install ## the quick tests
	$(BIN)/python -m pytest -m 'not slow' $(WORKERS)

test-slow: install ## the tests that train or compile
	$(BIN)/python -m pytest -m slow

test-browser: install ## drive the demo and a heatmap's page in Chromium; screenshots/ keeps what was seen
	T2I_GCPO_SCREENSHOTS=screenshots $(BIN)/python -m pytest -m slow tests/browser

lint: install ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)

format: install ## rewrite in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: install ## draw the pictures of docs/ anew; the curves of a study from its trials, where they are there
	PATH="$(CURDIR)/$(BIN):$$PATH" docs/figures.sh

docs: install ## build the documentation: site/index.html
	$(BIN)/python -m t2i_gcpo.commands.options.reference docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean: ## remove .venv, caches and site/; runs/ stays
	rm -rf .venv site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find $(SOURCES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
