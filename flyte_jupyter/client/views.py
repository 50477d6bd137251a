"""The view of a pool in a notebook, beside its text. The package registers it: this layer knows no widgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

View = Callable[[Any], Mapping[str, Any]]
"""Makes a mime bundle of a `RunningPool`."""

_registered: list[View] = []


def register_view(view: View) -> None:
    """Let notebooks show this of every pool."""
    _registered[:] = [view]


def registered_view(pool: Any) -> Mapping[str, Any]:
    return _registered[0](pool) if _registered else {}
