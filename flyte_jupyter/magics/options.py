"""The text after a magic: split, unquoted, expanded and parsed."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument, magic_arguments

from ..core.arguments import parse_count, parse_duration, parse_replica, parse_replicas, parse_size
from . import seams

__all__ = [
    "argument",
    "magic_arguments",
    "parse",
    "parse_count",
    "parse_duration",
    "parse_names",
    "parse_pulls",
    "parse_replica",
    "parse_replicas",
    "parse_size",
    "parse_words",
    "split_expression",
]


def parse(shell: Any, magic: Callable[..., Any], line: str) -> argparse.Namespace:
    """The options of a magic; `$name` and `{expression}` in a value mean the notebook's.

    Raises: UsageError, which a cell shows as one line.
    """
    try:
        words = seams.arg_split(line)
    except ValueError as problem:  # an open quote
        raise UsageError(f"{line.strip()!r}: {problem}") from None
    parsed = _parsed(magic.parser, tuple(_value(shell, word) for word in words))  # type: ignore[attr-defined]
    return argparse.Namespace(**{name: value[:] if isinstance(value, list) else value for name, value in parsed})


@functools.lru_cache(maxsize=256)
def _parsed(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """A cell is often run again with the same options, and to parse them takes longer than to send it."""
    return tuple(vars(parser.parse_args(list(words))).items())


def split_expression(line: str) -> tuple[str, str | None]:
    """The options and the expression of `gpu --quiet -- model.device`; None if there is no `--`.

    Example:
        >>> split_expression("gpu --quiet -- a -- b"), split_expression("gpu")
        (('gpu --quiet', 'a -- b'), ('gpu', None))
    """
    found = re.search(r"(?:^|\s)--(?:\s|$)", line)
    if found is None:
        return line.strip(), None
    return line[: found.start()].strip(), line[found.end() :].strip()


def parse_names(value: str) -> list[str]:
    """Names in "a,b".

    Example:
        >>> parse_names("a, b")
        ['a', 'b']
    """
    names = parse_words(value)
    for name in names:
        if not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{name!r} is not a name; write a,b")
    return names


def parse_pulls(value: str) -> list[tuple[str, str]]:
    """What it is called there and here, in "y" or "y=local".

    Example:
        >>> parse_pulls("y,loss=last_loss")
        [('y', 'y'), ('loss', 'last_loss')]
    """
    pulls = []
    for word in parse_words(value):
        there, _, here = word.partition("=")
        for name in (there, here or there):
            if not name.isidentifier():
                raise argparse.ArgumentTypeError(f"{word!r} is not a name; write y or y=local")
        pulls.append((there, here or there))
    return pulls


def parse_words(value: str) -> list[str]:
    """Words that are joined by commas."""
    return [word for part in value.split(",") if (word := part.strip())]


def _value(shell: Any, word: str) -> str:
    if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'":
        word = word[1:-1]
    return str(shell.var_expand(word, depth=2)) if "$" in word or "{" in word else word
