"""Random notebook histories: after each cell, tasks compute on the replica what they compute in the notebook."""

from __future__ import annotations

from typing import Any

import pytest
from histories import Process, Worlds, worlds
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from shown import show

VARIABLES = ("a", "b", "c")
FUNCTIONS = ("f", "g", "h")
CLASSES = ("P", "Q", "R")
NAMES = (*VARIABLES, *FUNCTIONS, *CLASSES)

PRELUDE = """
import collections, dataclasses, enum, functools, typing
from shown import show
T = typing.TypeVar("T")
registry = {}
def register(thing):
    registry[thing.__name__] = thing
    return thing
def scaled(by):
    def decorate(function):
        @functools.wraps(function)
        def inner(*arguments):
            return (function(*arguments), by)
        return inner
    return decorate
def counted(function):
    def inner(*arguments):
        return ("counted", function(*arguments))
    return inner
def make(value):
    def inner():
        return (value, inner.__name__)
    return inner
def pair(value):
    def get(): return value
    def other(): return [value, get]
    return get, other
"""

values = st.sampled_from(
    [
        "1",
        "True",
        "1.0",
        "'x'",
        "None",
        "[]",
        "[1]",
        "{}",
        "{'k': []}",
        "(1, [2])",
        "{1, 2}",
        "object",
        "len",
        *(f"{name}" for name in NAMES),
        *(f"[{name}, {name}]" for name in NAMES),
        *(f"{{'k': {name}}}" for name in NAMES),
        *(f"{name}()" for name in CLASSES),
        *(f"make({name})" for name in VARIABLES),
        *(f"lambda: {name}" for name in NAMES),
        "functools.partial(make, a)",
        "registry",
    ]
)
names = st.sampled_from(NAMES)
variables = st.sampled_from(VARIABLES)
functions = st.sampled_from(FUNCTIONS)
classes = st.sampled_from(CLASSES)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._open = worlds()
        self.worlds: Worlds = self._open.__enter__()
        self.second: Process | None = None
        self.history: list[str] = []
        """Cells and events, for `replay`."""

    def teardown(self) -> None:
        self._open.__exit__(None, None, None)

    @initialize()
    def begin(self) -> None:
        self._prepare(self.worlds.process)

    def _prepare(self, process: Process) -> None:
        for text in (PRELUDE, *PROBES):
            error = process.cell(text)
            assert error is None, error

    # --- cells

    def cell(self, text: str) -> None:
        self.history.append(text)
        process = self.worlds.process
        process.cell(text)
        self.compare(process)
        if self.second is not None:
            self.compare(self.second)

    @rule(name=variables, value=values)
    def bind(self, name: str, value: str) -> None:
        self.cell(f"{name} = {value}")

    @rule(name=names, other=names)
    def alias(self, name: str, other: str) -> None:
        self.cell(f"{name} = {other}")

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.cell(f"del {name}")

    @rule(
        name=variables, change=st.sampled_from([".append(1)", ".clear()", ".pop()", "[0] = 2", "['k'] = 3", ".x = [4]"])
    )
    def change(self, name: str, change: str) -> None:
        self.cell(f"{name}{change}")

    @rule(name=variables, value=values, key=st.sampled_from([".append({})", "['k'] = {}", ".x = {}", "[0] = {}"]))
    def put(self, name: str, value: str, key: str) -> None:
        self.cell(f"{name}{key.format(f'({value})')}")

    @rule(
        name=functions,
        body=st.sampled_from([*(f"return {name}" for name in NAMES), "return f()", "return [x, y]", "return registry"]),
        default=values,
        keyword=values,
        decorator=st.sampled_from(
            ["", "", "@register", "@scaled(a)", "@counted", "@functools.lru_cache", "@staticmethod"]
        ),
    )
    def define(self, name: str, body: str, default: str, keyword: str, decorator: str) -> None:
        self.cell(f"{decorator}\ndef {name}(x={default}, *, y={keyword}):\n    {body}\n".lstrip())

    @rule(name=functions, other=functions, value=values)
    def from_a_factory(self, name: str, other: str, value: str) -> None:
        self.cell(f"{name}, {other} = pair({value})")

    @rule(name=functions, value=values, what=st.sampled_from(["tag = {}", "__defaults__ = ({},)", "__doc__ = 'd'"]))
    def set_on_function(self, name: str, value: str, what: str) -> None:
        self.cell(f"{name}.{what.format(value)}")

    @rule(
        name=classes,
        base=st.sampled_from(
            ["", "P", "Q", "R", "typing.Generic[T]", "collections.namedtuple('N', 'x', defaults=[1])"]
        ),
        value=values,
        decorator=st.sampled_from(["", "", "@register", "@dataclasses.dataclass", "@functools.total_ordering"]),
    )
    def define_class(self, name: str, base: str, value: str, decorator: str) -> None:
        self.cell(
            f"{decorator}\nclass {name}({base}):\n"
            f"    attribute = {value}\n"
            f"    field: list = dataclasses.field(default_factory=list)\n"
            f"    def method(self): return ({name}, super().__repr__ is not None, a)\n"
            f"    @property\n    def prop(self): return b\n"
            f"    @classmethod\n    def klass(cls): return cls.__name__\n"
            f"    @staticmethod\n    def static(x={value}): return x\n".lstrip()
        )

    @rule(name=classes, kind=st.sampled_from(["enum.Enum", "enum.IntEnum", "enum.Flag"]), number=st.integers(1, 2))
    def define_enum(self, name: str, kind: str, number: int) -> None:
        self.cell(
            f"class {name}({kind}):\n    ONE = {number}\n    TWO = 4\n    def method(self): return (self.name, a)"
        )

    @rule(
        name=classes,
        text=st.sampled_from(
            [
                "collections.namedtuple('{0}', 'x y', defaults=(1, 2))",
                "type('{0}', (), {{'v': a}})",
                "dataclasses.make_dataclass('{0}', [('x', int, 3)])",
                "typing.NamedTuple('{0}', [('x', int)])",
            ]
        ),
    )
    def make_class(self, name: str, text: str) -> None:
        self.cell(f"{name} = {text.format(name)}")

    @rule(name=classes)
    def class_with_registry(self, name: str) -> None:
        self.cell(
            f"class {name}:\n    known = []\n    def __init_subclass__(cls, **kw):\n        {name}.known.append(cls)\n"
            "    def method(self): return len(self.known)"
        )

    @rule(name=classes, base=st.sampled_from(["", "P", "Q", "R"]))
    def class_with_slots(self, name: str, base: str) -> None:
        self.cell(
            f"class {name}({base}):\n    __slots__ = ('x', '__y')\n    def __init__(self): self.x = a; self.__y = 1\n"
            "    def method(self): return (self.x, self.__y)"
        )

    @rule(name=classes, attribute=st.sampled_from(["attribute", "method", "fresh", "known"]), value=values)
    def set_on_class(self, name: str, attribute: str, value: str) -> None:
        self.cell(f"{name}.{attribute} = {value}")

    @rule(name=classes, attribute=st.sampled_from(["attribute", "method", "fresh", "known"]))
    def delete_on_class(self, name: str, attribute: str) -> None:
        self.cell(f"del {name}.{attribute}")

    @rule(name=classes, other=classes)
    def change_bases(self, name: str, other: str) -> None:
        self.cell(f"if type({name}) is type is type({other}): {name}.__bases__ = ({other},)")

    @rule(number=st.integers(1, 5))
    def run_again(self, number: int) -> None:
        cells = self.worlds.process.cells
        if len(cells) - number > 1 + len(PROBES):
            self.cell(cells[-number])

    @rule()
    def restart(self) -> None:
        self.history.append(RESTART)
        cells = list(self.worlds.process.cells)
        self.worlds.restart()
        for text in cells[-12:] if len(cells) > 20 else cells:
            self.worlds.process.cell(text)
        self._prepare(self.worlds.process)
        self.compare(self.worlds.process)

    @rule()
    def start_a_second_process(self) -> None:
        if self.second is None:
            self.history.append(SECOND)
            self.second = self.worlds.start()
            self._prepare(self.second)
            for text in self.worlds.process.cells[1 + len(PROBES) :][-6:]:
                self.second.cell(text)
            self.compare(self.second)

    # --- what must hold

    def compare(self, process: Process) -> None:
        for probe in PROBED:
            here = self.worlds.here(probe, process)()
            there = self.worlds.there(probe, process)()
            history = "\n---\n".join(self.history)
            assert there == here, f"{probe}: on the replica {there}, in the notebook {here}, after\n{history}"


RESTART = "# restart"
SECOND = "# second process"
PROBED = ("values", "identities")
PROBES = (
    "def look(get):\n    try: return show(get())\n    except NameError as error: return str(error)",
    "def values():\n    return [" + ", ".join(f"look(lambda: {name})" for name in (*NAMES, "registry")) + "]",
    "def same(get):\n    try: return get()\n    except (NameError, TypeError) as error: return str(error)",
    "def one(x, y):\n    return x is y if not isinstance(x, (int, float, str, tuple)) else x == y",
    "def identities():\n    return ["
    + ", ".join(
        [f"same(lambda: one({x}, {y}))" for x in NAMES for y in NAMES if x < y]
        + [f"same(lambda: isinstance({x}, {y}))" for x in VARIABLES for y in CLASSES]
        + [f"same(lambda: issubclass({x}, {y}))" for x in CLASSES for y in CLASSES if x != y]
    )
    + "]",
)

Histories.TestCase.settings = settings(
    max_examples=100,
    derandomize=True,  # what it finds is mended at a quiet hour, with other seeds; this is what must stay so
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
)
TestHistories = Histories.TestCase


def replay(*history: str) -> list[Any]:
    """What each probe gives on the replica after those cells and events, compared with the notebook after each."""
    machine = Histories()
    try:
        machine.begin()
        for text in history:
            if text == RESTART:
                machine.restart()
            elif text == SECOND:
                machine.start_a_second_process()
            else:
                machine.cell(text)
        return [machine.worlds.there(probe)() for probe in PROBED]
    finally:
        machine.teardown()


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(["f, g = pair([])", "g, h = pair(1)", "f, h = pair([a])"], id="closures-that-share-a-cell"),
        pytest.param(
            [
                "@register\ndef f(): return 1",
                "@functools.lru_cache\ndef g(): return registry",
                "@register\ndef h(): return 2",
            ],
            id="a-cached-function-and-a-registry",
        ),
        pytest.param(
            ["P = dataclasses.make_dataclass('P', [('x', int, 3)])", "class Q:\n    attribute = P", "P.attribute = 4"],
            id="a-class-inside-another",
        ),
        pytest.param(
            [
                "class Q:\n    known = []\n    def __init_subclass__(cls, **kw): Q.known.append(cls)",
                "class P(Q): pass",
                "class P(P): pass",
                "class Q(P):\n    known = []\n    def __init_subclass__(cls, **kw): Q.known.append(cls)",
                "class R(Q): pass",
            ],
            id="a-class-that-extends-its-own-subclass",
        ),
        pytest.param(["class P: pass", "g = P", "class P(g): attribute = 1", "a = g()"], id="an-alias-of-a-class"),
        pytest.param(
            [
                "class P: pass",
                "@functools.lru_cache\ndef g(x={'k': P}): return x",
                "class P: attribute = 1",
                "c = g",
                "def g(): return c",
            ],
            id="a-cached-function-with-an-old-class-in-its-default",
        ),
        pytest.param(
            ["@staticmethod\ndef f(): return 1", "f.tag = [1]", "a = f.tag", "a.append(f)"],
            id="a-static-method-without-a-class",
        ),
        pytest.param(
            ["class Q: pass", "class P(Q): pass", "class Q: pass", "class P(Q): pass", "a = P()"],
            id="a-parent-that-is-run-again",
        ),
        pytest.param(["b = []", "b = a = b", "a.append(1)", "b = [*a]"], id="two-names-of-a-list"),
        pytest.param(
            ["a = []", "class Q: attribute = a", "c = [Q, Q]", "a = (c, c)"],
            id="a-name-that-meant-a-part-of-something",
        ),
        pytest.param(
            ["class P: pass", "a = P()", RESTART, "a = [P()]", SECOND, "class P: attribute = 2"], id="processes"
        ),
    ],
)
def test_a_history_that_once_went_wrong(history: list[str]) -> None:
    replay(*history)


def test_what_is_shown_tells_things_apart() -> None:
    assert show([1, True, {"k": (1.0,)}]) == [
        "list",
        "int:1",
        "bool:True",
        ["dict", ("str:'k'", ["tuple", "float:1.0"])],
    ]
