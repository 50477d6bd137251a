"""Arrays to a task, and their sum back, next to the least that can be: `python benchmarks/arrays.py`.

The floor is one mapping that both processes share and have touched: copy the array in, say so over a pipe, let the
other process sum it. Rounds alternate, so that both meet the same machine. Needs numpy.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

MIB = 1 << 20
ROUNDS = 15
WARM = 4


def worker(shared: mmap.mmap, pipe: Connection) -> None:
    import numpy as np

    while True:
        nbytes = pipe.recv()
        pipe.send(float(np.frombuffer(shared, dtype=float, count=nbytes // 8).sum()))


def total(array: Any) -> float:
    return float(array.sum())


def echo(array: Any) -> Any:
    return array


def timed(function: Any, *args: Any) -> float:
    started = time.perf_counter()
    function(*args)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    import numpy as np

    largest = 512 * MIB
    shared = mmap.mmap(-1, largest)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=worker, args=(shared, there), daemon=True)
    process.start()

    with tempfile.TemporaryDirectory(prefix="fjb", dir="/tmp") as folder:
        os.environ["FLYTE_JUPYTER_RUNTIME_DIR"] = folder
        import flyte_jupyter as flyte
        from flyte_jupyter.client import broker
        from flyte_jupyter.core.protocol import Shutdown

        env = flyte.TaskEnvironment("arrays", reusable=flyte.ReusePolicy(replicas=2))
        task_total, task_echo = env.task(total), env.task(echo)
        flyte.pool(env).warm()

        def floor(array: Any) -> None:
            np.frombuffer(shared, dtype=float, count=array.size)[:] = array
            here.send(array.nbytes)
            here.recv()

        print("| array | floor: in, sum out | **flyte_jupyter**: in, sum out | × floor | in and back |")  # noqa: RUF001
        print("|---|---|---|---|---|")
        for nbytes in (64 * MIB, largest):
            array = np.arange(nbytes // 8, dtype=float)
            ways = {"floor": floor, "sum": task_total, "echo": task_echo}
            times: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(WARM + ROUNDS):
                for name, way in ways.items():
                    took = timed(way, array)
                    if number >= WARM:
                        times[name].append(took)
            low, ours, back = (statistics.median(times[name]) for name in ways)
            print(f"| {nbytes // MIB} MiB | {low:.1f} ms | {ours:.1f} ms | {ours / low:.2f} | {back:.1f} ms |")

        connection = broker.current()
        assert connection is not None
        connection.send(Shutdown())
        while not connection.closed:
            time.sleep(0.005)
    process.terminate()


if __name__ == "__main__":
    main()
