"""How long a task cell takes that does next to nothing: `python benchmarks/cells.py --pin`.

In turns, in one run, so that all of them meet the same machine:

- `%%flyte_task --quiet` above `1+1`, run by `run_cell_magic` in a real kernel, from the call to its return
- the same above `x = 1+1`, which has nothing to display
- `1+1` by `run_cell` in that kernel itself: what a local cell costs without Jupyter's messages
- `1+1` sent to an ordinary kernel by `execute_request`, until that is idle again
- Z: one byte to another process and back over ZeroMQ, which no kernel can be quicker than
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.manager import KernelManager

ECHO = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind(sys.argv[1])
while True:
    socket.send_multipart(socket.recv_multipart())
"""
SETUP = """
%load_ext flyte_jupyter
%flyte_pool create bench
%flyte_pool warm bench
import json, time
def cells(count, code):
    run, clock, took = get_ipython().run_cell_magic, time.perf_counter, []
    for _ in range(count):
        began = clock()
        run("flyte_task", "bench --quiet", code)
        took.append(clock() - began)
    print("TIMES" + json.dumps(took))
def local(count, code):
    run, clock, took = get_ipython().run_cell, time.perf_counter, []
    for _ in range(count):
        began = clock()
        run(code, store_history=False)
        took.append(clock() - began)
    print("TIMES" + json.dumps(took))
"""


class Kernel:
    """A real kernel and a client of it, over Unix sockets."""

    def __init__(self, folder: Path, name: str) -> None:
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / name))
        self.manager.start_kernel(stderr=subprocess.DEVNULL, env={**os.environ, "IPYTHONDIR": str(folder)})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str) -> str:
        """What a cell prints, once its kernel is idle again."""
        return self.printed(self.client.execute(code))

    def run_unseen(self, code: str) -> str:
        """The same, but nobody reads what is displayed before the cell is over: that takes time on a shared core."""
        asked = self.client.execute(code)
        while self.client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != asked:
            pass
        return self.printed(asked)

    def printed(self, asked: str) -> str:
        text = ""
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != asked:
                continue
            content: dict[str, Any] = message["content"]
            if message["msg_type"] == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            if message["msg_type"] == "stream":
                text += content["text"]
            if content.get("execution_state") == "idle":
                return text

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


def timed(act: Callable[[], object], count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        act()
        took.append(time.perf_counter() - began)
    return took


def measure(folder: Path, rounds: int, count: int) -> dict[str, list[float]]:
    address = f"ipc://{folder}/echo"
    echo = subprocess.Popen([sys.executable, "-c", ECHO, address])
    ours, plain = Kernel(folder, "ours"), Kernel(folder, "plain")
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(address)

    def ping() -> None:
        socket.send(b"p")
        socket.recv()

    def inside(function: str, code: str) -> list[float]:
        took: list[float] = json.loads(ours.run_unseen(f"{function}({count}, {code!r})").partition("TIMES")[2])
        return took

    found: dict[str, list[float]] = {"cell": [], "silent": [], "local": [], "execute": [], "zmq": []}
    try:
        ours.run(SETUP)
        for number in range(rounds + 1):
            now = {
                "cell": inside("cells", "1+1\n"),
                "silent": inside("cells", "x = 1+1\n"),
                "local": inside("local", "1+1\n"),
                "execute": timed(lambda: plain.run("1+1"), count),
                "zmq": timed(ping, count),
            }
            if number:  # the first one warms up
                for name, took in now.items():
                    found[name] += took
    finally:
        ours.run("%flyte_pool stop bench --now")
        ours.end()
        plain.end()
        echo.kill()
        echo.wait()
        socket.close(0)
        subprocess.run([sys.executable, "-m", "flyte_jupyter.cli", "stop"], check=False, stdout=subprocess.DEVNULL)
    return found


def table(found: dict[str, list[float]]) -> str:
    base = statistics.median(found["zmq"])
    lines = ["| what | p10 | median | p99 | Z | times |", "|---|---|---|---|---|---|"]
    names = {
        "cell": "**`%%flyte_task --quiet`**, `1+1`",
        "silent": "`%%flyte_task --quiet`, `x = 1+1`",
        "local": "`run_cell` in the notebook's own kernel, `1+1`",
        "execute": "`execute_request` to an ordinary kernel, `1+1`",
        "zmq": "Z: raw ZeroMQ ping-pong",
    }
    for name, took in found.items():
        cuts = statistics.quantiles(took, n=100)
        middle = statistics.median(took)
        shown = [f"{value * 1e6:,.0f} µs" for value in (cuts[9], middle, cuts[98])]
        lines.append(f"| {names[name]} | {' | '.join(shown)} | {middle / base:.1f} | {len(took):,} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pin", action="store_true", help="everything on one core")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=100, help="of each, in a round")
    options = parser.parse_args()
    if options.pin:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="fj-", dir="/tmp") as folder:
        os.environ["FLYTE_JUPYTER_RUNTIME_DIR"] = folder + "/run"
        os.environ.setdefault("FLYTE_JUPYTER_GPUS", "[]")
        print(table(measure(Path(folder), options.rounds, options.count)))


if __name__ == "__main__":
    main()
