"""A snapshot in words, for terminals and notebooks."""

from __future__ import annotations

from ..core.snapshot import PoolView
from ..core.spec import Scaling


def pool_line(view: PoolView | None, scaling: Scaling) -> str:
    """One line about a pool."""
    return "not started" if view is None else view.state


def pool_table(name: str, view: PoolView | None, scaling: Scaling) -> str:
    """A few lines about a pool."""
    return f"{name}: {pool_line(view, scaling)}"
