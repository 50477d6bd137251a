# Everything a machine or a newcomer needs to run; CONTRIBUTING.md says when to use what.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo lab test panel lint clean

help:
	@echo "make demo   the quickstart in two kernels, with a table of what it measured"
	@echo "make lab    JupyterLab with the side panel, on the quickstart"
	@echo "make test   ruff, mypy and all tests; with TORCH=torch those with PyTorch, too"
	@echo "make panel  the side panel's checks and its tests in a browser; needs npm and chromium"
	@echo "make lint   ruff and mypy alone"
	@echo "make clean  remove the virtual environment and all caches"

demo: $(VENV)/examples.stamp
	$(BIN)/python notebooks/demo.py

lab: $(VENV)/panel-lab.stamp
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

test: lint $(if $(TORCH),$(VENV)/torch.stamp)
	$(BIN)/python -m pytest

panel: $(VENV)/panel-browser.stamp
	cd labextension && npm ci && npm run lint && npm test
	$(BIN)/python -m pytest tests/browser

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
# Without the side panel, which would need Node: tests and demo have no use for it.
$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	SKIP_JUPYTER_BUILDER=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

# With it: built anew when one of its sources has changed, by Node from PyPI if this machine has none.
PANEL := hatch_build.py $(wildcard labextension/*.json labextension/src/* labextension/schema/* labextension/style/* flyte_jupyter/widgets/*.js)
$(VENV)/panel-%.stamp: pyproject.toml $(PANEL) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

# Not a test dependency: on most machines it is a download of gigabytes.
$(VENV)/torch.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@touch $@

clean:
	rm -rf $(VENV) dist build labextension/lib labextension/node_modules flyte_jupyter/labextension .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
