"""What notebooks show of a pool beside text: the card. Loaded when the first one is displayed in a kernel."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ..client.identity import ipython

if TYPE_CHECKING:
    from ..client.running import RunningPool


def view(pool: RunningPool) -> dict[str, Any]:
    """The card of a pool as a mime bundle; empty where no front end could show it."""
    if getattr(ipython(), "kernel", None) is None or "ipykernel" not in sys.modules:
        return {}
    from .card import card_of

    made = card_of(pool)._repr_mimebundle_()
    found = {} if made is None else made[0]
    return {kind: content for kind, content in found.items() if kind.startswith("application/vnd.jupyter.widget")}
