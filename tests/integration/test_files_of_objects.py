"""Files that hold objects of a notebook's classes: written and read by the notebook, its tasks and its cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seen import cell, clean, opened, value
from test_notebook import Notebook

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    yield from opened(tmp_path_factory.mktemp("nb"))


@pytest.fixture
def notebook(kernel: Notebook, tmp_path: Path) -> Iterator[Notebook]:
    cell(kernel, f"path = {str(tmp_path / 'file')!r}")
    yield kernel
    clean(kernel)


NET = """
class Net:
    def __init__(self, n): self.n = n
    def f(self): return "one", self.n
def make(): return Net(4)
def look(net): return net.f()
"""
OBJECTS: dict[str, tuple[str, Any]] = {
    "an instance": (NET, ("one", 4)),
    "several": (
        NET + "def make(): return {'k': [Net(4), Net(5)]}\ndef look(nets): return [n.n for n in nets['k']]",
        [4, 5],
    ),
    "a dataclass": (
        "@dataclasses.dataclass\nclass C:\n    lr: float\ndef make(): return C(0.5)\ndef look(c): return c.lr",
        0.5,
    ),
    "an enum": ("class C(enum.Enum):\n    RED = 1\ndef make(): return C.RED\ndef look(c): return c is C.RED", True),
    "a named tuple": ("Pt = collections.namedtuple('Pt', 'x')\ndef make(): return Pt(3)\ndef look(p): return p.x", 3),
    "of an inner class": (
        "class A:\n    class B:\n        n = 3\ndef make(): return A.B()\ndef look(b): return b.n, type(b) is A.B",
        (3, True),
    ),
    "a class": ("class C: n = 4\ndef make(): return C\ndef look(c): return c().n", 4),
    "a function": (
        "def double(x): return helper(x)\ndef helper(x): return x * 2\ndef make(): return double\n"
        "def look(f): return f(4)",
        8,
    ),
    "a bound method": (NET + "def make(): return Net(6).f\ndef look(f): return f()", ("one", 6)),
    "a partial": ("def f(a, b): return a + b\ndef make(): return functools.partial(f, 1)\ndef look(f): return f(2)", 3),
    "a model": ("class M(pydantic.BaseModel):\n    n: int\ndef make(): return M(n=3)\ndef look(m): return m.n", 3),
    "an exception": (
        "class Bad(Exception): pass\ndef make(): return Bad('x')\ndef look(e): return type(e) is Bad",
        True,
    ),
    "of a subclass": (
        "class A:\n    def f(self): return self.g()\nclass B(A):\n    def g(self): return SCALE\nSCALE = 7\n"
        "def make(): return B()\ndef look(b): return b.f()",
        7,
    ),
}
PICKLE = """
def dump(obj, path):
    with open(path, "wb") as file: pickle.dump(obj, file)
def load(path):
    with open(path, "rb") as file: return pickle.load(file)
"""
LIBRARIES = {
    "pickle": PICKLE,
    "an old protocol": PICKLE.replace("(obj, file)", "(obj, file, 2)"),
    "pickle in Python": PICKLE.replace("pickle.dump(obj, file)", "pickle._Pickler(file).dump(obj)").replace(
        "pickle.load(file)", "pickle._Unpickler(file).load()"
    ),
    "cloudpickle": PICKLE.replace("pickle.", "cloudpickle."),
    "joblib": "def dump(obj, path): joblib.dump(obj, path)\ndef load(path): return joblib.load(path)",
    "torch": (
        "def dump(obj, path): torch.save({'net': obj}, path)\n"
        "def load(path): return torch.load(path, weights_only=False)['net']"
    ),
}
PLACES = """
def read(path): return look(load(path))
def write(path): dump(make(), path)
task_reads, task_writes = env.task(read), env.task(write)
@many.task
async def async_reads(path): return read(path)
@many.task
async def async_writes(path): write(path)
"""
BY_CELL = "get_ipython().run_line_magic('flyte_task', 'sees --quiet -i {0},path -- {0}(path)')"
WRITES = ["write(path)", "task_writes(path)", "await async_writes(path)", BY_CELL.format("write")]
READS = ["read(path)", "task_reads(path)", "await async_reads(path)", BY_CELL.format("read")]


def assert_all_read_what_each_writes(notebook: Notebook, expected: Any, places: int = len(WRITES)) -> None:
    cell(notebook, PLACES)
    for write in WRITES[:places]:
        cell(notebook, write)
        assert [value(notebook, read) for read in READS[:places]] == [expected] * places, write


@pytest.mark.parametrize(("text", "expected"), OBJECTS.values(), ids=OBJECTS)
def test_what_one_has_written_all_can_read(notebook: Notebook, text: str, expected: Any) -> None:
    cell(notebook, f"{text}\n{PICKLE}")
    assert_all_read_what_each_writes(notebook, expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_whatever_library_writes_it(notebook: Notebook, library: str) -> None:
    if library in ("joblib", "torch", "cloudpickle"):
        pytest.importorskip(library)
        cell(notebook, f"import {library}")
    cell(notebook, f"{NET}\n{LIBRARIES[library]}")
    # Each process that imports torch takes seconds.
    assert_all_read_what_each_writes(notebook, ("one", 4), places=2 if library == "torch" else len(WRITES))


@pytest.mark.parametrize(
    "body",
    [
        "return load(path)",
        "with ThreadPoolExecutor(1) as threads: return threads.submit(load, path).result()",
        "return pickle.loads(open(path, 'rb').read())",
        "async def inside(): return await asyncio.to_thread(load, path)\n    return asyncio.run(inside())",
    ],
)
def test_a_fresh_replica_gets_the_class_that_only_the_file_names(notebook: Notebook, body: str) -> None:
    cell(notebook, f"{NET}\n{PICKLE}\n@env.task\ndef loads(path):\n    {body}\ndump(make(), path)")
    cell(notebook, "pool.restart()")
    assert value(notebook, "net = loads(path); type(net) is Net, look(net)") == (True, ("one", 4))


READ_BY = {
    "a task": "@env.task\ndef reads(): return load(path).f()",
    "a thread of a task": (
        "@env.task\ndef reads():\n    with ThreadPoolExecutor(1) as threads:\n"
        "        return threads.submit(lambda: load(path).f()).result()"
    ),
    "an async task": "@many.task\nasync def async_reads(): return load(path).f()\ndef reads(): return async_reads",
    "a thread of an async task": (
        "@many.task\nasync def async_reads(): return await asyncio.to_thread(lambda: load(path).f())\n"
        "def reads(): return async_reads"
    ),
}


@pytest.mark.parametrize("reads", READ_BY.values(), ids=READ_BY)
def test_a_class_that_only_the_file_names_is_the_one_of_today(notebook: Notebook, reads: str) -> None:
    cell(notebook, f"{NET}\n{PICKLE}\n{reads}\ndump(make(), path)\nused = env.task(lambda: Net(1).f())")
    call = "await reads()()" if "def async_reads" in reads else "reads()"
    assert value(notebook, f"used(), {call}") == (("one", 1), ("one", 4))
    cell(notebook, "Net.f = lambda self: ('two', self.n)")
    assert value(notebook, call) == ("two", 4)
    cell(notebook, "class Net:\n    def f(self): return SCALE, self.n\nSCALE = 3")
    assert value(notebook, call) == (3, 4)
    cell(notebook, "SCALE = 5")
    assert value(notebook, call) == (5, 4)
    cell(notebook, "del Net")
    assert notebook.run(call).error == "AttributeError"
    cell(notebook, NET)
    assert value(notebook, call) == ("one", 4)


@pytest.mark.parametrize(
    "body",
    [
        "import __main__\n    return __main__.unseen",
        "from __main__ import unseen as other\n    return other",
        "return getattr(sys.modules['__main__'], 'unseen')",
        "from operator import attrgetter\n    return attrgetter('unseen')(sys.modules['__main__'])",
    ],
)
def test_a_name_that_is_looked_for_in_main_is_the_one_of_today(notebook: Notebook, body: str) -> None:
    cell(notebook, f"unseen = 7\n@env.task\ndef looks():\n    {body}")
    assert value(notebook, "looks()") == 7
    assert value(notebook, "unseen = 8; looks()") == 8
    cell(notebook, "del unseen")
    assert notebook.run("looks()").error in ("AttributeError", "ImportError")


def test_what_runs_keeps_the_names_that_it_began_with(notebook: Notebook) -> None:
    cell(
        notebook,
        f"{NET}\n{PICKLE}\ndump(make(), path)\n"
        "@many.task\nasync def waits():\n    before = Net(0).f()\n    while not os.path.exists(path + '-go'): "
        "await asyncio.sleep(0.005)\n    return before, Net(0).f(), load(path).f()\n"
        "@many.task\nasync def reads(): return load(path).f()",
    )
    text = "class Net:\n    def f(self): return 'two', self.n\n"
    ran = value(
        notebook,
        f"running = asyncio.ensure_future(waits())\nawait reads()\nexec({text!r})\nother = await reads()\n"
        "open(path + '-go', 'w').close()\nawait running, other, load(path).f()",
    )
    assert ran == ((("one", 0), ("one", 0), ("one", 4)), ("two", 4), ("two", 4))


def test_a_result_finds_its_class_although_another_has_its_name_by_now(notebook: Notebook) -> None:
    cell(
        notebook,
        "made = {name: collections.namedtuple(name, 'x') for name in 'ab'}\na = T = made['a']\n"
        "@env.task\ndef gives(p): return p, T(2), a is T",
    )
    assert value(notebook, "got = gives(T(1)); [type(each) is T for each in got[:2]], got[2]") == ([True, True], True)
    for text in ("a = 5", "class a: pass", "del a"):
        cell(notebook, f"{text}\n@env.task\ndef gives(p): return p, T(2)")
        assert value(notebook, "[type(each) is T for each in gives(T(1))]") == [True, True], text
