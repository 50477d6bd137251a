"""What definitions cost, next to another checkout: `python benchmarks/definitions.py --against ../before --pin`.

Both run in processes of their own, with services of their own. Rounds alternate, so that both meet the same machine.
The figure of a round is its lowest decile, which other programs hardly reach; the ratio is the median of all rounds.

- warm calls: of a task that uses nothing, and of one that uses 20 names
- the first call of a task that uses 20 names, each round with new ones; the replica is warm
- the first call after one of those names was defined again
- no-ops one after the other by `await`, 1,000 at once by `gather`, and 1,000 by `map`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import linecache
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
MANY = 1000
# name: what it is, how often in a round, how many calls that are
CASES = {
    "bare": ("warm call, no globals", 300, 1),
    "rich": ("warm call, 20 names: a class of ten attributes, a list of 1,000 elements, functions, numbers", 300, 1),
    "first": ("first call, 20 new names", 10, 1),
    "again": ("first call after one of 20 names was defined again", 20, 1),
    "await": ("`await` one after the other", 300, 1),
    "gather": ("`gather` of 1,000, each call", 2, MANY),
    "map": ("`map` over 1,000, each call", 2, MANY),
}
MOST_TIMES = {"rich": 1.15}
MOST_MORE = {"bare": 1e-6}

BARE = """
@env.task
def bare(x: bool) -> None:
    return None

@env.task
async def awaited(x: bool) -> None:
    return None
"""
RICH = """
class Config{n}:
    a0 = {n}
    a1, a2, a3, a4, a5, a6, a7, a8, a9 = "one", 2.0, True, None, (1, 2), "six", 7, 8, 9

items{n} = list(range({n}, {n} + 1000))
number{n}_0, number{n}_1, number{n}_2, number{n}_3 = 0.5, 10, "text", (1, 2, 3)
number{n}_4, number{n}_5, number{n}_6, number{n}_7 = 1.5, 11, "more", (4, 5, 6)
number{n}_8 = {n}
"""
HELPER = """
def helper{n}_{i}(x):
    return [x, {i}, {edition}]
"""
TASK = """
@env.task
def rich{n}(x: bool) -> object:
    if x:
        return Config{n}, items{n}, {uses}
    return None
"""
HELPERS, NUMBERS = 9, 9


class Host:
    """The calls, in a process that imports one of the checkouts; its `__main__` is the notebook."""

    def __init__(self) -> None:
        import flyte_jupyter as flyte

        logging.disable(logging.WARNING)  # one replica is not what Flyte recommends
        self.flyte = flyte
        self.names = vars(sys.modules["__main__"])
        self.names["env"] = flyte.TaskEnvironment("definitions", reusable=flyte.ReusePolicy(replicas=1))
        self.pool = flyte.pool(self.names["env"])
        self.pool.warm()
        self._cells = count()
        self._editions = count(1)
        self.cell(BARE)
        self.bare, self.awaited = self.names["bare"], self.names["awaited"]
        self.rich = self.new_rich(0)
        self._numbers = count(1)
        self.rich(False)

    def cell(self, text: str) -> None:
        """Run it as a notebook would: its lines can be found again."""
        name = f"<cell {next(self._cells)}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec", dont_inherit=True), self.names)

    def new_rich(self, n: int) -> Any:
        for name in [name for name in self.names if re.search(rf"[a-z]{n - 1}(_\d)?$", name)] if n > 1 else ():
            del self.names[name]  # so that each round meets as many names
        self.cell(RICH.format(n=n) + "".join(HELPER.format(n=n, i=i, edition=0) for i in range(HELPERS)))
        uses = [f"helper{n}_{i}" for i in range(HELPERS)] + [f"number{n}_{i}" for i in range(NUMBERS)]
        self.cell(TASK.format(n=n, uses=", ".join(uses)))
        return self.names[f"rich{n}"]

    def measure(self, case: str, times: int) -> list[float]:
        """Seconds."""
        clock = time.perf_counter
        if case == "await":
            return asyncio.run(self._awaits(times))
        if case == "gather":
            return [asyncio.run(self._gather()) for _ in range(times)]
        took = []
        for _ in range(times):
            act = self._prepared(case)
            began = clock()
            act()
            took.append(clock() - began)
        return took

    def _prepared(self, case: str) -> Callable[[], object]:
        bare, rich, flyte = self.bare, self.rich, self.flyte
        match case:
            case "bare":
                return lambda: bare(False)
            case "rich":
                return lambda: rich(False)
            case "first":
                new = self.new_rich(next(self._numbers))
                bare(False)
                return lambda: new(False)
            case "again":
                self.cell(HELPER.format(n=0, i=3, edition=next(self._editions)))
                bare(False)
                return lambda: rich(False)
            case _:
                return lambda: list(flyte.map(bare, range(MANY)))

    async def _awaits(self, times: int) -> list[float]:
        awaited, clock, took = self.awaited, time.perf_counter, []
        await awaited(False)
        for _ in range(times):
            began = clock()
            await awaited(False)
            took.append(clock() - began)
        return took

    async def _gather(self) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(self.awaited(False) for _ in range(MANY)))
        return time.perf_counter() - began

    def serve(self) -> None:
        print(json.dumps(self.flyte.__file__), flush=True)
        for line in sys.stdin:
            print(json.dumps(self.measure(*json.loads(line))), flush=True)
        from flyte_jupyter.client import broker
        from flyte_jupyter.core.protocol import Shutdown

        connection = broker.current()
        assert connection is not None
        connection.send(Shutdown())
        while not connection.closed:
            time.sleep(0.005)


class Checkout:
    """A host of one checkout, from here."""

    def __init__(self, folder: Path, runtime: str) -> None:
        command = [sys.executable, str(HERE), "--host"]
        settings = {"PYTHONPATH": str(folder), "FLYTE_JUPYTER_RUNTIME_DIR": runtime, "FLYTE_JUPYTER_GPUS": "[]"}
        self._process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        imported = Path(self._answer())
        if not imported.is_relative_to(folder):
            sys.exit(f"{folder} has no flyte_jupyter: {imported} was imported instead")

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a host ended with {self._process.wait()}")
        return json.loads(line)

    def measure(self, case: str) -> float:
        """The lowest decile of a round, of one call, in seconds."""
        assert self._process.stdin is not None
        _, times, calls = CASES[case]
        self._process.stdin.write(json.dumps([case, times]) + "\n")
        self._process.stdin.flush()
        took = sorted(self._answer())
        return float(took[len(took) // 10]) / calls

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(before: Path, now: Path, cases: list[str], pairs: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Of each case, what each round took before and now."""
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    for _ in range(pairs):  # where a process happens to have its memory makes a difference
        with tempfile.TemporaryDirectory(prefix="fjb", dir="/tmp") as folder:
            hosts = [Checkout(before, f"{folder}/0"), Checkout(now, f"{folder}/1")]
            for number in range(rounds + 1):
                for case in cases:
                    order = (0, 1) if number % 2 else (1, 0)
                    took = {which: hosts[which].measure(case) for which in order}
                    if number:  # the first one warms up
                        found[case].append((took[0], took[1]))
            for host in hosts:
                host.end()
    return found


def table(found: dict[str, list[tuple[float, float]]]) -> tuple[str, bool]:
    """As Markdown, and whether what is demanded holds."""
    lines = ["| what | before | now | ratio | half of the rounds |", "|---|---|---|---|---|"]
    missed = []
    for case, rounds in found.items():
        before, now = (statistics.median(each) for each in zip(*rounds, strict=True))
        low, ratio, high = statistics.quantiles((new / old for old, new in rounds), n=4)
        more = statistics.median(new - old for old, new in rounds)
        shown = f"{before * 1e6:,.1f} µs | {now * 1e6:,.1f} µs | {ratio:.2f} | {low:.2f} – {high:.2f}"  # noqa: RUF001
        lines.append(f"| {CASES[case][0]} | {shown} |")
        if ratio > MOST_TIMES.get(case, ratio) or more > MOST_MORE.get(case, more):
            missed.append(f"{case}: {ratio:.2f} times as long, {more * 1e6:+.1f} µs")
    return "\n".join([*lines, "", *(missed and ["More than is allowed: " + "; ".join(missed)])]), not missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the other checkout, which is `before`")
    parser.add_argument("--now", type=Path, default=HERE.parents[1], help="this one")
    parser.add_argument("--pin", action="store_true", help="everything on one core")
    parser.add_argument("--pairs", type=int, default=5, help="of fresh processes")
    parser.add_argument("--rounds", type=int, default=20, help="of each pair")
    parser.add_argument("--only", default=",".join(CASES), help="cases")
    parser.add_argument("--host", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        Host().serve()
        return
    if options.against is None:
        parser.error("--against is needed")
    if options.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cases = options.only.split(",")
    found = compare(options.against.resolve(), options.now.resolve(), cases, options.pairs, options.rounds)
    text, met = table(found)
    print(text)
    sys.exit(not met)


if __name__ == "__main__":
    main()
