"""A real notebook whose tasks are compared with what it computes itself; each test leaves no names behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import START_S, assert_quiet
from test_notebook import Notebook

SETUP = """
%load_ext flyte_jupyter
import abc, asyncio, collections, dataclasses, enum, functools, itertools, math, multiprocessing, os, pickle
import random, sys, threading, types, typing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import numpy as np
import pydantic
import flyte_jupyter as flyte

flyte.PoolHandle.view = None  # a card's messages come at any time
env = flyte.TaskEnvironment("sees", reusable=flyte.ReusePolicy(replicas=(1, 1)))
many = flyte.TaskEnvironment("sees-many", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=2))
outer = flyte.TaskEnvironment("sees-outer", reusable=flyte.ReusePolicy(replicas=(1, 1)))
pool = flyte.pool(env)
kept = [*globals(), "kept"]
"""
CLEAN = "for _each in [_each for _each in globals() if _each not in kept and _each[0] != '_']: del globals()[_each]"
TASKS = """
task = env.task(look)
@many.task
async def async_task():
    await asyncio.sleep(0)
    return look()
@outer.task
def nested(): return task()
@env.task
def of(function): return function()
"""
WAYS = {
    "here": "look()",
    "task": "task()",
    "nested": "nested()",
    "map": "next(iter(flyte.map(env.task(lambda _: look()), [0])))",
    "argument": "of(look)",
    "executor": "pool.executor().submit(look).result()",
    "cell": "get_ipython().run_line_magic('flyte_task', 'sees --quiet -i look -- look()')",
    "async task": "await async_task()",
    "awaited": "await task.aio()",
}


def opened(folder: Path) -> Iterator[Notebook]:
    """A notebook that has run SETUP; for a fixture."""
    notebook = Notebook(folder)
    notebook.setup = SETUP
    try:
        notebook.begin()
        yield notebook
        notebook.run("for each in (env, many, outer): flyte.pool(each).stop()")
        assert_quiet(timeout=START_S)
    finally:
        notebook.end()


def cell(notebook: Notebook, text: str) -> None:
    ran = notebook.run(text)
    assert ran.error == "", f"{text}\n{ran.traceback}"


def value(notebook: Notebook, text: str) -> Any:
    ran = notebook.run(text)
    assert ran.error == "", f"{text}\n{ran.traceback}"
    return ran.value


def assert_sees(notebook: Notebook, expected: Any) -> None:
    """`look()` gives that in the notebook, and in a task however it gets there."""
    ways = ", ".join(f"{way!r}: {code}" for way, code in WAYS.items())
    odd = {way: found for way, found in value(notebook, f"{{{ways}}}").items() if found != expected}
    assert not odd, f"{odd}, not {expected!r}"


def clean(notebook: Notebook) -> None:
    """Delete what a test has defined."""
    cell(notebook, CLEAN)
