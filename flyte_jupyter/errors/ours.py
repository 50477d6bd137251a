"""What our own errors have in common: one base class, and how they word things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from .flyte import BaseRuntimeError, ErrorKind, with_notes


class PoolError(BaseRuntimeError):
    """An error about a pool of warm kernels: one base for all of ours, beside the Flyte class each one has.

    `fj_code` is stable and can be looked up in the documentation; it also opens the text.
    """

    fj_code: ClassVar[str] = "FJ000"

    def _explain(self, kind: ErrorKind, what: str, *notes: str | None, worker: str | None = None) -> None:
        # Named base, not super(): a subclass has Flyte's class and maybe TypeError after this one, each of
        # which wants other arguments.
        BaseRuntimeError.__init__(self, type(self).__name__, kind, f"{self.fj_code} {what}", worker)
        with_notes(self, *notes)


def listed(names: Sequence[str | int]) -> str:
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def sentence(text: str) -> str:
    return text if text.rstrip().endswith((".", "!", "?")) else f"{text.rstrip()}."
