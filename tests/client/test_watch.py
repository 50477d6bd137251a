"""What is noticed of a captured object that changes, and that nothing is noticed where nothing changes."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from flyte_jupyter.client.capture.values import pickle_value
from flyte_jupyter.client.capture.watch import MOST_ELEMENTS, Watch

MAKE_COUNTER = """
def make():
    n = 0
    def x(): return n
    def add(by):
        nonlocal n
        n += by
    def forget():
        nonlocal n
        del n
    return x, add, forget
x, add, forget = make()
"""


Made = Callable[[str], dict[str, Any]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """The names of a notebook in which this text has run; `x` is what is looked at."""

    def run(text: str) -> dict[str, Any]:
        module = ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(f"import abc, collections, enum, functools, pickle, types\n{text}", vars(module))
        return vars(module)

    return run


def watch(names: dict[str, Any]) -> Watch:
    return pickle_value(names["x"], names, name="x").watch


@pytest.mark.parametrize(
    ("before", "change"),
    [
        # a class
        ("class x: a = 1", "x.a = 2"),
        ("class x: a = 1", "x.b = 1"),
        ("class x(enum.Enum): A = [1]", "x.A.value.append(2)"),
        ("class x: a = 1", "del x.a"),
        ("class x: a = [1]", "x.a = [1]"),
        ("class x: a = [1]", "x.a.append(2)"),
        ("class x:\n    a, b = 1, 2", "del x.a; x.a = 1"),  # they are in another order now
        ("class A: pass\nclass B: pass\nclass x(A): pass", "x.__bases__ = (B,)"),
        ("class A: a = 1\nclass x(A): pass\ndel A", "x.__base__.a = 2"),  # no name leads to the base
        ("class x:\n    def f(self): pass", "x.f.__code__ = (lambda self: 1).__code__"),
        ("class x:\n    def f(self, a=[]): pass", "x.f.__defaults__[0].append(1)"),
        ("class x:\n    @staticmethod\n    def f(a=[]): pass", "x.f.__defaults__[0].append(1)"),
        ("class x:\n    @classmethod\n    def f(cls, a=[]): pass", "x.f.__defaults__[0].append(1)"),
        ("class x:\n    @property\n    def p(self): pass", "x.p.fget.seen = 1"),
        ("class x:\n    @functools.cached_property\n    def p(self): pass", "vars(x)['p'].func.seen = 1"),
        ("class x:\n    a: int", "x.__annotations__['b'] = str"),
        ("class x(enum.Enum):\n    A = 1", "x.more = 2"),
        ("class x(enum.Enum):\n    A = 1", "x.A.more = 2"),
        ("class x(enum.Enum):\n    A = [1]", "x.A.value.append(2)"),
        ("class x(abc.ABC): pass\nclass V: pass", "x.register(V)"),
        # a function
        ("def x(): pass", "x.__code__ = (lambda: 1).__code__"),
        ("def x(): pass", "x.seen = 1"),
        ("def x(): pass\nx.seen = 1", "x.seen = 2"),
        ("def x(): pass\nx.seen = [1]", "x.seen.append(2)"),
        ("def x(a=[]): pass", "x.__defaults__[0].append(1)"),
        ("def x(a=1): pass", "x.__defaults__ = (2,)"),
        ("def x(*, a=1): pass", "x.__kwdefaults__['a'] = 2"),
        ("def x(*, a=[]): pass", "x.__kwdefaults__['a'].append(1)"),
        (MAKE_COUNTER, "add(1)"),
        (MAKE_COUNTER, "forget()"),
        (f"{MAKE_COUNTER}\nforget()", "x.__closure__[0].cell_contents = 1"),
        ("def make(a): return lambda: a\nx = make([1])", "x.__closure__[0].cell_contents.append(2)"),
        ("@functools.cache\ndef x(a=[]): pass", "x.__wrapped__.__defaults__[0].append(1)"),
        ("@functools.cache\ndef x(): pass", "x.seen = 1"),
        ("@functools.singledispatch\ndef x(a): pass", "x.register(int)(lambda a: 1)"),
        ("x = functools.partial(print, [1], end='')", "x.args[0].append(2)"),
        ("x = functools.partial(print, [1], end='')", "x.keywords['end'] = ' '"),
        ("names = {'k': [1]}\nexec('def f(): return k', names)\nx = names['f']", "names['k'].append(2)"),
        ("names = {'k': [1]}\nexec('def f(): return k', names)\nx = names['f']", "names['k'] = [1]"),
        ("names = {}\nexec('def f(): return k', names)\nx = names['f']", "names['k'] = 1"),
        # a container
        ("x = [1]", "x.append(2)"),
        ("x = [[1]]", "x[0] = [1]"),
        ("x = {'a': [1]}", "x['a'] = [1]"),
        ("x = {'a': 1, 'b': 2}", "x['a'] = x.pop('a')"),
        ("x = {1, 2}", "x.remove(1); x.add(3)"),
        ("x = collections.deque([1, 2])", "x.rotate()"),
        ("x = [{'a': [1, (2, {'b': [3]})]}]", "x[0]['a'][1][1]['b'].append(4)"),
        ("x = ([1],)", "x[0].append(2)"),
        ("x = bytearray(b'ab')", "x[0] = 0"),
        ("x = list(range(1000))", "x[500] = 0"),
        ("x = [[i] for i in range(1000)]", "x[500].append(0)"),
        ("x = [lambda: 1 for _ in range(1000)]", "x[500].seen = 1"),
        # an instance
        ("class C: pass\nx = C()\nx.a = 1", "x.a = 2"),
        ("class C: pass\nx = C()\nx.a = 1", "x.b = 1"),
        ("class C: pass\nx = C()\nx.a = [1]", "x.a.append(2)"),
        ("class C: pass\nx = C()\nx.a = [1]", "x.a = [1]"),
        ("class C: pass\nclass D: pass\nx = C()", "x.__class__ = D"),
        ("class C: __slots__ = ('a',)\nx = C()\nx.a = [1]", "x.a.append(2)"),
        ("class C(list): pass\nx = C([1])", "x.append(2)"),
        ("class C:\n    def __reduce__(self): return C, (), vars(self)\nx = C()\nx.a = 1", "x.a = 2"),
        ("class C:\n    def f(self): pass\nx = C().f", "x.__self__.a = 1"),
        ("x = types.SimpleNamespace(a=[1])", "x.a.append(2)"),
        ("x = collections.OrderedDict(a=1, b=2)", "x.move_to_end('a')"),
    ],
)  # fmt: skip
def test_a_change_is_noticed(made: Made, before: str, change: str) -> None:
    names = made(before)
    looked = watch(names)
    assert not looked.changed()
    exec(change, names)
    assert looked.changed()
    assert not watch(names).changed()


@pytest.mark.parametrize(
    ("before", "use"),
    [
        ("class x: pass", "pickle.dumps(x())"),  # keeps which slots it has: __slotnames__
        ("class x:\n    def f(self): return 1", "x().f(); hash(x()); isinstance(1, x)"),
        ("class x(abc.ABC): pass", "issubclass(int, x); isinstance(x(), x)"),
        ("class x: pass", "class Y(x): pass"),
        ("class x(enum.Enum):\n    A = 1", "x(1), x['A'], list(x), hash(x.A)"),
        ("class x(enum.Flag):\n    A = 1\n    B = 2", "x.A | x.B, ~x.A, x(3)"),
        ("class x(enum.IntFlag):\n    A = 1\n    B = 2", "x.A | x.B, ~x.A, x(8)"),
        ("class x:\n    @functools.cached_property\n    def p(self): return 1", "x().p"),  # makes an empty one
        ("def x(a=1): return a", "x(); x.__dict__; x.__annotations__; x.__kwdefaults__"),
        ("@functools.cache\ndef x(): return 1", "x(); x.cache_info()"),
        ("@functools.singledispatch\ndef x(a): pass", "x(1); x('a'); x.dispatch(int)"),
        ("class C: pass\nx = C()\nx.a = {'b', 'c'}", "pickle.dumps(x); hash(x); vars(x)"),
        ("x = [1, 'a', {'b': (2, None)}]", "pickle.dumps(x); x[2]['b'][0]; hash(x[1])"),
        ("x = collections.OrderedDict(a=1)", "x['a']; list(x)"),
        ("x = list(range(1000))", "x[5]; len(x)"),
    ],
)
def test_use_is_no_change(made: Made, before: str, use: str) -> None:
    names = made(before)
    looked = watch(names)
    assert not looked.changed()
    exec(use, names)
    assert not looked.changed()


def test_what_has_a_name_of_its_own_is_not_looked_into(made: Made) -> None:
    names = made("class C: pass\ndef helper(): pass\nx = [C, helper, C()]")
    looked = watch(names)
    exec("C.a = 1\nhelper.a = 1", names)
    assert not looked.changed()
    exec("x[2].a = 1", names)
    assert looked.changed()


def test_a_container_of_many_elements_is_compared_by_what_it_says(made: Made) -> None:
    names = made(f"x = [[i] for i in range({MOST_ELEMENTS + 1})]")
    looked = watch(names)
    names["x"][0] = [0]
    assert not looked.changed()
    names["x"][0] = [1]
    assert looked.changed()


def test_what_can_no_longer_be_pickled_has_changed(made: Made) -> None:
    for text in (f"x = list(range({MOST_ELEMENTS + 1}))", "class C(list): pass\nx = C([0])"):
        names = made(text)
        looked = watch(names)
        names["x"][0] = threading.Lock()
        assert looked.changed()


def test_mutable_parts_are_told_once_and_in_the_same_order_for_equal_objects(made: Made) -> None:
    text = "shared = [1]\nclass C: pass\nx = {'a': shared, 'b': (shared, C(), {2}), 'c': 'text'}"
    kinds = [[type(part).__name__ for part in watch(made(text)).parts] for _ in range(2)]
    assert kinds[0] == kinds[1] == ["dict", "list", "C", "dict", "set"]


def test_a_function_of_a_module_is_nothing_to_look_at() -> None:
    looked = pickle_value(functools.reduce, {"__name__": "__main__"}, name="x").watch
    assert looked.parts == []
    assert not looked.changed()
