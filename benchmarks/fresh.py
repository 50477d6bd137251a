"""How long a call in a fresh kernel takes, from call to result: `python benchmarks/fresh.py`.

One call after the other, each in a process that is forked for it and ends after it, with a broker of its own. A warm
call and the start of an empty interpreter stand beside it: they say how busy the machine was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import flyte_jupyter as flyte
from flyte_jupyter import runtime
from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol

LIMIT_S = 0.150

plain = flyte.TaskEnvironment("fresh")
warm = flyte.TaskEnvironment("warm", reusable=flyte.ReusePolicy(replicas=1))


@plain.task
def fresh_call() -> int:
    return os.getpid()


@warm.task
def warm_call() -> int:
    return os.getpid()


def interpreter() -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)


def timed(call: Callable[[], object], count: int) -> list[float]:
    call()  # starts what later ones find: the broker, a zygote
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()

    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {options.count} calls each")
    medians = {}
    for name, call in (("interpreter", interpreter), ("warm call", warm_call), ("fresh call", fresh_call)):
        times = timed(call, options.count)
        medians[name] = statistics.median(times)
        print(f"{name:12} median {medians[name] * 1e3:7.1f} ms, worst {max(times) * 1e3:7.1f} ms")
    return int(medians["fresh call"] > LIMIT_S)


if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="fj-", dir="/tmp")
    os.environ[runtime.VARIABLE] = folder
    try:
        status = main()
    finally:
        connection = broker.connect()
        connection.send(protocol.Shutdown())
        if connection.daemon is not None:
            connection.daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)
