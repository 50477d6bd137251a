"""A notebook without a kernel: IPython's own cells, compiled and kept in linecache as a kernel does it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from scripted import Stage, open_stage
from traitlets.config import Config

from flyte_jupyter import runtime
from flyte_jupyter.client import broker
from flyte_jupyter.core.definitions import Closure, texts_of
from flyte_jupyter.kernel.namespace import NotebookModule
from flyte_jupyter.kernel.namespaces import Namespaces


class Notebook:
    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.names: dict[str, Any] = shell.user_ns

    def cell(self, text: str) -> None:
        self.shell.run_cell(text).raise_error()

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    config = Config()
    config.HistoryManager.enabled = False
    main = sys.modules["__main__"]
    InteractiveShell.clear_instance()
    try:
        yield Notebook(InteractiveShell.instance(config=config))
    finally:
        InteractiveShell.clear_instance()
        sys.modules["__main__"] = main


@pytest.fixture
def replica() -> NotebookModule:
    return Namespaces().notebook("test")


@pytest.fixture
def texts() -> Callable[[Closure], dict[str, str]]:
    """By name, the user's own lines that travel along."""

    def by_name(closure: Closure) -> dict[str, str]:
        found = {d.name: "".join(text.lines for text in texts_of(d)) for d in closure.definitions}
        return {name: lines for name, lines in found.items() if lines}

    return by_name


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A scripted broker, which this process's calls find."""
    with open_stage() as opened:
        monkeypatch.setenv(runtime.VARIABLE, str(opened.folder))
        monkeypatch.setattr(broker, "_connection", None)  # that of tests with real kernels goes on afterwards
        yield opened
