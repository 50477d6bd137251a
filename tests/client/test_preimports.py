"""Which modules a preload wants imported before its replicas are forked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flyte_jupyter.client.capture.preimports import imported_modules, is_installed
from flyte_jupyter.core.definitions import (
    Closure,
    Definition,
    ImportDefinition,
    Mark,
    SourceDefinition,
    Text,
    ValueDefinition,
)


def closure(*definitions: Definition) -> Closure:
    return Closure.of("", definitions)


def by_value(lines: str) -> Definition:
    return ValueDefinition("load", Mark("d"), b"", "function", texts=(Text("<cell>", 1, lines),))


def by_text(lines: str) -> Definition:
    return SourceDefinition("load", Mark("d"), Text("<cell>", 1, lines), "load")


def by_text_with_a_state(lines: str) -> Definition:
    state = ValueDefinition("load", Mark("s"), b"", "dict", texts=(Text("<cell>", 1, lines),))
    return SourceDefinition("load", Mark("d"), Text("<cell>", 9, "def load(x=read): pass\n"), "load", state=state)


@pytest.mark.parametrize("made", [by_value, by_text, by_text_with_a_state])
def test_imports_at_the_top_and_inside_a_loader_are_found(made: Callable[[str], Definition]) -> None:
    lines = "def load():\n    import numpy.linalg as la\n    from psutil import Process\n    return la, Process\n"
    assert imported_modules(closure(made(lines), ImportDefinition("np", Mark("d"), "numpy"))) == {
        "numpy",
        "numpy.linalg",
        "psutil",
    }


@pytest.mark.parametrize("made", [by_value, by_text, by_text_with_a_state])
def test_the_standard_library_and_unknown_modules_are_left_out(made: Callable[[str], Definition]) -> None:
    lines = "def load():\n    import json, no_such_module_anywhere\n    from . import near\n"
    assert imported_modules(closure(made(lines))) == set()
    assert not is_installed("json")
    assert is_installed("numpy")


def test_a_loader_that_stood_inside_an_if_is_understood() -> None:
    assert imported_modules(closure(by_value("    def load():\n        import numpy\n"))) == {"numpy"}
