"""What the tests of the core share."""

from __future__ import annotations

import sys
import types

import pytest


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module that holds a notebook's names: `__main__` in its kernel, and for a call on a replica."""
    module = types.ModuleType("__main__")
    source = """
import functools
class Config:
    def __init__(self, rate): self.rate = rate
class Outer:
    class Inner: pass
def double(x): return 2 * x
@functools.lru_cache
def model(): return "loaded"
def times(n): return lambda x: n * x
triple = times(3)
class Mine(Exception):
    def __init__(self, path, line):
        super().__init__(f"{path}:{line}")
        self.line = line
class MyTaskError(Exception): pass
"""
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module
