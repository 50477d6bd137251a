"""Completion of the magics' options, of pools and variables, and in a task cell of the names on its replica."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from ..client.cells.names import names
from ..client.cells.request import RETRY_REASONS
from . import seams
from .directive import DIRECTIVE
from .notebook import Notebook

_VARIABLES = ("-i", "--in", "-o", "--out")
_VALUES = {"--scope": ("fresh", "session", "replica"), "--retry-on": tuple(RETRY_REASONS)}
_POOL_FIRST = ("flyte_task", "flyte_preload", "flyte_status", "flyte_logs", "flyte_attach", "flyte_peek")


def make_matcher(notebook: Notebook) -> Any:
    """A matcher for `shell.Completer.custom_matchers`."""

    @context_matcher(identifier="flyte_jupyter")
    def match(context: CompletionContext) -> SimpleMatcherResult:
        return SimpleMatcherResult(completions=_complete(notebook, context))

    return match


def _complete(notebook: Notebook, context: CompletionContext) -> list[SimpleCompletion]:
    lines = context.full_text.split("\n")
    begun = DIRECTIVE.sub(r"%%flyte_\1 \2", context.text_until_cursor)
    found = re.match(r"\s*%%?(flyte\w*)\s(.*)", begun)
    if found is not None:
        return _on_line(notebook, found[1], found[2], context.token)
    first = DIRECTIVE.sub(r"%%flyte_\1 \2", lines[0])
    if context.cursor_line and first.startswith("%%flyte_task") and "." not in context.token:
        return _in_body(notebook, first.removeprefix("%%flyte_task"), context.token)
    return []


def _on_line(notebook: Notebook, magic: str, typed: str, token: str) -> list[SimpleCompletion]:
    function = notebook.shell.find_line_magic(magic)
    parser: argparse.ArgumentParser | None = getattr(function, "parser", None)
    if parser is None:
        return []
    words = typed.split()
    current = "" if typed[-1:].isspace() or not words else words.pop()
    before = words[-1] if words else ""
    variables = [name for name in notebook.shell.user_ns if not name.startswith("_")]
    if current.startswith("-"):
        return _matching(current, seams.options(parser), "flyte option", token)
    if before in _VALUES:
        return _matching(current, _VALUES[before], "flyte option", token)
    if before in _VARIABLES and magic == "flyte_task":
        return _matching(current.rpartition(",")[2].rpartition("=")[2], variables, "flyte variable", token)
    if magic == "flyte_pool" and not words:
        return _matching(current, list(seams.choices(parser, "verb")), "flyte option", token)
    if (magic in _POOL_FIRST and not words) or (magic == "flyte_pool" and len(words) == 1) or before == "--pool":
        return _matching(current, notebook.pools.names(), "flyte pool", token)
    return []


def _in_body(notebook: Notebook, line: str, token: str) -> list[SimpleCompletion]:
    try:
        words = shlex.split(line)
    except ValueError:
        return []
    named = words[0] if words and not words[0].startswith("-") else ""
    given = dict(itertools.pairwise(words))
    session = given.get("--session", "")
    scope = "session" if session else given.get("--scope", notebook.settings.scope)
    pool = notebook.pools.known(named)
    if pool is None:
        return []
    there = [name for name in names(pool, scope, session) if name not in notebook.shell.user_ns]
    return _matching(token, there, f"on {pool.name}", token)


def _matching(typed: str, words: Any, kind: str, token: str) -> list[SimpleCompletion]:
    # What is replaced is the token, which may begin later than the word: the part before it is not repeated.
    extra = max(0, len(typed) - len(token)) if typed.endswith(token) else 0
    return [SimpleCompletion(text=word[extra:], type=kind) for word in words if word.startswith(typed)]
