"""A notebook without a kernel: IPython's own cells, compiled and kept in linecache as a kernel does it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from flyte_jupyter.core.definitions import Closure, SourceDefinition
from flyte_jupyter.kernel.namespace import Namespaces, NotebookModule


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
def replica() -> Iterator[NotebookModule]:
    namespaces = Namespaces()
    yield namespaces.notebook("test")
    namespaces.forget("test")


@pytest.fixture
def sources() -> Callable[[Closure], dict[str, str]]:
    def by_name(closure: Closure) -> dict[str, str]:
        return {d.name: d.lines for d in closure.definitions if isinstance(d, SourceDefinition)}

    return by_name
