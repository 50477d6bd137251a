# Everything a machine or a newcomer needs to run; CONTRIBUTING.md says when to use what.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@echo "make demo   the quickstart in two kernels, with a table of what it measured"
	@echo "make test   ruff, mypy and all tests; with TORCH=torch those with PyTorch, too"
	@echo "make lint   ruff and mypy alone"
	@echo "make clean  remove the virtual environment and all caches"

demo: $(VENV)/examples.stamp
	$(BIN)/python notebooks/demo.py

test: lint $(if $(TORCH),$(VENV)/torch.stamp)
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Needed: Python 3.11 or newer; \"$(PYTHON)\" is not. Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Needed: Python's venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra: its packages are installed again only when pyproject.toml has changed.
$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

# Not a test dependency: on most machines it is a download of gigabytes.
$(VENV)/torch.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
