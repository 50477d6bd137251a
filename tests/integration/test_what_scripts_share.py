"""Scripts that run at once, one after the other, or again after an edit: each has its own names on shared replicas."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import START_S, TIME_SCALE, assert_quiet

pytestmark = pytest.mark.kernel

HEAD = """
import asyncio, functools, json, os, random, sys, time
import flyte_jupyter as flyte
env = flyte.TaskEnvironment("scripts", reusable=flyte.ReusePolicy(replicas=(1, 1)))
many = flyte.TaskEnvironment("scripts-many", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=8))
outer = flyte.TaskEnvironment("scripts-outer", reusable=flyte.ReusePolicy(replicas=(1, 1)))
def say(*values): print(json.dumps(values))
"""


@pytest.fixture(scope="module", autouse=True)
def _pools(shared_broker: Path) -> Iterator[None]:
    yield
    stop = "for each in (env, many, outer): flyte.pool(each).stop()"
    subprocess.run([sys.executable, "-c", HEAD + stop], check=True)
    assert_quiet(timeout=START_S)


async def run(folder: Path, code: str, *args: str, name: str = "script.py") -> list[Any]:
    """What each `say` of the script has said."""
    (folder / name).write_text(HEAD + code)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", name, *args), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60 * TIME_SCALE)
    assert process.returncode == 0, out.decode() + err.decode()
    return [json.loads(line) for line in out.splitlines()]


def run_one(folder: Path, code: str, *args: str, name: str = "script.py") -> list[Any]:
    return asyncio.run(run(folder, code, *args, name=name))


# --- at once

SWEEP = """
LR = float(sys.argv[1])
table = [LR]
class Config: lr = LR
exec(f"def helper(): return {LR}")
def default(lr=LR): return lr
def seen(): return [LR, helper(), Config.lr, default(), table[0]]
def meet(stage):
    open(f"{stage}-{LR}", "w").close()
    while not all(os.path.exists(f"{stage}-{other}") for other in sys.argv[1:]): time.sleep(0.01)
@many.task
async def train(step):
    before = seen()
    for _ in range(step % 5): await asyncio.sleep(0.005)
    return before + seen()
@env.task
def sync(step):
    before = seen()
    time.sleep(0.002)
    return before + seen()
async def one_by_one(): return [await train(n) for n in range(30)]
async def together(): return await asyncio.gather(*[train(n) for n in range(50)])
async def awaited(): return [await sync.aio(n) for n in range(20)]
ways = [lambda: asyncio.run(one_by_one()), lambda: asyncio.run(together()), lambda: asyncio.run(awaited()),
        lambda: [sync(n) for n in range(20)], lambda: list(flyte.map(sync, range(20)))]
for number, way in enumerate(ways):
    meet(number)
    say(sorted({value for found in way() for value in found}))
"""


@pytest.mark.parametrize("rates", [["0.1", "0.2"], ["0.1", "0.2", "0.3"]])
def test_scripts_of_one_path_that_run_at_once_do_not_meet(tmp_path: Path, rates: list[str]) -> None:
    async def sweep() -> list[list[Any]]:
        return await asyncio.gather(*(run(tmp_path, SWEEP, each, *(r for r in rates if r != each)) for each in rates))

    assert asyncio.run(sweep()) == [[[[float(each)]]] * 5 for each in rates]


# --- again

TWICE = """
import numpy as np
seen, stats, rng, gen, total = set(), {"calls": 0}, random.Random(0), np.random.default_rng(0), 0
class C: n = 0
c, count = C(), iter(range(9))
@env.task
def step(x):
    global total
    total += 1
    stats["calls"] += 1
    C.n += 1
    c.m = getattr(c, "m", 0) + 1
    new = x not in seen
    seen.add(x)
    return new, stats["calls"], rng.randint(0, 99), int(gen.integers(100)), total, C.n, c.m, next(count)
@many.task
async def async_step(x):
    stats["calls"] += 1
    new = x not in seen
    seen.add(x)
    return new, stats["calls"], rng.randint(0, 99)
@functools.lru_cache
def loader(): return os.urandom(4).hex()
@env.task
def loaded(): return loader()
say([step(n) for n in (1, 1, 2)])
async def main(): return [await async_step(n) for n in (1, 1, 2)]
say(asyncio.run(main()))
say(loaded())
"""


def test_a_script_that_runs_again_begins_anew_and_its_caches_do_not(tmp_path: Path) -> None:
    first = run_one(tmp_path, TWICE)
    [[steps], [async_steps], _] = first
    assert steps == [[True, 1, 49, 85, 1, 1, 1, 0], [False, 2, 97, 63, 2, 2, 2, 1], [True, 3, 53, 51, 3, 3, 3, 2]]
    assert async_steps == [step[:3] for step in steps]
    assert run_one(tmp_path, TWICE, "--again") == first
    assert run_one(tmp_path, f"\n# two lines more\n{TWICE}") == first
    other = run_one(tmp_path, TWICE, name="other.py")
    assert other[:2] == first[:2]
    assert other[2] != first[2], "another script has its own cache"


NAMES = """
def sum(x): return "mine"
def helper(x): return "old"
import math as module
value = 3
class C: n = 4
"""
USES = """
def tries(get):
    try: return get()
    except NameError as error: return str(error).split("'")[1]
def look(): return [tries(get) for get in (lambda: sum([1, 2]), lambda: helper(1), lambda: module.floor(1.5),
                                           lambda: value, lambda: C.n)]
task = env.task(look)
@many.task
async def async_task(): return look()
say(look(), task(), asyncio.run(async_task()))
"""
HERE, GONE = ["mine", "old", 1, 3, 4], [3, "helper", "module", "value", "C"]


def test_what_a_script_defines_no_longer_is_gone(tmp_path: Path) -> None:
    assert run_one(tmp_path, NAMES + USES) == [[HERE] * 3]
    assert run_one(tmp_path, USES) == [[GONE] * 3]
    again = "say(look(), task(), asyncio.run(async_task()))\n"
    deleted = f"{NAMES}{USES}del sum, helper, module, value, C\n{again}"
    assert run_one(tmp_path, deleted) == [[HERE] * 3, [GONE] * 3]


# --- tasks that call tasks

KINDS = """
from collections import namedtuple
from dataclasses import dataclass, make_dataclass
from enum import Enum
from typing import NamedTuple, TypedDict
from pydantic import BaseModel
@dataclass
class A:
    lr: float
class B(NamedTuple):
    lr: float
C = namedtuple("C", "lr")
class D(BaseModel):
    lr: float
    def __init__(self, lr): super().__init__(lr=lr)
class E(Enum):
    HIGH, LOW = 0.1, 0.2
    lr = property(lambda self: self.value)
class F:
    def __init__(self, lr): self.lr = lr
G = make_dataclass("G", [("lr", float)])
class H(Exception):
    lr = property(lambda self: self.args[0])
class I(TypedDict):
    lr: float
@env.task
def train(c): return c["lr"] if isinstance(c, dict) else c.lr
@env.task
def same(c): return c
@env.task
def fails(c): raise ValueError(c)
@outer.task
def sweep(lr): return [train(kind(lr)) if kind is not I else train(I(lr=lr)) for kind in kinds]
@outer.task
async def async_sweep(lr): return [await train.aio(kind(lr)) for kind in kinds[:-1]]
@outer.task
def one_class(lr): return [type(same(kind(lr))) is kind for kind in kinds[:-1]]
@outer.task
def caught(lr):
    found = []
    for kind in kinds[:-1]:
        try: fails(kind(lr))
        except ValueError as error: found.append(type(error.args[0]) is kind)
    return found
kinds = [A, B, C, D, E, F, G, H, I]
if __name__ == "__main__":
    say([train(kind(0.2)) for kind in kinds[:-1]])
    say(sweep(0.1))
    say(asyncio.run(async_sweep(0.2)))
    say(one_class(0.1), caught(0.2), [type(same(kind(0.1))) is kind for kind in kinds[:-1]])
"""


def test_a_task_of_a_script_gives_its_classes_to_another(tmp_path: Path) -> None:
    assert run_one(tmp_path, KINDS) == [[[0.2] * 8], [[0.1] * 9], [[0.2] * 8], [[True] * 8] * 3]


def test_a_task_of_a_script_gives_a_task_to_another(tmp_path: Path) -> None:
    code = """
@env.task
async def leaf(x): return x + 1
@many.task
async def apply(f, x): return await f(x)
@outer.task
async def inside(): return await apply(leaf, 2)
@outer.task
async def given(f): return await apply(f, 2)
if __name__ == "__main__":
    async def main(): return await apply(leaf, 2), await inside(), await given(leaf)
    say(asyncio.run(main()))
"""
    assert run_one(tmp_path, code) == [[[3, 3, 3]]]


PYTEST = """
import asyncio
from dataclasses import dataclass
import pytest
import flyte_jupyter as flyte
env = flyte.TaskEnvironment("scripts", reusable=flyte.ReusePolicy(replicas=(1, 1)))
outer = flyte.TaskEnvironment("scripts-outer", reusable=flyte.ReusePolicy(replicas=(1, 1)))
LIMIT = 3

def check(x): assert x == LIMIT, f"{x} is not it"

@dataclass
class Item:
    n: int

@env.task
def of_module(x):
    assert x == LIMIT
    return Item(x)

def fails(task, *args):
    with pytest.raises(AssertionError) as caught: task(*args)
    return (str(caught.value).splitlines() or [""])[0]

def test_of_the_module():
    assert of_module(3) == Item(3)
    fails(of_module, 4)

def test_of_a_function(tmp_path):
    y = [1, 2]
    @env.task
    def local(x):
        assert len(y) == x, "text"
        assert [n for n in y] == [1, 2]
        assert any(n == 2 for n in y) and not isinstance(x, str)
        assert tmp_path.name
        return sum(y)
    assert local(2) == 3
    assert fails(local, 5) == "text"

def test_without_text():
    @env.task
    def local(x): assert {"a": x} == {"a": 1}
    assert local(1) is None
    assert fails(local, 2).startswith("assert {'a': 2} == {'a': 1}")

def test_async():
    @env.task
    async def local(x): assert x == 1
    assert asyncio.run(local(1)) is None
    assert fails(lambda: asyncio.run(local(2))) == "assert 2 == 1"

def test_nested():
    @env.task
    def child(x): assert x == 1
    @outer.task
    def parent(x):
        assert x
        return child(x)
    assert parent(1) is None
    assert fails(parent, 2) == "assert 2 == 1"

class TestHelper:
    def test_of_the_module(self):
        @env.task
        def calls(x): check(x)
        calls(3)
        assert fails(calls, 5).startswith("5 is not it")
"""


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_asserts_of_tasks_in_tests_are_told_as_pytest_does(tmp_path: Path, mode: str) -> None:
    (tmp_path / "test_it.py").write_text(PYTEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert "6 passed" in done.stdout, done.stdout
