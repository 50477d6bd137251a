"""`python -m flyte_jupyter.broker.zygote FD`: single-threaded, has imported everything, forks replicas.

It imports and never computes: after one matrix product here, a child's would hang on the lock of a thread that fork
does not copy. A child is forked twice, so that it is the broker's child and not this process's: it outlives the zygote,
and dies with the broker.

The broker's requests come one to a packet on the socket FD, each with two descriptors (the log file, the listening
task channel); the answer to each is the new process's id.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, Final

from . import seams, seeds

PACKET_BYTES: Final = 1 << 20
ADOPTION_S: Final = 5.0
"""How long a new replica may wait to become the broker's child; the process in between ends at once."""


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    broker = os.getppid()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(control.recv(PACKET_BYTES))
    with seeds.noting_seeds():
        kernel = importlib.import_module("flyte_jupyter.kernel.__main__")
        importlib.import_module("flyte_jupyter.kernel.kernel").die_with_parent(broker)
        for name in request["preimports"]:
            try:
                importlib.import_module(name)
            except BaseException:  # the preload will fail with it in the replica, where it can be shown
                traceback.print_exc()
    # Objects that are never looked at by the collector stay on pages that no child has to copy.
    gc.collect()
    seeds.note_generators()
    gc.freeze()
    control.send(json.dumps({"problem": problem()}).encode())
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, PACKET_BYTES, 2)
        if not packet:
            return  # the broker is gone, or does not need this any more
        unsafe = problem()
        if unsafe is not None:
            control.send(json.dumps({"problem": unsafe}).encode())
        elif os.fork() == 0:
            _between(control, json.loads(packet), descriptors, broker, kernel)
        else:
            os.wait()
        for descriptor in descriptors:
            os.close(descriptor)


def problem() -> str | None:
    """Why this process must not fork, if so."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        return f"an import has started a thread: {', '.join(others)}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has started CUDA, which does not survive a fork"
    zmq = sys.modules.get("zmq")
    if zmq is not None and seams.has_context(zmq):
        return "an import has opened a ZMQ context"
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and seams.has_running_loop(asyncio):
        return "an event loop is running"
    return None


def _between(control: socket.socket, request: dict[str, Any], descriptors: list[int], broker: int, kernel: Any) -> None:
    """The process between the zygote and the replica: it ends at once, and so the broker inherits the replica."""
    pid = os.fork()
    if pid == 0:
        control.close()
        try:
            _become_replica(request, descriptors, broker, kernel)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    control.send(json.dumps({"pid": pid}).encode())
    os._exit(0)


def _become_replica(request: dict[str, Any], descriptors: list[int], broker: int, kernel: Any) -> None:
    log, listening = descriptors
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    deadline = time.monotonic() + ADOPTION_S
    while os.getppid() != broker and time.monotonic() < deadline:
        time.sleep(0.0002)
    os.environ.clear()
    os.environ.update(request["environment"], FLYTE_JUPYTER_TASK_FD=str(listening))
    os.chdir(request["cwd"])
    time.tzset()
    seeds.reseed()
    gc.enable()
    kernel.main(request["arguments"])


if __name__ == "__main__":
    main()
