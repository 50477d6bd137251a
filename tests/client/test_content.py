"""Equal objects are of equal content, in every process and wherever their code stands; others are not."""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
from types import ModuleType

import pytest

from flyte_jupyter.client.capture import Captured

PROGRAMS = {
    "a function": "def x(a, *, b='t'): return a in {'one', 'two', 'three'}",
    "a lambda": "x = lambda a: a in {'one', 'two', 'three'}",
    "a closure": "def make(n):\n    def x(): return n\n    return x\nx = make([1])",
    "a coroutine and a generator": "async def f(): pass\ndef g(): yield f\nx = [f, g]",
    "a cache": "import functools\nk = 1\ndef helper(): return k\n@functools.cache\ndef x(): return helper()",
    "a dispatcher": "import functools\n@functools.singledispatch\ndef x(a): pass\nx.register(int)(lambda a: 1)",
    "a wrapper": "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def inner(*a): return f(*a)\n"
    "    return inner\n@deco\ndef x(a: int) -> 'str': pass",
    "a class": "class Base:\n    def f(self): pass\nclass x(Base):\n    a, b = 1, [2]\n    def f(self): super().f()",
    "a class with slots": "class x:\n    __slots__ = ('a', 'b')",
    "a generic class": "import typing\nT = typing.TypeVar('T', bound='x')\nclass x(typing.Generic[T]): pass",
    "a dataclass": "import dataclasses\n@dataclasses.dataclass(frozen=True, order=True)\nclass x:\n    a: int = 1",
    "an enum": "import enum\nclass x(enum.Enum):\n    A = 'a'\n    B = 'b'",
    "a flag": "import enum\nclass x(enum.Flag):\n    A = 1\n    B = 2\n    C = 4",
    "a named tuple": "import typing\nclass x(typing.NamedTuple):\n    a: int\n    b: str = 'b'",
    "a class with one abstract method": "import abc\nclass x(abc.ABC):\n    @abc.abstractmethod\n    def f(self): pass",
    "a class with many abstract methods": "import abc\nclass x(abc.ABC):\n"
    + "".join(f"    @abc.abstractmethod\n    def {name}(self): pass\n" for name in ("f", "g", "h", "i")),
    "a typed dict": "import typing\nclass x(typing.TypedDict):\n    a: int\n    b: str\n    c: str\n    d: str",
    "an instance": "class C: pass\nx = C()\nx.a = [1, {'b': None}]",
    "a container": "class C: pass\nx = {'a': [1, 2.5, C], 'b': (C(), 'text', b'bytes')}",
    "a set of words": "x = {'one', 'two', 'three', 'four'}",
    "a default that is a set of words": "def x(a=frozenset({'one', 'two', 'three', 'four'})): pass",
}

SCRIPT = f"""
import json, sys
from {__name__} import marks_of
print(json.dumps([marks_of(text) for text in json.load(sys.stdin)]))
"""


def marks_of(text: str) -> list[str]:
    """The content of `x` after this has run, and of all that it uses."""
    main = ModuleType("__main__")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", main)
        exec(compile(text, "<cell>", "exec"), vars(main))
        mark = Captured.of_names(["x"], vars(main)).closure().manifest["x"]
    return [mark.content, mark.deep]


@pytest.fixture(scope="module")
def elsewhere() -> list[dict[str, list[str]]]:
    """The marks of the programs in processes that spread hashes in other ways."""
    found = []
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(list(PROGRAMS.values())).encode(),
            capture_output=True,
            check=True,
            env=environment,
            timeout=60,
        )
        found.append(dict(zip(PROGRAMS, json.loads(done.stdout), strict=True)))
    return found


@pytest.mark.parametrize("what", PROGRAMS)
def test_content_is_the_same_in_every_process(elsewhere: list[dict[str, list[str]]], what: str) -> None:
    first, second, third = (marks[what] for marks in elsewhere)
    assert first == second == third


@pytest.mark.parametrize("what", PROGRAMS)
def test_content_is_the_same_where_the_code_has_moved(what: str) -> None:
    assert marks_of(f"# a comment\n\n\nbefore = 1\n{PROGRAMS[what]}") == marks_of(PROGRAMS[what])


@pytest.mark.parametrize("what", ["an enum", "a flag"])
def test_what_a_library_notes_on_a_function_of_python_is_no_part_of_it(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = marks_of(PROGRAMS[what])
    monkeypatch.setattr(enum.Enum.__new__, "noted", "as torch does when it is imported", raising=False)
    assert marks_of(PROGRAMS[what]) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def x(a='one', b='one'):\n    pass", "def x(a='one', b=''.join(['o', 'ne'])):\n    pass"),
        ("class x: a, b = 'on e', 'on e'", "class x: a, b = 'on e', 'on ' + chr(101)"),
        ("def x(): pass\nx.a = {'k': 'k'}", "def x(): pass\nx.a = {'k': ''.join(['', 'k'])}"),
    ],
)
def test_equal_text_may_be_one_object_or_two(one: str, other: str) -> None:
    assert marks_of(one)[0] == marks_of(other)[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("x = ['a', 'b']", "x = ['ab', '']"),
        ("x = {'a': 1, 'b': 2}", "x = {'b': 2, 'a': 1}"),
        ("def x(): return 1", "def x(): return 1.0"),
        ("def x(a=1): pass", "def x(a=2): pass"),
        ("def x(a='one', b='two'): pass", "def x(a='onetwo', b=''): pass"),
        ("def x(): pass", "def x(): pass\nx.seen = 1"),
        ("class x: a = 1", "class x: b = 1"),
        ("class A: pass\nclass x(A): pass\ndel A", "class A: a = 1\nclass x(A): pass\ndel A"),
        ("def x(a=[1], b=[1]): pass", "shared = [1]\ndef x(a=shared, b=shared): pass"),  # one list, or two
        ("def x(a=[[1], []]): pass", "def x(a=[[], [1]]): pass"),
        ("def make(n): return lambda: n\nx = make(1)", "def make(n): return lambda: n\nx = make(2)"),
    ],
)
def test_what_differs_is_of_other_content(one: str, other: str) -> None:
    assert marks_of(one)[0] != marks_of(other)[0]


def test_equal_tensors_are_of_equal_content() -> None:
    pytest.importorskip("torch")
    mains = [ModuleType("__main__"), ModuleType("__main__")]  # both live, so that the addresses differ
    for main in mains:
        exec("import torch\nx = [torch.nn.Parameter(torch.arange(3.0))]", vars(main))
    one, other = (Captured.of_names(["x"], vars(main)).closure().manifest["x"].content for main in mains)
    assert one == other
