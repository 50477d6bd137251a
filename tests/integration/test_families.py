"""All that cloudpickle keeps is kept: as an argument, as a global and as a result, of a notebook and of a script.

`families` holds the objects, and what must hold of each. Plain cloudpickle takes each to another process and back, for
comparison.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, LIMITS, REFUSED, ROWS, VARYING, WAYS, cell, refused_cell, table
from support import TIME_SCALE
from test_notebook import Notebook

pytestmark = pytest.mark.kernel

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
RANKS = {"no": 0, "named": 1, "yes": 2}

HEAD = """
import json, sys, traceback

def content(names):
    from flyte_jupyter.client.capture import Captured
    try: return {"content": Captured.of_names(["x"], names).closure().manifest["x"].content}
    except Exception: return {"content": traceback.format_exc()}

def attempted(go):
    try: go()
    except Exception: return traceback.format_exc()
    return ""

def write(name, found, names):
    with open(REPORT, "a") as file: print(json.dumps([name, found]), file=file)
    for each in set(names) - kept:
        if each[:1] != "_": del names[each]
"""
OURS = """
import flyte_jupyter as flyte
env = flyte.TaskEnvironment(POOL, reusable=flyte.ReusePolicy(replicas=1))

@env.task
def use(x): check(x)
@env.task
def use_global(): check(x)
@env.task
def hand(x): return x
@env.task
def give(): return x
@env.task
def use_pair(pair): pair[1](pair[0])
@env.task
def use_global_pair(): pair[1](pair[0])
@env.task
def give_pair(): return build()

def check_pair(pair): pair[1](pair[0])

def again(got, use):  # the last result, on its way a second time
    if not got: raise LookupError("there was no result")
    use(got.pop())

def kept_in(got, value):
    got.append(value)
    return value

got = []
ways = {
    "here": lambda: check(x),
    "argument": lambda: use(x),
    "global": lambda: use_global(),
    "result": lambda: check(give()),
    "back": lambda: check(kept_in(got, hand(x))),
    "argument again": lambda: again(got, use),
    "local argument": lambda: use_pair(pair),
    "local global": lambda: use_global_pair(),
    "local back": lambda: check_pair(hand(pair)),
    "local result": lambda: check_pair(kept_in(got, give_pair())),
    "local argument again": lambda: again(got, use_pair),
}

def report(name, names):
    names["pair"] = build()
    write(name, content(names) | {way: attempted(go) for way, go in ways.items()}, names)
    got.clear()

kept = {"kept", *globals()}
"""
PLAIN = """
import pickle, struct, subprocess
import cloudpickle
there = subprocess.Popen([sys.executable, "-c", THERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

def travel(pair):
    try: data = cloudpickle.dumps(pair)
    except Exception: return {"there": traceback.format_exc(), "back": "it did not get there"}
    there.stdin.write(struct.pack("i", len(data)) + data)
    there.stdin.flush()
    problem, data = pickle.loads(there.stdout.read(struct.unpack("i", there.stdout.read(4))[0]))
    def back():
        assert isinstance(data, bytes), data
        x, check = pickle.loads(data)
        check(x)
    return {"there": problem, "back": attempted(back)}

def report(name, names):
    found = content(names) | travel((x, check))
    write(name, found | {f"local {way}": value for way, value in travel(build()).items()}, names)

kept = {"kept", *globals()}
"""
THERE = """
import os, pickle, struct, sys, traceback
import cloudpickle
out = open(os.dup(1), "wb")
os.dup2(2, 1)
while size := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(struct.unpack("i", size)[0])
    try:
        x, check = pickle.loads(data)
        check(x)
    except Exception:
        reply = traceback.format_exc(), ""
    else:
        try: reply = "", cloudpickle.dumps((x, check))
        except Exception: reply = "", traceback.format_exc()
    data = pickle.dumps(reply)
    out.write(struct.pack("i", len(data)) + data)
    out.flush()
"""

Report = dict[str, str]


def reports(path: Path) -> dict[str, Report]:
    return dict(map(json.loads, path.read_text().splitlines()))


def cells() -> dict[str, str]:
    made = {name: cell(name, text) for name, text in ROWS.items()}
    return made | {name: refused_cell(name, text) for name, (_, text) in REFUSED.items()}


class Scripts:
    """One script that makes all calls, and one that asks plain cloudpickle, at the same time."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        body = "".join(text for name, text in cells().items() if name in names)
        self._folder = folder
        self._processes = {
            "script": self._start("script", f"{OURS}{body}flyte.pool(env).stop()\n", "1"),
            "plain": self._start("plain", f"THERE = {THERE!r}\n{PLAIN}{body}there.stdin.close(); there.wait()\n", "2"),
        }
        self._reports: dict[str, dict[str, Report]] = {}

    def _start(self, name: str, code: str, seed: str) -> subprocess.Popen[str]:
        path = self._folder / f"{name}.py"
        path.write_text(f"REPORT = {str(self._folder / name)!r}\nPOOL = 'families-script'\n{HEAD}{code}")
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        with open(self._folder / f"{name}.out", "w") as out:
            return subprocess.Popen(
                [sys.executable, str(path)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True, env=environment, cwd=self._folder,
            )  # fmt: skip

    def report(self, origin: str, name: str) -> Report:
        if origin not in self._reports:
            code = self._processes[origin].wait(100 * TIME_SCALE)
            assert code == 0, (self._folder / f"{origin}.out").read_text()
            self._reports[origin] = reports(self._folder / origin)
        return self._reports[origin][name]

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def scripts(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Scripts]:
    made = [getattr(item, "callspec", None) for item in request.session.items]
    names = {str(spec.params["name"]) for spec in made if spec is not None and "name" in spec.params}
    scripts = Scripts(tmp_path_factory.mktemp("families"), names)
    try:
        yield scripts
    finally:
        scripts.end()


@pytest.fixture(scope="module")
def kernel(scripts: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Notebook, Path]]:
    folder = tmp_path_factory.mktemp("nb")
    notebook, path = Notebook(folder), folder / "report"
    notebook.setup = f"REPORT = {str(path)!r}\nPOOL = 'families-notebook'\n{HEAD}{OURS}"
    try:
        notebook.begin()
        yield notebook, path
        notebook.run("flyte.pool(env).stop()")
    finally:
        notebook.end()


@pytest.fixture
def report(request: pytest.FixtureRequest, scripts: Scripts) -> Callable[[str, str], Report]:
    """By origin and name of the object: by way, the traceback of what failed, or nothing."""

    def found(origin: str, name: str) -> Report:
        if origin != "notebook":
            return scripts.report(origin, name)
        notebook, path = request.getfixturevalue("kernel")
        ran = notebook.run(cells()[name])
        assert ran.error == "", ran.traceback
        reported, made = json.loads(path.read_text().splitlines()[-1])
        assert reported == name
        return made

    return found


@pytest.mark.parametrize("origin", ["notebook", "script"])
@pytest.mark.parametrize("name", ROWS)
def test_an_object_is_kept(report: Callable[[str, str], Report], name: str, origin: str) -> None:
    ours, plain = report(origin, name), report("plain", name)
    assert ours["here"] == ""
    for column, expected in zip(WAYS, LIMITS.get(name, ("yes", "yes", "yes")), strict=True):
        failed = {way: ours[way] for way in WAYS[column] if ours[way]}
        level = "yes" if not failed else "named" if all(way.startswith("local ") for way in failed) else "no"
        assert RANKS[level] >= RANKS[expected], "\n".join(f"{way}: {text}" for way, text in failed.items())
        if sys.version_info[:2] == (3, 11):  # later ones keep more
            assert level == expected, f"as {column}"
        for way, text in failed.items():
            local = "local " if way.startswith("local ") else ""
            # A global that comes back has been pickled twice, once on the replica.
            assert plain[
                local + ("there" if way in WAYS["argument"] + WAYS["global"] + ("local result",) else "back")
            ], f"{way}: cloudpickle keeps it\n{text}"
    if name not in VARYING:
        assert ours["content"] == plain["content"], "the same object is of another content in another process"


@pytest.mark.parametrize("origin", ["notebook", "script"])
@pytest.mark.parametrize("name", REFUSED)
def test_an_object_that_cannot_be_copied_is_named(report: Callable[[str, str], Report], name: str, origin: str) -> None:
    ours, plain = report(origin, name), report("plain", name)
    word, _ = REFUSED[name]
    assert plain["there"] != ""
    assert plain["local there"] != ""
    for way, code, thing in [
        ("argument", "FJ402", '"argument 1'),
        ("global", "FJ402", '"x'),
        ("local argument", "FJ402", '"argument 1[0]'),
        ("local global", "FJ402", '"pair"'),
        ("local result", "FJ403", '"result[0]'),
    ]:
        assert f"{code} " in ours[way], way
        assert thing in ours[way], way
        assert word in ours[way].replace("module's", ""), way


def test_the_documentation_has_the_table() -> None:
    assert table() in PAGE.read_text("utf-8")
    names = [name for rows in (*FAMILIES.values(), REFUSED) for name in rows]
    assert len(names) == len({*names})
    assert {*LIMITS, *VARYING} <= {*names}
