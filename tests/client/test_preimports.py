"""Which modules a preload wants imported before its replicas are forked."""

from __future__ import annotations

from flyte_jupyter.client.preimports import imported_modules, is_installed
from flyte_jupyter.core.definitions import Closure, ImportDefinition, SourceDefinition


def closure(*definitions: ImportDefinition | SourceDefinition) -> Closure:
    return Closure.of("", definitions)


def source(lines: str) -> SourceDefinition:
    return SourceDefinition("load", "d", lines, "<cell>", 1, "load")


def test_imports_at_the_top_and_inside_a_loader_are_found() -> None:
    lines = "def load():\n    import numpy.linalg as la\n    from psutil import Process\n    return la, Process\n"
    assert imported_modules(closure(source(lines), ImportDefinition("np", "d", "numpy"))) == {
        "numpy",
        "numpy.linalg",
        "psutil",
    }


def test_the_standard_library_and_unknown_modules_are_left_out() -> None:
    lines = "def load():\n    import json, no_such_module_anywhere\n    from . import near\n"
    assert imported_modules(closure(source(lines))) == set()
    assert not is_installed("json")
    assert is_installed("numpy")
