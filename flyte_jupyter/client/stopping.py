"""Stops a task that has begun: asks it to, and ends its replica if it does not."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Final

from .. import errors
from ..core.protocol import RestartReplica, Revoke
from . import outputs
from .drivers import ChannelLost, Conversation, Conversations, drive
from .leases import Channel, Lease
from .target import Target

GRACE_S: Final = 5.0
"""How long a cancelled task may take to stop before its replica is killed."""
QUICK_S: Final = 0.4
"""How long an interrupted cell waits to hear that its task has stopped before it comes back."""


def stop_late(target: Target, lease: Lease, channel: Channel, talk: Conversation) -> str:
    """Its time is up: stop it, and kill it if it does not stop. The caller waits, so that the slot is free again.

    Returns: What became of the replica, for people.
    """
    lease.cancel(channel.calls)
    try:
        drive(channel, talk, [], time.monotonic() + GRACE_S)
    except (TimeoutError, ChannelLost, KeyboardInterrupt):
        revoke(lease, f"{target.name} ignored its timeout for {GRACE_S:g} s")
        lease.why_lost(GRACE_S)
        return f"It did not stop when told, so the kernel {lease.name} was ended; a replacement is loading."
    return f"{lease.name} is ready again; what it has loaded was kept."


def stop_interrupted(target: Target, lease: Lease, channel: Channel, talk: Conversation) -> None:
    """Ctrl-C in the cell that waits: the cell comes back at once, and the work is seen to its end."""
    lease.cancel(channel.calls)
    try:
        if target.on_interrupt == "kill":
            raise KeyboardInterrupt
        if target.on_interrupt == "term":
            lease.group.connection.send(RestartReplica(replica=lease.replica))
        drive(channel, talk, [], time.monotonic() + QUICK_S)
    except TimeoutError:
        outputs.note(f"{target.name} on {lease.name} does not stop yet; its kernel is ended in {GRACE_S:g} s.")
        see_off(target, lease, channel, talk)
    except KeyboardInterrupt:  # pressed again
        revoke(lease, f"{target.name} was interrupted twice")
        outputs.note(f"The kernel {lease.name} was ended; a replacement is loading.")
        lease.group.drop(lease)
    except ChannelLost:
        lease.group.drop(lease)
    else:
        kept = (
            "a fresh kernel takes its place" if target.on_interrupt == "term" else "what it has loaded is still there"
        )
        outputs.note(f"Interrupted on {lease.name}; {kept}.")
        lease.group.give_back(lease)


def see_off(target: Target, lease: Lease, channel: Channel, *talks: Conversation) -> None:
    """Wait elsewhere for cancelled calls to end, then give their lease back; or kill their replica."""

    def wait() -> None:
        outputs.mute()
        try:
            drive(channel, talks[0] if len(talks) == 1 else Conversations(talks), [], time.monotonic() + GRACE_S)
        except TimeoutError:
            with suppress(errors.BrokerGone):
                revoke(lease, f"{target.name} ignored its cancellation for {GRACE_S:g} s")
            lease.why_lost(GRACE_S)
            lease.group.drop(lease)
        except (ChannelLost, OSError):
            lease.group.drop(lease)
        else:
            lease.group.give_back(lease)

    threading.Thread(target=wait, name=f"flyte_jupyter: stopping {target.name}", daemon=True).start()


def revoke(lease: Lease, why: str) -> None:
    lease.group.connection.send(Revoke(lease=lease.id, why=why))
