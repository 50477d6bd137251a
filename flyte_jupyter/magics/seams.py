"""Private parts of other packages that magics use; `tests/test_seams.py` has a test for each."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from IPython.utils._process_common import arg_split

__all__ = ["arg_split", "choices", "options"]


def options(parser: argparse.ArgumentParser) -> list[str]:
    """All that a parser takes that begins with a dash."""
    return [option for action in parser._actions for option in action.option_strings]


def choices(parser: argparse.ArgumentParser, name: str) -> Iterable[str]:
    """The words that its argument of that name may be."""
    return next(action.choices for action in parser._actions if action.dest == name) or ()
