"""The way to the broker's socket, for drivers that may block: connect, and check whose process answers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .. import errors, runtime
from ..core.dialogue import of_another_user


def dial(folder: Path, patience_s: float) -> socket.socket | None:
    """A connection to the broker of that runtime folder; None if none listens there.

    Raises:
        BrokerSilent: One runs, but has not taken a connection for `patience_s`.
        BrokerUnavailable: Another user's process listens there.
    """
    path = runtime.broker_socket(folder)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(patience_s)
        stream.connect(str(path))
        if runtime.peer_uid(stream) != os.getuid():
            raise of_another_user(path, runtime.VARIABLE)
    except (FileNotFoundError, ConnectionRefusedError):
        stream.close()
        return None
    except (TimeoutError, BlockingIOError):  # the queue of those who want to connect is full
        stream.close()
        raise errors.BrokerSilent(runtime.lock_holder(folder), patience_s) from None
    except BaseException:
        stream.close()
        raise
    stream.settimeout(None)
    return stream
