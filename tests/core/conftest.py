"""What the tests of the core share."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest

HOME = "notebook_0badcafe"


@pytest.fixture
def home() -> Iterator[types.ModuleType]:
    """A module that holds a notebook's names, as `__main__` does in its kernel."""
    module = types.ModuleType(HOME)
    sys.modules[HOME] = module
    source = """
import functools
class Config:
    def __init__(self, rate): self.rate = rate
class Outer:
    class Inner: pass
def double(x): return 2 * x
@functools.lru_cache
def model(): return "loaded"
class Mine(Exception):
    def __init__(self, path, line):
        super().__init__(f"{path}:{line}")
        self.line = line
class MyTaskError(Exception): pass
"""
    exec(source, vars(module))
    yield module
    del sys.modules[HOME]
