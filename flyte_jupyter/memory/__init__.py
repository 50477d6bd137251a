"""Memory files: big buffers between processes of one host, written once, mapped copy-on-write, recycled.

Who reads a file is counted by the kernel, so nobody has to say that he is done, and `kill -9` is no special case:
what is sent is an open file description of its own that holds a shared lock (`flock`). It lives as long as any
descriptor of it, also one that is in flight or in a forked child. When the owner gets the exclusive lock,
nobody reads any more, and the file is written again: its pages are there already, and page faults are what costs.

For the same reason a receiver keeps its mapping of a file that is written again and again: as long as nothing was
written into it there, it shows what the owner has written since, without a single fault.

The descriptors go over a socket of their own beside each task channel. Receiving one takes `recvmsg`, which is
slower than `recv_into` by more than a microsecond, and calls without big buffers need not pay for it.
"""

from __future__ import annotations

import os

from . import exchange, mapping, writing
from .exchange import Exchange, exchange_pair, receive_with_fds
from .shared import LEND_BYTES, Shared, sharing

__all__ = ["LEND_BYTES", "Exchange", "Shared", "close", "exchange_pair", "receive_with_fds", "sharing"]


def close() -> None:
    """Give back what is kept, in both directions."""
    writing.files.close()
    mapping.mappings.close()


def _forget_after_fork() -> None:
    writing.forget()
    mapping.mappings.forget()
    exchange.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
