"""Which globals a code object mentions."""

from __future__ import annotations

import contextlib
import dis
import functools
import re
import string
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Mentioned:
    """The globals that code mentions, inner functions included, and `a.b.c` chains that begin with one."""

    names: frozenset[str]
    chains: frozenset[tuple[str, ...]]

    def submodules(self, get: Callable[[str], object]) -> Iterator[str]:
        """Submodules that it reaches by attribute (`xml.dom.minidom`), of the modules that `get` finds by name."""
        for name, *attributes in self.chains:
            module = get(name)
            if not isinstance(module, ModuleType):
                continue
            path = module.__name__
            for attribute in attributes:
                path = f"{path}.{attribute}"
                if path not in sys.modules:
                    break
                yield path


@functools.lru_cache(maxsize=4096)
def mentioned(code: CodeType) -> Mentioned:
    """What the code mentions."""
    names: set[str] = set()
    chains: set[tuple[str, ...]] = set()
    _collect(code, names, chains)
    return Mentioned(frozenset(names), frozenset(chains))


def _collect(code: CodeType, names: set[str], chains: set[tuple[str, ...]]) -> None:
    bound: set[str] = set()  # by a class body, so far: what it reads before is a global
    chain: list[str] = []
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name == "EXTENDED_ARG":
            continue
        if chain and name in _ATTRIBUTES:
            chain.append(str(instruction.argval))
            continue
        if len(chain) > 1:
            chains.add(tuple(chain))
        chain = []
        if name in ("STORE_NAME", "DELETE_NAME"):
            bound.add(instruction.argval)
        elif name in _GLOBALS or (name in _NAMES and instruction.argval not in bound):
            names.add(instruction.argval)
            chain = [str(instruction.argval)]
    for const in code.co_consts:
        if isinstance(const, CodeType):
            _collect(const, names, chains)
        elif isinstance(const, str) and "get_ipython" in code.co_names:
            names |= _expanded(const) - {*code.co_varnames, *code.co_cellvars, *code.co_freevars}


def _expanded(command: str) -> set[str]:
    """Names that IPython replaces in a `!command` or after a `%magic`: `$name`, `{expression}`."""
    found = set(re.findall(r"(?<![$\\])\$([^\W\d]\w*)", command))
    with contextlib.suppress(ValueError):  # of a shell, or of awk
        for _, expression, *_ in string.Formatter().parse(command):
            with contextlib.suppress(SyntaxError, ValueError):
                found |= _of_text(expression or "0").names
    return found


_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_GLOBALS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"})
_NAMES = frozenset({"LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})


def names_in_strings(annotations: Mapping[str, Any]) -> set[str]:
    """Names in annotations that are written as strings: something may ask for their meaning."""
    return set(_mentioned_in(annotations))


def _mentioned_in(annotations: Mapping[str, Any]) -> Iterator[str]:
    for value in annotations.values():
        if isinstance(value, str):
            with contextlib.suppress(SyntaxError, ValueError):
                yield from _of_text(value).names


@functools.lru_cache(maxsize=1024)
def _of_text(text: str) -> Mentioned:
    return mentioned(compile(text, "<annotation>", "eval"))
