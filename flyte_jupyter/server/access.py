"""Who may do what: the server's authorizer decides. Views are told beforehand, and offer nothing that it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from jupyter_core.utils import ensure_async
from jupyter_server.base.handlers import JupyterHandler
from tornado.web import HTTPError

POOLS: Final = "flyte-jupyter-pools"
LOGS: Final = "flyte-jupyter-logs"
KERNELS: Final = "kernels"
"""Jupyter's own: who looks into a replica has expressions evaluated there."""
SESSIONS: Final = "sessions"
"""Jupyter's own: who opens a replica starts a session on the kernel `flyte-attach`."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that not everybody may do.

    Args:
        refused: The beginning of a sentence that says so.
        needs: What one must be authorized for: actions, each on a resource.
    """

    refused: str
    needs: tuple[tuple[Literal["read", "write", "execute"], str], ...]

    @property
    def refusal(self) -> str:
        """For people."""
        needs = ", ".join(f"{action} on {resource}" for action, resource in self.needs)
        return f"{self.refused}: who runs this server decides ({needs})."


CHANGE: Final = Act("You may look at pools here, but not change them", (("write", POOLS),))
READ_LOGS: Final = Act("You may not read logs of pools here", (("read", LOGS),))
PEEK: Final = Act("You may not look into replicas here", (("execute", KERNELS),))
ATTACH: Final = Act("You may not open replicas here", (("write", SESSIONS), ("execute", KERNELS)))
ACTS: Final = {"change": CHANGE, "logs": READ_LOGS, "peek": PEEK, "attach": ATTACH}


async def refusals(handler: JupyterHandler) -> dict[str, str]:
    """Why whoever asks may not do some of the acts, by their names in the state."""
    return {name: act.refusal for name, act in ACTS.items() if not await _may(handler, act)}


async def _may(handler: JupyterHandler, act: Act) -> bool:
    for action, resource in act.needs:
        try:
            answer = handler.authorizer.is_authorized(handler, handler.current_user, action, resource)
            if not await ensure_async(answer):
                return False
        except HTTPError:  # another way to say no
            return False
    return True
