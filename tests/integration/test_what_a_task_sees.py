"""A task computes what the same function would compute in the notebook at that moment: a real kernel, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seen import TASKS, assert_sees, cell, clean, opened
from test_notebook import Notebook

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    yield from opened(tmp_path_factory.mktemp("nb"))


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    yield kernel
    clean(kernel)


HISTORIES: dict[str, list[tuple[str, Any]]] = {
    "a number set on a class": [
        ("class Config:\n    lr = 0.01\ndef look(): return Config.lr", 0.01),
        ("Config.lr = 0.5", 0.5),
    ],
    "a number set on a class before the first call": [
        (
            "class Config:\n    lr = 0.01\n    def f(self): return self.lr\nConfig.lr = 0.5\n"
            "def look(): return Config().f()",
            0.5,
        ),
        ("Config.lr = 0.6", 0.6),
        ("setattr(Config, 'lr', 0.7)", 0.7),
        ("del Config.lr\nConfig.lr = None", None),
    ],
    "a method replaced": [
        ("class M:\n    def f(self): return 'old'\ndef look(): return M().f()", "old"),
        ("def newf(self): return 'new'\nM.f = newf", "new"),
        ("def newf(self): return 'newer'", "new"),
        ("M.f = lambda self: 'lambda'", "lambda"),
    ],
    "a method replaced before the first call": [
        (
            "class M:\n    def f(self): return 'old'\ndef newf(self): return 'new'\nM.f = newf\n"
            "def look(): return M().f()",
            "new",
        ),
    ],
    "a class split over cells": [
        ("class Model:\n    def __init__(self, n): self.n = n", ...),
        ("def predict(self, x): return self.n * x\nModel.predict = predict\ndef look(): return Model(3).predict(2)", 6),
        (
            "def scale(self): return 10\nModel.scale = scale\n"
            "def predict(self, x): return self.n * x * self.scale()\nModel.predict = predict",
            60,
        ),
        (
            "@property\ndef size(self): return self.n\nModel.size = size\n"
            "Model.predict = lambda self, x: self.size + x",
            5,
        ),
        ("Model.make = classmethod(lambda cls: cls(7))\ndef look(): return Model.make().n", 7),
        ("Model.make = staticmethod(lambda: Model(8))", 8),
        ("Model.__call__ = lambda self: self.n + 1\ndef look(): return Model(1)()", 2),
        ("Model.__eq__ = lambda self, other: True\ndef look(): return Model(1) == Model(2)", True),
        ("del Model.__eq__", False),
    ],
    "a list of a class": [
        ("class R:\n    known = []\nR.known.append(1)\ndef look(): return list(R.known)", [1]),
        ("R.known.append(2)", [1, 2]),
        ("R.known[0] = {'k': [3]}", [{"k": [3]}, 2]),
        ("R.known[0]['k'].append(4)", [{"k": [3, 4]}, 2]),
        ("R.known = []", []),
    ],
    "what a base class has": [
        (
            "class Base:\n    n = 1\nclass Child(Base):\n    def f(self): return self.n\n"
            "def look(): return Child().f()",
            1,
        ),
        ("Base.n = 2", 2),
        ("Child.n = 3", 3),
        ("del Child.n", 2),
        ("Base.f2 = lambda self: self.n * 5\nChild.f = lambda self: self.f2()", 10),
    ],
    "an attribute of an instance and of its class": [
        ("class A:\n    n = 1\na = A()\ndef look(): return a.n", 1),
        ("A.n = 2", 2),
        ("a.n = 3", 3),
        ("del a.n", 2),
        ("a.__class__ = type('B', (), {'n': 9})", 9),
    ],
    "attributes of a function": [
        ("def f(): return f.count\nf.count = 1\ndef look(): return f()", 1),
        ("f.count = 2", 2),
        ("f.config = {'a': 1}\nf.__code__ = (lambda: f.config['a']).__code__", 1),
        ("f.config['a'] = 5", 5),
        ("f.__defaults__ = None", 5),
    ],
    "an enum, a dataclass and a NamedTuple with something set on them": [
        (
            "class Color(enum.Enum):\n    RED = 1\n"
            "@dataclasses.dataclass\nclass D:\n    x: int = 1\n"
            "class N(typing.NamedTuple):\n    y: int = 2\n"
            "def look(): return [getattr(each, 'extra', 0) for each in (Color, D, N, Color.RED, D(), N())]",
            [0] * 6,
        ),
        ("Color.extra = D.extra = N.extra = 5", [5] * 6),
        ("Color.RED.extra = 6", [5, 5, 5, 6, 5, 5]),
        ("del Color.RED.extra", [5] * 6),
    ],
    "a member of an enum that holds a list": [
        ("class Kind(enum.Enum):\n    A = [1]\ndef look(): return Kind.A.value, Kind.A.name", ([1], "A")),
        ("Kind.A.value.append(2)", ([1, 2], "A")),
    ],
    "a flag whose opposite was asked for": [
        ("class Perm(enum.Flag):\n    R = 1\n    W = 2\ndef look(): return (~Perm.R).name, Perm.R.value", ("W", 1)),
        ("~Perm.R", ("W", 1)),
    ],
    "a nested class": [
        (
            "class Out:\n    class In:\n        n = 1\ndef look(): return Out.In.n, Out.In().n, Out.In.__qualname__",
            (1, 1, "Out.In"),
        ),
        ("Out.In.n = 2", (2, 2, "Out.In")),
        ("Out.In.m = lambda self: 3\ndef look(): return Out.In().m()", 3),
    ],
    "a metaclass": [
        (
            "class Meta(type):\n    def __len__(cls): return cls.n\n"
            "class A(metaclass=Meta):\n    n = 4\ndef look(): return len(A)",
            4,
        ),
        ("A.n = 5", 5),
        ("Meta.__len__ = lambda cls: 6", 6),
    ],
    "an abstract class": [
        (
            "class Shape(abc.ABC):\n    @abc.abstractmethod\n    def area(self): ...\n"
            "class Square(Shape):\n    def area(self): return 4\n"
            "def look(): return Square().area(), isinstance(3, Shape)",
            (4, False),
        ),
        ("Shape.register(int)", (4, True)),
        ("Square.area = lambda self: 5", (5, True)),
    ],
    "a descriptor and a cached property": [
        (
            "class Typed:\n    def __init__(self, value): self.value = value\n"
            "    def __get__(self, obj, cls): return self.value\n"
            ""
            "class A:\n    t = Typed(1)\n    @functools.cached_property\n    def c(self): return 2\n"
            "def look(): return A.t, A().c",
            (1, 2),
        ),
        ("vars(A)['t'].value = 10", (10, 2)),
        ("A.c = functools.cached_property(lambda self: 20)\nA.c.__set_name__(A, 'c')", (10, 20)),
    ],
    "pydantic": [
        (
            "class Item(pydantic.BaseModel):\n    n: int = 1\n"
            "def look(): return Item().n, Item(n='3').n, getattr(Item, 'extra', 0)",
            (1, 3, 0),
        ),
        ("Item.extra = 5", (1, 3, 5)),
        ("class Item(pydantic.BaseModel):\n    n: int = 2\n    def double(self): return self.n * 2", (2, 3, 0)),
        ("Item.triple = lambda self: self.n * 3\ndef look(): return Item().double(), Item().triple()", (4, 6)),
        ("Item.double = lambda self: 99", (99, 6)),
    ],
    "a default is what it was": [
        ("N = 5\ndef scaled(x, n=N): return x * n\nN = 100\ndef look(): return scaled(1)", 5),
        ("N = 200", 5),
        ("scaled.__defaults__ = (7,)", 7),
        ("def scaled(x, *, n=N): return x * n\nN = 1", 200),
        ("scaled.__kwdefaults__['n'] = 8", 8),
    ],
    "a default that was drawn": [
        (
            "random.seed(1)\ndef sample(seed=random.random(), made=object()): return round(seed, 6)\n"
            "def look(): return sample()",
            0.134364,
        ),
        ("x = 1", 0.134364),
    ],
    "a mutable default": [
        ("def f(into=[]): return len(into)\ndef look(): return f()", 0),
        ("f.__defaults__[0].append(1)", 1),
    ],
    "helpers made in a loop": [
        (
            "fs = []\nfor i in range(3):\n    def g(x, i=i): return x * i\n    fs.append(g)\n"
            "def look(): return [f(10) for f in fs] + [g(10)]",
            [0, 10, 20, 20],
        ),
        ("i = 50", [0, 10, 20, 20]),
        ("del g\ndef look(): return [f(10) for f in fs]", [0, 10, 20]),
    ],
    "a decorator's argument": [
        (
            "N = 2\n"
            "def times(n):\n    def decorate(f):\n        @functools.wraps(f)\n"
            "        def inner(*args): return f(*args) * n\n        return inner\n    return decorate\n"
            ""
            "@times(N)\ndef f(x): return x\nN = 100\ndef look(): return f(3)",
            6,
        ),
        ("def times(n): return lambda f: f", 6),
        ("del times, N", 6),
    ],
    "a class body": [
        (
            "N = 3\n"
            "class A:\n    n = N\n    squares = [k * k for k in range(N)]\n"
            "    if N > 2:\n        def big(self): return True\n"
            "N = 0\ndef look(): return A.n, A.squares, A().big()",
            (3, [0, 1, 4], True),
        ),
        ("del N", (3, [0, 1, 4], True)),
    ],
    "a dataclass whose fields had today's default": [
        (
            "N = 3\n@dataclasses.dataclass\n"
            "class A:\n    n: int = N\n    m: list = dataclasses.field(default_factory=lambda: [N])\n"
            "N = 4\ndef look(): return A().n, A().m",
            (3, [4]),
        ),
    ],
    "a base class that was redefined": [
        (
            "class Base:\n    def f(self): return 'old'\nclass Child(Base): pass\n"
            "def look(): return Child().f(), issubclass(Child, Base)",
            ("old", True),
        ),
        ("class Base:\n    def f(self): return 'new'", ("old", False)),
        ("class Child(Base): pass", ("new", True)),
    ],
    "a decorator that registers": [
        (
            "handlers = {}\ndef handler(f):\n    handlers[f.__name__] = f\n    return f\n@handler\n"
            "def a(): return 1\ndef look(): return {k: f() for k, f in handlers.items()}",
            {"a": 1},
        ),
        ("@handler\ndef b(): return 2", {"a": 1, "b": 2}),
        ("def a(): return 100", {"a": 1, "b": 2}),
        ("handlers.clear()", {}),
    ],
    "a decorator that counts when it decorates": [
        (
            "count = itertools.count()\ndef numbered(f):\n    f.number = next(count)\n    return f\n"
            "@numbered\ndef a(): return a.number\n@numbered\ndef b(): return b.number\n"
            "def look(): return a(), b()",
            (0, 1),
        ),
    ],
    "functions that depend on a condition of then": [
        (
            "FAST = True\nif FAST:\n    def f(): return 'fast'\nelse:\n    def f(): return 'slow'\n"
            "FAST = False\ndef look(): return f()",
            "fast",
        ),
    ],
    "a lambda, a partial and a closure": [
        (
            "n = 1\nf = lambda: n\ng = functools.partial(pow, n + 1)\n"
            "def make(k):\n    def inner(): return k, n\n    return inner\nh = make(n)\nn = 5\n"
            "def look(): return f(), g(3), h()",
            (5, 8, (1, 5)),
        ),
        ("n = 6", (6, 8, (1, 6))),
        ("h.__closure__[0].cell_contents = 7", (6, 8, (7, 6))),
    ],
    "an old function under another name": [
        ("def f(): return 'one'\nold = f\ndef f(): return 'two'\ndef look(): return old(), f()", ("one", "two")),
        ("f, old = old, f", ("two", "one")),
    ],
    "a patched function that calls the old one": [
        ("def f(x): return x\n_f = f\ndef f(x): return _f(x) + 1\ndef look(): return f(1)", 2),
    ],
    "a builtin that was shadowed": [
        ("def list(x): return 'mine'\ndef look(): return list('ab')", "mine"),
        ("del list", ["a", "b"]),
        ("sum = max = lambda *_: 'mine'\ndef look(): return sum([1, 2]), max(1, 2)", ("mine", "mine")),
        ("del sum", (3, "mine")),
        ("del max", (3, 2)),
        ("import os as id\ndef look(): return getattr(id, '__name__')", "os"),
        ("del id", "id"),
        ("class print: pass\ndef look(): return isinstance(print, type)", True),
        ("del print", False),
        ("len = 5\ndef look(): return str(len)", "5"),
        ("del len", "<built-in function len>"),
    ],
    "a name that is gone": [
        (
            "def helper(): return 1\nvariable = 2\nimport json as module\nclass Cls: n = 3\n"
            "def get(f):\n    try: return f()\n    except NameError as e: return str(e)\n"
            "def look(): return [get(lambda: helper()), get(lambda: variable), get(lambda: module.dumps(4)), "
            "get(lambda: Cls.n)]",
            [1, 2, "4", 3],
        ),
        ("del helper", ["name 'helper' is not defined", 2, "4", 3]),
        ("del variable", ["name 'helper' is not defined", "name 'variable' is not defined", "4", 3]),
        (
            "del module",
            ["name 'helper' is not defined", "name 'variable' is not defined", "name 'module' is not defined", 3],
        ),
        ("del Cls", [f"name '{n}' is not defined" for n in ("helper", "variable", "module", "Cls")]),
        (
            "helper = lambda: 5\nmodule = json = math\nvariable = 6\n_ = 0\n"
            "def look(): return helper(), variable, module.pi > 3",
            (5, 6, True),
        ),
    ],
    "a name that an inner function uses is gone": [
        ("x = 1\ndef f():\n    def g(): return 'x' in globals() and x\n    return g()\ndef look(): return f()", 1),
        ("del x", False),
    ],
    # --- names that mean something else
    "names that IPython has, too": [
        ("class In: n = 1\nclass Out:\n    class In: n = 2\ndef look(): return In.n, Out.In.n", (1, 2)),
        ("Out.In.n = 3\nIn = [4]\ndef look(): return In[0], Out.In.n", (4, 3)),
        ("_ = lambda text: text.upper()\ndef look(): return _('a')", "A"),
        ("_ = str.title", "A"),
        ("exit = 5\ndef look(): return exit", 5),
    ],
    "names that only a command mentions": [
        ("word = 'a'\ndef look():\n    out = !echo \"$word {len(word)}\"\n    return out[0]", "a 1"),
        ("word = 'bc'", "bc 2"),
        ("len = lambda text: 7", "bc 7"),
        ("del len", "bc 2"),
        ("del word", " {len(word)}"),
    ],
    "a name that means something else": [
        ("x = 1\ndef look(): return repr(x)", "1"),
        ("x = True", "True"),
        ("x = 1.0", "1.0"),
        ("x = None", "None"),
        ("x = np.int64(1)", "np.int64(1)"),
        ("x = np.zeros(2)", "array([0., 0.])"),
        ("x[0] = 5", "array([5., 0.])"),
        ("x = math", ...),
        ("x = {1: {2: 3}}", "{1: {2: 3}}"),
        ("x[1][2] = {4}", "{1: {2: {4}}}"),
        ("x = collections.OrderedDict(a=1)\ndef look(): return list(x.items())", [("a", 1)]),
        ("x['b'] = 2", [("a", 1), ("b", 2)]),
        ("x.move_to_end('a')", [("b", 2), ("a", 1)]),
        ("x = collections.Counter('aab')\ndef look(): return repr(x)", "Counter({'a': 2, 'b': 1})"),
        ("x['c'] += 5", "Counter({'c': 5, 'a': 2, 'b': 1})"),
        ("x = collections.deque([1], maxlen=2)", "deque([1], maxlen=2)"),
        ("x.append(2); x.append(3)", "deque([2, 3], maxlen=2)"),
        ("x = bytearray(b'a')", "bytearray(b'a')"),
        ("x[0] = 98", "bytearray(b'b')"),
        ("x = -0.0", "-0.0"),
        ("x = 0.0", "0.0"),
        ("x = types.SimpleNamespace(a=1)", "namespace(a=1)"),
        ("x.a = x.b = [2]", "namespace(a=[2], b=[2])"),
        ("x.b.append(3)", "namespace(a=[2, 3], b=[2, 3])"),
    ],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_after_each_cell_a_task_sees_what_the_notebook_has(notebook: Notebook, history: list[tuple[str, Any]]) -> None:
    for text, expected in history:
        cell(notebook, text)
        if "def look" in text:
            cell(notebook, TASKS)
        if expected is not ...:
            assert_sees(notebook, expected)
