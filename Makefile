# Everything a machine or a newcomer needs to run; CONTRIBUTING.md says when to use what.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Node, if it had to come from PyPI, is in the virtual environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)

MODULES := labextension/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo lab test test-newest panel lint clean

help:
	@echo "make demo   the quickstart in two kernels, with a table of what it measured"
	@echo "make lab    JupyterLab with the side panel, on the quickstart"
	@echo "make test   all checks and all tests; with TORCH=torch those with PyTorch, too"
	@echo "make test-newest  the tests with the newest ipykernel, IPython and jupyter_client, whatever pyproject.toml allows"
	@echo "make panel  of these, what concerns the side panel: its checks and the tests in a browser"
	@echo "make lint   of these, ruff and mypy alone"
	@echo "make clean  remove the virtual environment and all caches"

demo: $(VENV)/examples.stamp
	$(BIN)/python notebooks/demo.py

# Jupyter refuses to be root's unless it is told to. Whoever is root here means it.
lab: $(VENV)/panel-lab.stamp
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/quickstart.ipynb

# Both runs of pytest, whatever becomes of the first; each ends with its own summary. Most tests wait for processes most
# of their time, so two at once take half as long; those of a file stay together, and share its pools.
test: $(MODULES) $(VENV)/panel-browser.stamp $(if $(TORCH),$(VENV)/torch.stamp)
	$(BIN)/python tests/browser/chromium.py
	$(CHECK_PYTHON)
	$(CHECK_PANEL)
	$(BIN)/python -m pytest -n 2 --dist loadfile; tests=$$?; $(BIN)/python -m pytest tests/browser && exit $$tests

# In a virtual environment of its own. What pip says about this package's bounds is the point of it.
NEWEST := .venv-newest
test-newest: | $(BIN)/python
	$(PYTHON) -m venv $(NEWEST)
	SKIP_JUPYTER_BUILDER=1 $(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade ipykernel ipython jupyter_client
	$(NEWEST)/bin/python -m pytest tests/test_seams.py && $(NEWEST)/bin/python -m pytest -n 2 --dist loadfile

panel: $(MODULES) $(VENV)/panel-browser.stamp
	$(BIN)/python tests/browser/chromium.py
	$(CHECK_PANEL)
	$(BIN)/python -m pytest tests/browser

lint: $(VENV)/test.stamp
	$(CHECK_PYTHON)

define CHECK_PYTHON
$(BIN)/ruff check .
$(BIN)/ruff format --check .
$(BIN)/mypy
endef

define CHECK_PANEL
cd labextension && npm run --silent lint && npm test --silent
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Needed: Python 3.11 or newer; \"$(PYTHON)\" is not. Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Needed: Python's venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra: its packages are installed again only when pyproject.toml has changed.
# Without the side panel, which would need Node: ruff, mypy and the demo have no use for it.
$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	SKIP_JUPYTER_BUILDER=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

# With it: built anew when one of its sources has changed, by Node from PyPI if this machine has none.
PANEL := hatch_build.py $(wildcard labextension/*.json labextension/src/* labextension/src/[!_]*/* labextension/schema/* labextension/style/* flyte_jupyter/widgets/*.js)
$(VENV)/panel-%.stamp: pyproject.toml $(PANEL) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

$(MODULES): labextension/package-lock.json | $(VENV)/node.stamp
	cd labextension && npm ci
	@touch $@

# This machine's, if it is new enough.
$(VENV)/node.stamp: | $(BIN)/python
	@npm --version >/dev/null 2>&1 && \
	  node -e 'const [a, b] = process.versions.node.split("."); process.exit(+(a == 20 ? b < 19 : a == 22 ? b < 12 : a < 23))' \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^NODE = "\(.*\)"/\1/p' hatch_build.py)"
	@touch $@

# Not a test dependency: on most machines it is a download of gigabytes.
$(VENV)/torch.stamp: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@touch $@

clean:
	rm -rf $(VENV) $(NEWEST) dist build labextension/lib labextension/node_modules labextension/*.tsbuildinfo flyte_jupyter/labextension .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
