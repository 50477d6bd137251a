"""A sample of the random histories of `tests/client/test_histories.py`, with real replicas, scripts and files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from support import OwnBroker

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))

from test_histories import PRELUDE, PROBES, RESTART, SECOND, Histories, names

pytestmark = pytest.mark.kernel

HISTORIES = 4
STEPS = 30
KEPT = 12
"""How many cells run again after a restart."""

SCRIPT = """
import importlib, json, linecache
env = flyte.TaskEnvironment("histories", reusable=flyte.ReusePolicy(replicas=(1, 1)))
prelude, probes, cells = json.loads(open(os.environ["CELLS"]).read())
FOLDER = os.path.dirname(os.environ["CELLS"])
sys.path.insert(0, FOLDER)
sys.setrecursionlimit(600)

def edit(value):
    with open(os.path.join(FOLDER, "edited.py"), "w") as file:
        file.write(f"value = {value!r}\\nclass Edited:\\n    attribute = {value!r}\\n"
                   f"    def method(self): return {value!r}\\ndef function(x={value!r}): return x, value\\n")
    importlib.invalidate_caches()
    import edited
    importlib.reload(edited)

def run(number, text):
    filename = f"<cell {number}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    try:
        exec(compile(text, filename, "exec", dont_inherit=True), globals())
    except Exception:
        pass

for number, text in enumerate([prelude, *probes]):
    run(number, text)
tasks = env.task(values), env.task(identities)
for number, text in enumerate(cells, 100):
    run(number, text)
    for task in tasks:
        here, there = task.func(), task()
        if here != there:
            say(json.dumps({"cells": cells[:number - 99], "here": repr(here), "there": repr(there)}))
            sys.exit(0)
say("same")
"""


class WithModules(Histories):
    """Only writes histories; and edits a module, which two worlds in one process cannot have."""

    def compare(self, process: object) -> None:
        pass

    @rule(value=st.sampled_from(["1", "22", "[]", "x"]))
    def edit_a_module(self, value: str) -> None:
        self.cell(f"edit({value!r})")

    @rule(name=names, attribute=st.sampled_from(["", ".value", ".Edited", ".function", ".Edited()"]))
    def bind_from_a_module(self, name: str, attribute: str) -> None:
        self.cell(f"import edited\n{name} = edited{attribute}")


def histories() -> list[list[str]]:
    found: list[list[str]] = []

    class Recorded(WithModules):
        def teardown(self) -> None:
            found.append(list(self.history))
            super().teardown()

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Recorded,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    broker = OwnBroker(tmp_path_factory.mktemp("scripts"))
    broker.variables["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[1] / "client")
    yield broker
    broker.end()


def test_real_replicas_compute_what_the_script_computes(own: OwnBroker, tmp_path: Path) -> None:
    path = tmp_path / "cells"
    for history in histories():
        runs: list[list[str]] = [[]]
        for text in history:
            if text == RESTART:
                runs.append(runs[-1][-KEPT:])
            elif text != SECOND:
                runs[-1].append(text)
        for cells in runs:
            path.write_text(json.dumps([PRELUDE, PROBES, cells]))
            said = own.run(SCRIPT, name="history", timeout=120, CELLS=str(path))
            assert said[-1] == "same", said[-1]
