"""Objects of all families that cloudpickle knows, and of those that people meet beside them.

Each is the text of a cell: it makes `x`, and `check`, which raises unless all that matters holds of an `x` that has
travelled. `check` may be called any number of times, and may compare with the names of its own cell.
"""

# ruff: noqa: E501 - a cell is easier to read whole

from __future__ import annotations

import importlib.util
import re
from typing import Final, Literal

FUNCTIONS = {
    "lambda": """
x = lambda a, b=2: (a, b)
def check(x): assert x(1) == (1, 2) and x.__name__ == "<lambda>" and x.__module__ == "__main__"
""",
    "nested lambdas": """
one = lambda n: n + 1
x = lambda n: (lambda m: one(m) * 2)(n)
def check(x): assert x(2) == 6
""",
    "function": """
def x(a, /, b: int = 2, *rest: "str", c, d=[4], **more) -> dict:
    "Its doc."
    return {"a": a, "b": b, "rest": rest, "c": c, "d": d, **more}
x.note = {"a": [1]}
def check(x):
    import inspect
    assert x(1, c=3) == {"a": 1, "b": 2, "rest": (), "c": 3, "d": [4]}
    assert str(inspect.signature(x)) == "(a, /, b: int = 2, *rest: 'str', c, d=[4], **more) -> dict"
    assert (x.__doc__, x.note, x.__name__) == ("Its doc.", {"a": [1]}, "x")
    assert x.__closure__ is None and x.__annotations__["return"] is dict
""",
    "its own qualified name": """
def outer():
    def inner(): return 1
    return inner
x = outer()
def check(x): assert x.__qualname__.endswith("outer.<locals>.inner") and x.__module__ == "__main__" and x() == 1
""",
    "default that it changes": """
def x(seen=[0]):
    seen.append(len(seen))
    return seen
x()
def check(x):
    found = x.__defaults__[0]
    assert found[:2] == [0, 1] and x() is found
""",
    "two functions that share a list": """
state = [1]
def put(value): state.append(value)
def get(): return state
x = put, get
def check(x):
    before = len(x[1]())
    x[0](before)
    assert x[1]()[0] == 1 and x[1]()[-1] == before and len(x[1]()) == before + 1
""",
    "two functions that share a number": """
class Holder: pass
holder = Holder()
holder.count = 3
def add(): holder.count += 1
def get(): return holder.count
x = [add, get]
def check(x):
    before = x[1]()
    x[0]()
    assert before >= 3 and x[1]() == before + 1
""",
    "recursive function": """
def x(n): return 1 if n < 2 else n * x(n - 1)
def check(x): assert x(5) == 120
""",
    "mutually recursive functions": """
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
x = {"even": even, "odd": odd}
def check(x): assert x["even"](10) and x["odd"](7) and not x["odd"](4)
""",
    "functions that hold each other": """
def a(): return a.other
def b(): return b.other
a.other, b.other = b, a
x = a
def check(x): assert x().other is x and x()() is x
""",
    "generator function": """
def x(n):
    sent = yield from range(n)
    yield sent
def check(x): assert list(x(3)) == [0, 1, 2, None]
""",
    "async functions": """
async def one(n): return n
async def many(n):
    for i in range(n): yield await one(i)
x = one, many
def check(x):
    import inspect
    def run(coroutine):
        try: coroutine.send(None)
        except StopIteration as end: return end.value
    async def whole(): return [each async for each in x[1](3)]
    assert inspect.iscoroutinefunction(x[0]) and inspect.isasyncgenfunction(x[1])
    assert run(x[0](5)) == 5 and run(whole()) == [0, 1, 2]
""",
    "function made by exec": """
made = {"k": [3], "__name__": "made_by_exec"}
exec("def f(n): return n * k[0]\\ndef g(n): k[0] += n", made)
x = made["f"], made["g"]
def check(x):
    before = x[0](1)
    x[1](2)
    assert before >= 3 and x[0](1) == before + 2
""",
    "function with wraps": """
import functools
def twice(function):
    @functools.wraps(function)
    def inner(*args): return function(*args), function(*args)
    return inner
@twice
def x(a: int = 1) -> "str":
    "Its doc."
    return a
def check(x):
    assert x(2) == (2, 2) and x.__wrapped__(3) == 3
    assert (x.__name__, x.__doc__, x.__annotations__) == ("x", "Its doc.", {"a": int, "return": "str"})
""",
    "function that imports": """
import xml.dom
def x():
    import json.decoder
    return xml.dom.__name__, json.decoder.__name__
def check(x): assert x() == ("xml.dom", "json.decoder")
""",
    "function with a very long body": """
exec("def x():\\n" + "".join(f"    v{i} = {i}\\n" for i in range(300)) + "    return v299", names := {})
x = names["x"]
def check(x): assert x() == 299
""",
    "function that asks for what is not there": """
def x(): return nothing_of_that_name
def check(x):
    try: x()
    except NameError: return
    raise AssertionError("it is there")
""",
    "builtin functions and methods": """
x = [len, print, [].append, "ab".upper, dict.fromkeys, str.join, {}.get, object.__init__, int.__add__, (1).__add__]
def check(x):
    assert x[0] is len and x[1] is print and x[3]() == "AB" and x[4]("a") == {"a": None}
    assert x[5] is str.join and x[5](",", "ab") == "a,b" and x[7] is object.__init__ and x[9](2) == 3
""",
    "class methods of builtins": """
x = [int.from_bytes, bytes.fromhex, float.fromhex, dict.fromkeys]
def check(x): assert x[0](b"a", "big") == 97 and x[1]("61") == b"a" and x[2]("0x1") == 1 and x[3]("a") == {"a": None}
""",
    "getters of operator": """
import operator
x = [operator.itemgetter(1), operator.itemgetter(0, 2), operator.attrgetter("real", "imag"), operator.methodcaller("index", 3)]
def check(x): assert [x[0]([1, 2, 3]), x[1]([1, 2, 3]), x[2](5), x[3]([1, 3])] == [2, (1, 3), (5, 0), 1]
""",
    "descriptors of types": """
import types
x = [types.FunctionType.__dict__["__code__"], str.__dict__["upper"], type.__dict__["__name__"]]
def check(x): assert x[0] is types.FunctionType.__dict__["__code__"] and x[1]("a") == "A"
""",
    "code": """
def f(a): return [a * n for n in (1, 2)]
x = f.__code__
def check(x):
    import types
    assert types.FunctionType(x, {})(3) == [3, 6] and x.co_name == "f"
""",
}

CLOSURES = {
    "closure": """
def make(n, text="t"):
    items = {1, 2}
    def inner(m): return n * m, text, len(items)
    return inner
x = make(3)
def check(x): assert x(2) == (6, "t", 2)
""",
    "closures over one loop variable": """
def make():
    found = []
    for i in range(3): found.append(lambda: i)
    return found
x = make()
def check(x):
    assert [each() for each in x] == [2, 2, 2]
    assert x[0].__closure__[0] is x[1].__closure__[0] is x[2].__closure__[0]
""",
    "closures over each loop value": """
x = [lambda i=i: i for i in range(3)] + [(lambda n: lambda: n)(i) for i in range(3)]
def check(x): assert [each() for each in x] == [0, 1, 2, 0, 1, 2]
""",
    "counter with nonlocal": """
def make():
    count = 0
    def add():
        nonlocal count
        count += 1
        return count
    def get(): return count
    return add, get
x = make()
x[0]()
def check(x):
    before = x[1]()
    assert before >= 1 and x[0]() == before + 1 and x[1]() == before + 1
""",
    "recursive closure": """
def make(base):
    def inner(n): return base if n <= 1 else n * inner(n - 1)
    return inner
x = make(2)
def check(x): assert x(5) == 240 and x.__closure__[1].cell_contents is x
""",
    "mutually recursive closures": """
def make():
    def even(n): return n == 0 or odd(n - 1)
    def odd(n): return n != 0 and even(n - 1)
    return even, odd
x = make()
def check(x):
    assert x[0](10) and x[1](7)
    assert [cell.cell_contents for cell in x[0].__closure__] == [x[1]]
    assert [cell.cell_contents for cell in x[1].__closure__] == [x[0]]
""",
    "closure over an empty cell": """
def make():
    if False: missing = None
    def inner(): return missing
    return inner
x = make()
def check(x):
    try: x()
    except NameError: return
    raise AssertionError("it is there")
""",
    "closure over a list that another holds": """
def make():
    items = []
    return items, lambda value: items.append(value)
x = make()
def check(x):
    before = len(x[0])
    x[1](1)
    assert len(x[0]) == before + 1
""",
    "cell": """
import types
x = types.CellType([1]), types.CellType()
def check(x):
    assert x[0].cell_contents == [1]
    try: x[1].cell_contents
    except ValueError: return
    raise AssertionError("it is not empty")
""",
    "class in a closure": """
def make(base):
    class Local(base):
        def go(self): return Local, super().__repr__()
    return Local
class Base:
    def __repr__(self): return "base"
x = make(Base)
def check(x): assert x().go() == (x, "base") and x.__bases__ == (Base,)
""",
}

FUNCTOOLS = {
    "partial": """
import functools
def f(a, b, *, c): return a, b, c
class Part(functools.partial): pass
x = [functools.partial(f, 1, c=3), functools.partial(functools.partial(f, 1), 2), Part(min, 1)]
x[0].note = "n"
def check(x):
    assert x[0](2) == (1, 2, 3) and x[1](c=0) == (1, 2, 0) and x[2](4) == 1
    assert x[0].func is f and x[0].note == "n" and type(x[2]) is Part
""",
    "partialmethod": """
import functools
class Cell:
    def set(self, value): return self, value
    on = functools.partialmethod(set, True)
x = Cell()
def check(x): assert x.on() == (x, True) and type(x) is Cell
""",
    "singledispatch": """
import functools
@functools.singledispatch
def x(value): return "any"
@x.register
def _(value: int): return "int"
class Own: pass
x.register(Own, lambda value: "own")
def check(x): assert [x(1.5), x(1), x(True), x(Own())] == ["any", "int", "int", "own"] and Own in x.registry
""",
    "singledispatchmethod": """
import functools
class Shown:
    @functools.singledispatchmethod
    def show(self, value): return "any"
    @show.register
    def _(self, value: int): return "int"
    @functools.singledispatchmethod
    @classmethod
    def of(cls, value): return cls, "any"
    @of.register(int)
    @classmethod
    def _(cls, value): return cls, "int"
x = Shown()
def check(x): assert [x.show(1.5), x.show(1), x.of("")[1], x.of(2)] == ["any", "int", "any", (type(x), "int")]
""",
    "cached_property": """
import functools
class Slow:
    count = 0
    @functools.cached_property
    def value(self):
        "Its doc."
        self.count += 1
        return [self.count]
x = Slow()
x.value
def check(x):
    assert x.value == [1] and x.value is x.value and type(x)().value == [1] and type(x).value.__doc__ == "Its doc."
""",
    "lru_cache and cache": """
import functools
@functools.lru_cache(maxsize=7, typed=True)
def small(n):
    "Its doc."
    return [n]
@functools.cache
def product(n): return 1 if n < 2 else n * product(n - 1)
x = [small, product]
def check(x):
    assert x[0](1) is x[0](1) and x[0](1) is not x[0](1.0) and x[0].__doc__ == "Its doc."
    assert x[0].cache_parameters() == {"maxsize": 7, "typed": True} and x[1](5) == 120
""",
    "cached method": """
import functools
class Slow:
    @functools.lru_cache
    def value(self, n): return [n]
    @staticmethod
    @functools.cache
    def other(n): return [n]
x = Slow()
def check(x): assert x.value(1) is x.value(1) and x.other(2) is x.other(2) == [2]
""",
    "total_ordering": """
import functools
@functools.total_ordering
class Size:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return self.n == other.n
    def __lt__(self, other): return self.n < other.n
x = [Size(2), Size(1)]
def check(x): assert x[0] >= x[1] and sorted(x)[0] is x[1] and x[0] == Size(2) and Size.__hash__ is None
""",
}

CLASSES = {
    "class": """
class Config:
    "Its doc."
    rate: float = 0.1
    tags = ["a"]
    def __init__(self, n): self.n = n
    def own(self): return self.n
    def __eq__(self, other): return type(other) is Config and other.n == self.n
    __hash__ = None
x = Config
def check(x):
    assert x is Config and x(3) == Config(3) and x(2).own() == 2 and x.__doc__ == "Its doc." and x.tags == ["a"]
    assert x.__module__ == "__main__" and x.__annotations__ == {"rate": float} and x.__hash__ is None
    assert x.own.__qualname__.endswith("Config.own")
""",
    "class, and the order of its attributes": """
class Columns:
    b: int = 1
    a: int = 2
    def go(self): pass
    c = 3
x = Columns
def check(x): assert [name for name in vars(x) if name[:1] != "_"] == ["b", "a", "go", "c"] == [*filter(lambda n: n[:1] != "_", vars(Columns))]
""",
    "instance": """
class Config:
    def __init__(self, n): self.n, self.parts = n, [n]
x = Config(3)
x.more = Config(4)
def check(x): assert type(x) is Config and x.n == 3 and x.parts == [3] and type(x.more) is Config and x.more.n == 4
""",
    "class made by type()": """
x = type("Made", (dict,), {"go": lambda self: len(self), "__doc__": "d", "__module__": "__main__"})
def check(x): assert x(a=1).go() == 1 and issubclass(x, dict) and (x.__name__, x.__doc__) == ("Made", "d")
""",
    "nested classes": """
class Outer:
    class Inner:
        class Deep: value = 1
        def up(self): return Outer
    inner = Inner()
x = [Outer.Inner.Deep(), Outer.inner, Outer]
def check(x):
    assert type(x[0]) is x[2].Inner.Deep and type(x[1]) is x[2].Inner and x[1].up() is x[2]
""",
    "super() and __class__": """
class Base:
    def go(self): return ["base"]
    @classmethod
    def make(cls): return cls
class Left(Base):
    def go(self): return [__class__, *super().go()]
    @classmethod
    def make(cls): return super().make()
class Right(Base):
    def go(self): return ["right", *super(Right, self).go()]
class Both(Left, Right):
    def go(self): return ["both", *super().go()]
x = Both()
def check(x):
    assert x.go() == ["both", Left, "right", "base"] and x.make() is Both
    assert [cls.__name__ for cls in type(x).__mro__] == ["Both", "Left", "Right", "Base", "object"]
""",
    "class that holds itself": """
class Node:
    def go(self): return Node
Node.again, Node.one = Node, Node()
Node.all = {"Node": Node}
x = Node
def check(x): assert x.again is x and type(x.one) is x and x.all["Node"] is x and x().go() is x
""",
    "classes that need each other": """
class Parent:
    def child(self): return Child(self)
class Child:
    parent_class = Parent
    def __init__(self, parent): self.parent = parent
Parent.child_class = Child
x = Parent()
def check(x): assert type(x.child()) is Child is Parent.child_class and x.child().parent is x and Child.parent_class is type(x)
""",
    "__slots__": """
class Point:
    __slots__ = ("a", "__weakref__")
class More(Point):
    __slots__ = ["b", "_c"]
    def __init__(self, a, b): self.a, self.b = a, b
class Open(More): pass
x = [More(1, [2]), Open(3, 4)]
x[1].c = 5
def check(x):
    assert (x[0].a, x[0].b, x[1].a, x[1].c) == (1, [2], 3, 5) and not hasattr(x[0], "_c")
    assert type(x[0]) is More and not hasattr(x[0], "__dict__") and type(x[0]).__slots__ == ["b", "_c"]
    try: x[0].other = 1
    except AttributeError: return
    raise AssertionError("it has a dict")
""",
    "__slots__ with private names": """
class Private:
    __slots__ = ("__hidden",)
    def __init__(self): self.__hidden = 5
    def get(self): return self.__hidden
x = Private()
def check(x): assert x.get() == 5 and type(x) is Private
""",
    "slots with docs": """
class Point:
    __slots__ = {"a": "the first", "b": "the second"}
x = Point()
x.a = 1
def check(x): assert x.a == 1 and type(x).__slots__["b"] == "the second"
""",
    "property with setter and deleter": """
class Box:
    def __init__(self): self._v = [1]
    @property
    def value(self):
        "Its doc."
        return self._v
    @value.setter
    def value(self, new): self._v = new
    @value.deleter
    def value(self): self._v = None
    only = property(fset=lambda self, new: setattr(self, "_v", new), doc="other")
x = Box()
def check(x):
    assert x.value == [1] and Box.value.__doc__ == "Its doc." and Box.only.__doc__ == "other" and Box.only.fget is None
    other = Box()
    other.value = 5
    assert other.value == 5
    del other.value
    assert other.value is None
""",
    "property, class method and static method by themselves": """
def getter(self): return 5
x = [property(getter, doc="d"), classmethod(getter), staticmethod(getter)]
def check(x):
    made = type("Made", (), {"a": x[0], "b": x[1], "c": x[2]})
    assert (made().a, made.b(), made.c(None)) == (5, 5, 5) and x[0].__doc__ == "d" and x[0].fget is x[2].__func__
""",
    "class and static methods": """
class Box:
    count = 1
    @classmethod
    def make(cls, n=1): return cls, n
    @staticmethod
    def plain(n): return n
    @classmethod
    def other(cls): return cls.make(2)
class More(Box): pass
x = More()
def check(x): assert x.make() == (More, 1) and x.plain(3) == 3 and x.other() == (More, 2) and isinstance(vars(Box)["plain"], staticmethod)
""",
    "bound methods": """
class Box:
    def __init__(self, n): self.n = n
    def get(self, m=0): return self.n + m
    @classmethod
    def kind(cls): return cls
box = Box(3)
x = [box, box.get, Box.kind, Box.get, [1].append]
def check(x): assert x[1](1) == 4 and x[1].__self__ is x[0] and x[2]() is type(x[0]) and x[3](x[0]) == 3 and x[3] is Box.get
""",
    "descriptor with __set_name__": """
class Typed:
    def __init__(self, kind): self.kind = kind
    def __set_name__(self, owner, name): self.name, self.owner = name, owner.__name__
    def __get__(self, instance, owner=None): return self if instance is None else vars(instance)[self.name]
    def __set__(self, instance, value): vars(instance)[self.name] = self.kind(value)
class Row:
    a = Typed(int)
    b = Typed(str)
    def __init__(self, a, b): self.a, self.b = a, b
x = Row("1", 2)
def check(x):
    assert (x.a, x.b, Row.a.name, Row.b.owner) == (1, "2", "a", "Row") and type(Row.a) is Typed and Row.a.kind is int
    assert Row("3", 0).a == 3
""",
    "__init_subclass__": """
class Plugin:
    def __init_subclass__(cls, *, key="none", **more):
        super().__init_subclass__(**more)
        cls.key = key
class One(Plugin, key="one"): pass
class Two(One): pass
x = Two()
def check(x): assert (One.key, x.key) == ("one", "none") and type(x) is Two and type("New", (One,), {}, key="new").key == "new"
""",
    "__init_subclass__ that registers": """
class Plugin:
    found = {}
    def __init_subclass__(cls): Plugin.found[len(Plugin.found)] = cls
class One(Plugin): pass
class Two(One): pass
x = Two()
def check(x): assert Plugin.found == {0: One, 1: Two} and type(x) is Two
""",
    "__class_getitem__": """
class Shaped:
    def __class_getitem__(cls, item): return cls, item
    def __getitem__(self, item): return item
x = Shaped
def check(x): assert x[3] == (Shaped, 3) and x()[1:2] == slice(1, 2)
""",
    "metaclass": """
class Meta(type):
    def __new__(meta, name, bases, names, **more):
        cls = super().__new__(meta, name, bases, names)
        cls.more = more
        return cls
    def __init__(cls, name, bases, names, **more): super().__init__(name, bases, names)
    @classmethod
    def __prepare__(meta, name, bases, **more): return {"prepared": name}
    def __len__(cls): return 7
    def go(cls): return cls
class Base(metaclass=Meta): pass
class Own(Base, flag=True): pass
x = Own
def check(x):
    assert type(x) is Meta and len(x) == 7 and x.go() is Own and x.prepared == "Own" and x.more == {"flag": True}
    assert x.__mro__ == (Own, Base, object) and type("New", (x,), {}, new=1).more == {"new": 1}
""",
    "metaclass that registers": """
class Meta(type):
    made = []
    def __init__(cls, name, bases, names):
        super().__init__(name, bases, names)
        Meta.made.append(cls)
class Base(metaclass=Meta): pass
class Own(Base): pass
x = Own
def check(x): assert Meta.made == [Base, Own] and type(x) is Meta and x is Own
""",
    "metaclass with __call__: singleton": """
class Single(type):
    ones = {}
    def __call__(cls, *args):
        if cls not in Single.ones: Single.ones[cls] = super().__call__(*args)
        return Single.ones[cls]
class Settings(metaclass=Single):
    def __init__(self, n=1): self.n = n
x = Settings(5)
def check(x): assert Settings() is Settings() and Settings().n == 5 and x.n == 5 and type(x) is Settings
""",
    "metaclass with __getattr__ and __eq__": """
class Meta(type):
    def __getattr__(cls, name):
        if name[:2] == "__": raise AttributeError(name)
        return name
    def __eq__(cls, other): return isinstance(other, Meta)
    def __hash__(cls): return 1
    def __iter__(cls): return iter([cls])
class Own(metaclass=Meta): pass
x = Own
def check(x): assert x.anything == "anything" and list(x) == [Own] and type(x) is Meta and x() is not None
""",
    "singleton by __new__": """
class Single:
    _one = None
    def __new__(cls):
        if cls._one is None: cls._one = super().__new__(cls)
        return cls._one
x = Single()
x.value = 5
def check(x): assert x is Single() and x.value == 5
""",
    "singleton by __reduce__": """
class Missing:
    def __reduce__(self): return "MISSING"
    def __bool__(self): return False
MISSING = Missing()
def x(value=MISSING): return value is MISSING
def check(x): assert x() and not x(1)
""",
    "sentinel": """
NOTHING = object()
def pick(value=NOTHING): return value is NOTHING
x = [NOTHING, pick]
def check(x): assert x[1]() and x[1](x[0]) and not x[1](object())
""",
    "class with __getattr__": """
class Proxy:
    def __init__(self, data): self.__dict__["data"] = data
    def __getattr__(self, name):
        try: return self.__dict__["data"][name]
        except KeyError: raise AttributeError(name) from None
    def __setattr__(self, name, value): self.data[name] = value
x = Proxy({"a": 1})
def check(x): assert x.a == 1 and type(x) is Proxy and not hasattr(x, "b")
""",
    "callable object": """
class Model:
    def __init__(self, weights): self.weights = weights
    def __call__(self, n): return [weight * n for weight in self.weights]
    def __len__(self): return len(self.weights)
    def __enter__(self): return self
    def __exit__(self, *error): return False
x = Model([1, 2])
def check(x):
    assert x(3) == [3, 6] and len(x) == 2
    with x as same: assert same is x
""",
    "__reduce__ and __reduce_ex__": """
class Odd:
    def __init__(self, a): self.a = a
    def __reduce__(self): return rebuild, (self.a,), {"b": 2}
class Even(Odd):
    def __reduce_ex__(self, protocol): return Even, (self.a + 0,)
def rebuild(a): return Odd(a)
x = [Odd([1]), Even([2]) if False else Even(2)]
def check(x): assert type(x[0]) is Odd and x[0].a == [1] and type(x[1]) is Even and x[1].a == 2
""",
    "__getstate__, __setstate__, __getnewargs__": """
class Slow:
    def __new__(cls, n=0): return super().__new__(cls)
    def __getnewargs__(self): return (1,)
    def __init__(self, n): self.n, self.handle = n, iter([n])
    def __getstate__(self): return {"n": self.n}
    def __setstate__(self, state): self.n, self.handle = state["n"], iter([state["n"]])
x = Slow(4)
def check(x): assert x.n == 4 and type(x) is Slow and type(x.handle).__name__ == "list_iterator"
""",
    "copyreg": """
import copyreg
class Foreign:
    def __init__(self, n): self.n = n
    def __reduce_ex__(self, protocol): raise TypeError("it needs copyreg")
def rebuild(n): return Foreign(n)
copyreg.pickle(Foreign, lambda value: (rebuild, (value.n,)))
x = [Foreign(3)]
def check(x):
    assert x[0].n == 3 and type(x[0]) is Foreign
""",
    "subclasses of builtin types": """
class Items(list):
    def first(self): return self[0]
class Table(dict):
    def __missing__(self, key): return key
class Name(str): pass
class Count(int):
    def __new__(cls, n): return super().__new__(cls, n)
class Pair(tuple):
    def __new__(cls, a, b): return super().__new__(cls, (a, b))
    def __getnewargs__(self): return tuple(self)
class Bag(set): pass
class Frozen(frozenset): pass
class Raw(bytes): pass
x = [Items([1]), Table(a=1), Name("n"), Count(3), Pair(1, 2), Bag({1}), Frozen({2}), Raw(b"r")]
x[0].note = x[2].note = x[3].note = x[5].note = "n"
def check(x):
    assert [type(each) for each in x] == [Items, Table, Name, Count, Pair, Bag, Frozen, Raw]
    assert x == [[1], {"a": 1}, "n", 3, (1, 2), {1}, {2}, b"r"] and x[1]["z"] == "z" and x[0].first() == 1
    assert x[0].note == x[2].note == x[3].note == x[5].note == "n"
""",
    "class changed after it was made": """
class Grown: pass
def method(self): return type(self).factor
Grown.method, Grown.factor = method, 2
Grown.__doc__ = "later"
x = Grown()
Grown.factor = 3
def check(x): assert x.method() == 3 and Grown.__doc__ == "later"
""",
    "class with a decorator": """
def register(cls):
    cls.registered = True
    KNOWN[cls.__name__] = cls
    return cls
KNOWN = {}
@register
class Own: pass
x = Own()
def check(x): assert x.registered and KNOWN == {"Own": type(x)}
""",
    "mixins": """
class Json:
    def dump(self): return sorted(vars(self))
class Named:
    def __repr__(self): return f"<{type(self).__name__}>"
class Base: pass
class Own(Json, Named, Base):
    def __init__(self): self.a = self.b = 1
x = Own()
def check(x): assert x.dump() == ["a", "b"] and repr(x) == "<Own>" and isinstance(x, Json) and isinstance(x, Base)
""",
    "private names, del and iteration": """
class Own:
    __secret = 5
    def __init__(self): self.__own = 6
    def both(self): return self.__secret, self.__own
    def __iter__(self): yield from self.both()
    def __contains__(self, n): return n == 6
    def __matmul__(self, other): return "matmul"
x = Own()
def check(x): assert list(x) == [5, 6] and 6 in x and x @ 1 == "matmul" and x.both() == (5, 6)
""",
}

ABSTRACT = {
    "abstract class": """
import abc
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): pass
    @property
    @abc.abstractmethod
    def name(self): pass
    @classmethod
    @abc.abstractmethod
    def make(cls): pass
class Square(Shape):
    name = "square"
    def area(self): return 4
    @classmethod
    def make(cls): return cls()
x = [Shape, Square()]
def check(x):
    assert x[0].__abstractmethods__ == {"area", "name", "make"} and not Square.__abstractmethods__
    assert isinstance(x[1], x[0]) and type(x[1].make()) is Square
    try: x[0]()
    except TypeError: return
    raise AssertionError("it is not abstract")
""",
    "virtual subclasses": """
import abc
class Shape(abc.ABC): pass
@Shape.register
class Free: pass
Shape.register(range)
class Other: pass
isinstance(Other(), Shape)
x = [Shape, Free()]
def check(x):
    assert isinstance(x[1], x[0]) and issubclass(range, x[0]) and not isinstance(Other(), x[0]) and not issubclass(int, x[0])
    assert Free.__mro__ == (Free, object)
""",
    "subclass hook": """
import abc
class Sized(abc.ABC):
    @classmethod
    def __subclasshook__(cls, other): return True if hasattr(other, "size") else NotImplemented
class Has: size = 1
x = Sized
def check(x): assert isinstance(Has(), x) and not isinstance(1, x)
""",
    "collections.abc": """
import collections.abc
class Table(collections.abc.MutableMapping):
    def __init__(self): self.data = {"a": 1}
    def __getitem__(self, key): return self.data[key]
    def __setitem__(self, key, value): self.data[key] = value
    def __delitem__(self, key): del self.data[key]
    def __iter__(self): return iter(self.data)
    def __len__(self): return len(self.data)
x = Table()
def check(x): assert dict(x) == {"a": 1} and isinstance(x, collections.abc.Mapping) and x.get("b", 2) == 2 and x == {"a": 1}
""",
}

ENUMS = {
    "Enum": """
import enum
class Color(enum.Enum):
    "Its doc."
    RED = 1
    GREEN = "g"
    def shout(self): return self.name.upper() + "!"
    @classmethod
    def first(cls): return cls.RED
    @property
    def both(self): return self.name, self.value
x = [Color, Color.RED, Color.GREEN, {Color.RED: 1}]
def check(x):
    assert x[0] is Color and x[1] is Color.RED is Color(1) and x[2] is Color["GREEN"] and x[3][Color.RED] == 1
    assert x[1].shout() == "RED!" and Color.first() is x[1] and x[2].both == ("GREEN", "g") and Color.__doc__ == "Its doc."
    assert [each.name for each in Color] == ["RED", "GREEN"] and list(Color.__members__) == ["RED", "GREEN"]
    assert isinstance(x[1], Color) and Color.__module__ == "__main__"
""",
    "enum with aliases": """
import enum
class Color(enum.Enum):
    RED = 1
    CRIMSON = 1
class Mode(enum.Flag):
    R = 1
    W = 2
    RW = R | W
x = [Color.CRIMSON, Mode.RW]
def check(x): assert x[0] is Color.RED is Color.CRIMSON and list(Color.__members__) == ["RED", "CRIMSON"] and x[1] is Mode.RW is Mode.R | Mode.W
""",
    "auto, IntEnum and StrEnum": """
import enum
class Level(enum.IntEnum):
    LOW = enum.auto()
    HIGH = enum.auto()
class Word(enum.StrEnum):
    RED = enum.auto()
    def loud(self): return self.upper()
x = [Level.HIGH, Word.RED]
def check(x):
    assert x[0] is Level.HIGH == 2 and x[0] > Level.LOW and x[0] + 1 == 3
    assert x[1] is Word.RED == "red" and x[1].loud() == "RED" and f"{x[1]}" == "red" and Word("red") is x[1]
""",
    "Flag and IntFlag": """
import enum
class Mode(enum.Flag):
    R = enum.auto()
    W = enum.auto()
class Bits(enum.IntFlag, boundary=enum.KEEP):
    A = 1
    B = 4
x = [Mode.R, Mode.W, Mode.R | Mode.W, Mode(0), Bits.A | Bits.B, Bits(8)]
def check(x):
    assert x[0] is Mode.R and x[1] is Mode.W and x[2] is Mode.R | Mode.W and x[0] in x[2] and x[3] is Mode(0) and not x[3]
    assert x[4] is Bits.A | Bits.B and x[4] == 5 and x[5] == 8 and ~x[0] is Mode.W and [m.name for m in x[4]] == ["A", "B"]
""",
    "enum with a mixin and __init__": """
import enum
class Shown:
    def show(self): return f"<{self.name}>"
class Planet(Shown, enum.Enum):
    EARTH = (1.0, "blue")
    MARS = (0.5, "red")
    def __init__(self, mass, color): self.mass, self.color = mass, color
x = Planet.EARTH
def check(x): assert x is Planet.EARTH is Planet((1.0, "blue")) and x.mass == 1.0 and x.show() == "<EARTH>"
""",
    "enum with __new__": """
import enum
class Code(bytes, enum.Enum):
    def __new__(cls, value, label):
        made = bytes.__new__(cls, [value])
        made._value_, made.label = value, label
        return made
    ONE = (1, "one")
    TWO = (2, "two")
x = Code.TWO
def check(x): assert x is Code.TWO is Code(2) and x == bytes([2]) and x.label == "two"
""",
    "enum in a class, and one with _missing_": """
import enum
class Job:
    class State(enum.Enum):
        NEW = "new"
        OLD = "old"
        @classmethod
        def _missing_(cls, value): return cls.NEW
    def __init__(self): self.state = Job.State.OLD
x = Job()
def check(x): assert x.state is Job.State.OLD and Job.State("other") is Job.State.NEW and x.state in Job.State
""",
    "enum made by a call": """
import enum
Made = enum.Enum("Made", ["ONE", "TWO"], module="__main__", qualname="Made")
x = [Made.TWO, Made]
def check(x): assert x[0] is x[1].TWO is Made(2) and [each.name for each in x[1]] == ["ONE", "TWO"]
""",
    "enum with functions, classes and nonmembers": """
import enum, functools
class Op(enum.Enum):
    ADD = enum.member(lambda a, b: a + b)
    SUB = functools.partial(lambda a, b: a - b)
    ignored = enum.nonmember([1])
    def __call__(self, *args): return self.value(*args)
x = [Op.ADD, Op.SUB]
def check(x): assert x[0] is Op.ADD and x[0](1, 2) == 3 and Op.ignored == [1] and Op.ADD in Op
""",
}

TYPING = {
    "TypeVar": """
import typing
T = typing.TypeVar("T")
B = typing.TypeVar("B", bound="Base")
C = typing.TypeVar("C", int, str)
D = typing.TypeVar("D", covariant=True)
x = [T, B, C, D]
def check(x):
    assert all(a is b for a, b in zip(x, [T, B, C, D], strict=True))
    assert x[1].__bound__ == typing.ForwardRef("Base") and x[2].__constraints__ == (int, str) and x[3].__covariant__
    assert [each.__name__ for each in x] == ["T", "B", "C", "D"]
""",
    "ParamSpec and TypeVarTuple": """
import typing
P = typing.ParamSpec("P")
Ts = typing.TypeVarTuple("Ts")
def f(*args: P.args, **kwargs: P.kwargs) -> tuple[typing.Unpack[Ts]]: pass
x = [P, Ts, f]
def check(x): assert x[0] is P and x[1] is Ts and P.__name__ == "P" and x[2].__annotations__["args"] == P.args
""",
    "NewType": """
import typing
UserId = typing.NewType("UserId", int)
Deep = typing.NewType("Deep", UserId)
x = [UserId, Deep]
def check(x):
    assert x[0] is UserId and x[1] is Deep and x[0](5) == 5 and x[0].__supertype__ is int and x[1].__supertype__ is x[0]
    assert x[0].__name__ == "UserId" and x[0].__module__ == "__main__"
""",
    "Generic": """
import typing
T, V = typing.TypeVar("T"), typing.TypeVar("V")
class Box(typing.Generic[T]):
    def __init__(self, value: T): self.value = value
    def get(self) -> T: return self.value
class IntBox(Box[int]): pass
class Both(Box[T], typing.Generic[T, V]): pass
x = [Box[int](3), IntBox(4), Box[str], Both[int, str], Box[T]]
def check(x):
    assert type(x[0]) is Box and x[0].get() == 3 and x[0].__orig_class__ == Box[int] and type(x[1]) is IntBox
    assert x[2] == Box[str] and x[2].__origin__ is Box and x[3].__args__ == (int, str) and x[4].__parameters__ == (T,)
    assert Both.__parameters__ == (T, V) and Both.__orig_bases__[0] == Box[T] and IntBox.__orig_bases__ == (Box[int],)
    assert Box.get.__annotations__ == {"return": T} and x[2]("a").value == "a"
""",
    "Protocol": """
import typing
@typing.runtime_checkable
class Sized(typing.Protocol):
    size: int
    def area(self) -> int: ...
class Plain(typing.Protocol):
    def go(self): return "gone"
class Explicit(Plain): pass
class Has:
    size = 1
    def area(self): return 1
class HasNot: size = 1
x = [Sized, Has(), Explicit()]
def check(x):
    assert isinstance(x[1], x[0]) and not isinstance(HasNot(), x[0]) and x[2].go() == "gone" and x[0] is Sized
    try: isinstance(x[1], Plain)
    except TypeError: pass
    else: raise AssertionError("it can be checked")
    try: Sized()
    except TypeError: return
    raise AssertionError("a protocol can be made")
""",
    "TypedDict": """
import typing
class Movie(typing.TypedDict, total=False):
    title: str
    year: typing.Required[int]
Made = typing.TypedDict("Made", {"in": int})
x = [Movie, Movie(title="t"), Made]
def check(x):
    assert x[0] is Movie and x[1] == {"title": "t"} and type(x[1]) is dict and x[2]({"in": 1}) == {"in": 1}
    assert x[0].__required_keys__ == {"year"} and x[0].__optional_keys__ == {"title"} and not x[0].__total__
    assert typing.is_typeddict(x[0]) and typing.get_type_hints(x[0])["title"] is str
""",
    "TypedDict that inherits": """
import typing
class Base(typing.TypedDict):
    a: int
class Movie(Base, total=False):
    title: str
x = Movie
def check(x): assert x is Movie and x.__required_keys__ == {"a"} and x.__optional_keys__ == {"title"} and x(a=1) == {"a": 1}
""",
    "NamedTuple and namedtuple": """
import collections, typing
class Point(typing.NamedTuple):
    "Its doc."
    a: int
    b: list = [5]
    def total(self): return self.a + self.b[0]
    @classmethod
    def zero(cls): return cls(0)
Old = collections.namedtuple("Old", "a b", defaults=[2], module="__main__")
Fun = typing.NamedTuple("Fun", [("a", int)])
class More(Old):
    __slots__ = ()
    def total(self): return self.a + self.b
x = [Point(1), Old(1), Fun(3), More(1, 1)]
def check(x):
    assert [type(each) for each in x] == [Point, Old, Fun, More] and x == [(1, [5]), (1, 2), (3,), (1, 1)]
    assert x[0].total() == 6 and x[0]._replace(a=3).a == 3 and x[1]._asdict() == {"a": 1, "b": 2} and x[3].total() == 2
    assert Point._fields == ("a", "b") and Point.zero().a == 0 and Point.__annotations__ == {"a": int, "b": list}
    assert Point.__doc__ == "Its doc." and Old._field_defaults == {"b": 2} and Point.a.__doc__ == "Alias for field number 0"
""",
    "aliases": """
import collections.abc, typing
class Own: pass
T = typing.TypeVar("T")
x = [
    typing.Literal["a", 1], typing.Annotated[int, "note", Own], typing.Union[int, Own], typing.Optional[Own], int | None,
    list[Own], dict[str, list[T]], typing.List[Own], typing.Callable[[int, Own], str], collections.abc.Callable[..., Own],
    typing.ClassVar[int], typing.Final, typing.Any, typing.ForwardRef("Own"), tuple[int, ...], type[Own], Own | str,
    typing.Callable[typing.Concatenate[int, ...], Own],
]
def check(x):
    assert x[0] == typing.Literal["a", 1] and x[1].__metadata__ == ("note", Own) and x[2].__args__ == (int, Own)
    assert x[3] == typing.Optional[Own] and x[4] == int | None and x[5] == list[Own] and x[6][int] == dict[str, list[int]]
    assert x[7] == typing.List[Own] and x[8].__args__ == (int, Own, str) and x[9].__args__[-1] is Own and x[12] is typing.Any
    assert x[10] == typing.ClassVar[int] and x[11] is typing.Final and x[13].__forward_arg__ == "Own"
    assert x[14] == tuple[int, ...] and x[15] == type[Own] and x[16] == Own | str and isinstance(Own(), x[16])
    assert x[17] == typing.Callable[typing.Concatenate[int, ...], Own]
""",
    "annotations": """
import typing
class Own:
    next: "Own | None" = None
    many: typing.ClassVar[list[int]] = []
def f(a: "Own", *b: list[Own]) -> Own: return a
x = [Own, f]
def check(x):
    assert x[0].__annotations__ == {"next": "Own | None", "many": typing.ClassVar[list[int]]}
    assert x[1].__annotations__ == {"a": "Own", "b": list[Own], "return": Own} and x[1](1) == 1
""",
    "overload, final, no_type_check, get_type_hints": """
import typing
class Own: pass
@typing.overload
def f(a: int) -> int: ...
@typing.overload
def f(a: str) -> str: ...
def f(a): return a
@typing.final
class Last: pass
def hinted(a: Own, b: list[Own] = ()) -> typing.Optional[Own]: return a
x = [f, Last, hinted]
def check(x):
    assert x[0]("a") == "a" and x[1].__final__ is True
    assert typing.get_type_hints(x[2]) == {"a": Own, "b": list[Own], "return": typing.Optional[Own]}
""",
}

DATA_CLASSES = {
    "dataclass": """
import dataclasses, typing
@dataclasses.dataclass
class Base:
    a: int
    scale: dataclasses.InitVar[int] = 2
    kinds: typing.ClassVar[list] = ["k"]
    def __post_init__(self, scale): self.a *= scale
@dataclasses.dataclass
class Run(Base):
    tags: list = dataclasses.field(default_factory=list)
    hidden: int = dataclasses.field(default=7, repr=False, compare=False, metadata={"unit": "s"})
x = Run(1)
def check(x):
    assert x == Run(1) and x.tags == [] and repr(x).endswith("Run(a=2, tags=[])") and type(x) is Run and Run(1, 5).a == 5
    assert dataclasses.is_dataclass(x) and [each.name for each in dataclasses.fields(x)] == ["a", "tags", "hidden"]
    assert dataclasses.fields(Run)[2].metadata == {"unit": "s"} and dataclasses.asdict(x) == {"a": 2, "tags": [], "hidden": 7}
    assert Run.kinds == ["k"] and Run(1).tags is not Run(1).tags and dataclasses.replace(x, scale=1, hidden=1).hidden == 1
    assert dataclasses.fields(Run)[0]._field_type is dataclasses._FIELD
""",
    "dataclass, and MISSING": """
import dataclasses
@dataclasses.dataclass
class Run: a: int
def f(value=dataclasses.MISSING): return value is dataclasses.MISSING
x = [Run, f]
def check(x): assert dataclasses.fields(x[0])[0].default is dataclasses.MISSING and x[1]()
""",
    "dataclass with slots": """
import dataclasses
@dataclasses.dataclass(slots=True, weakref_slot=True)
class Run:
    a: int
    b: list = dataclasses.field(default_factory=list)
x = Run(1)
def check(x): assert x == Run(1) and not hasattr(x, "__dict__") and Run.__slots__ == ("a", "b", "__weakref__") and type(x) is Run
""",
    "frozen, kw_only, order": """
import dataclasses
@dataclasses.dataclass(frozen=True, order=True, kw_only=True)
class Key:
    a: int
    b: tuple = ()
    _: dataclasses.KW_ONLY = None
    c: list = dataclasses.field(default_factory=lambda: [3], compare=False)
x = {Key(a=1): "one", Key(a=2): "two"}
def check(x):
    assert x[Key(a=1)] == "one" and sorted(x)[0].a == 1 and sorted(x)[0].c == [3]
    assert [type(each) for each in x] == [Key, Key] and Key(a=1) < Key(a=2) and Key.__match_args__ == ()
    try: sorted(x)[0].a = 5
    except dataclasses.FrozenInstanceError: return
    raise AssertionError("it can be changed")
""",
    "make_dataclass": """
import dataclasses
Made = dataclasses.make_dataclass("Made", [("a", int), ("b", list, dataclasses.field(default_factory=list))], module="__main__") \\
    if __import__("sys").version_info >= (3, 12) else dataclasses.make_dataclass("Made", [("a", int), ("b", list, dataclasses.field(default_factory=list))], namespace={"__module__": "__main__"})
x = Made(1)
def check(x): assert x == Made(1, []) and type(x) is Made and [each.name for each in dataclasses.fields(x)] == ["a", "b"]
""",
    "field by itself": """
import dataclasses
@dataclasses.dataclass
class Own: a: int = 1
x = dataclasses.fields(Own)
def check(x): assert x[0].name == "a" and x[0].default == 1 and x[0]._field_type is dataclasses._FIELD
""",
}

ATTRS = {
    "attrs": """
import attrs
def positive(instance, attribute, value):
    if value < 0: raise ValueError(attribute.name)
@attrs.define
class Run:
    a: int = attrs.field(validator=positive, converter=int)
    tags: list = attrs.Factory(list)
    total: int = attrs.field(init=False)
    @total.default
    def _total(self): return self.a + 1
@attrs.frozen(kw_only=True)
class Key:
    a: int = attrs.field(metadata={"unit": "s"}, eq=False)
    run: Run = attrs.field(factory=lambda: Run(1), repr=False)
@attrs.define(slots=False)
class Open(Run):
    more: int = 0
x = [Run("1"), Key(a=2), Open(3)]
def check(x):
    assert [type(each) for each in x] == [Run, Key, Open] and x[0] == Run(1) and x[0].total == 2 and x[2].total == 4
    assert attrs.fields(Key).a.metadata == {"unit": "s"} and attrs.asdict(x[0]) == {"a": 1, "tags": [], "total": 2}
    assert x[1] == Key(a=5) and x[1].run == Run(1) and attrs.evolve(x[0], a=4).a == 4
    try: Run(-1)
    except ValueError: pass
    else: raise AssertionError("it is not checked")
    try: x[1].a = 1
    except attrs.exceptions.FrozenInstanceError: return
    raise AssertionError("it can be changed")
""",
    "attrs with slots": """
import attrs
@attrs.define
class Run:
    a: int
    def go(self): return __class__
x = Run(1)
def check(x): assert not hasattr(x, "__dict__") and x.go() is Run and x == Run(1)
""",
}

PYDANTIC = {
    "model": """
import pydantic, typing
class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    n: int = pydantic.Field(default=1, ge=0, alias="N")
class Run(pydantic.BaseModel):
    "Its doc."
    rate: float = 0.1
    tags: list[str] = pydantic.Field(default_factory=list)
    inner: Inner = Inner()
    later: "typing.Optional[Run]" = None
    _private: list = pydantic.PrivateAttr(default_factory=lambda: [7])
    @pydantic.field_validator("rate")
    @classmethod
    def half(cls, value): return value / 2
    @pydantic.model_validator(mode="after")
    def total(self):
        if self.rate > 100: raise ValueError("too much")
        return self
    @pydantic.computed_field
    @property
    def double(self) -> float: return self.rate * 2
    @pydantic.field_serializer("tags")
    def joined(self, tags): return ",".join(tags)
x = Run(rate=4, tags=["a"], later=Run())
x._private.append(8)
def check(x):
    assert type(x) is Run and x.rate == 2 and x.double == 4 and type(x.inner) is Inner and type(x.later) is Run
    assert x._private == [7, 8] and Run.model_validate({"rate": 6}).rate == 3 and Run.__doc__ == "Its doc."
    assert x.model_dump()["tags"] == "a" and x.model_dump()["double"] == 4 and "tags" in Run.model_json_schema()["$defs"]["Run"]["properties"]
    assert x.model_fields_set == {"rate", "tags", "later"} and Inner.model_validate_json('{"N": 4}').n == 4
    for wrong in (lambda: Run(rate=1000), lambda: Run(rate="no"), lambda: Inner(N=-1), lambda: setattr(x.inner, "n", 2)):
        try: wrong()
        except pydantic.ValidationError: continue
        raise AssertionError("it is not checked")
""",
    "generic model and root model": """
import pydantic, typing
T = typing.TypeVar("T")
class Page(pydantic.BaseModel, typing.Generic[T]):
    items: list[T]
class Item(pydantic.BaseModel):
    n: int
class Numbers(pydantic.RootModel[list[int]]):
    def total(self): return sum(self.root)
class Items(Page[Item]):
    count: int = 0
x = [Page[int](items=["1"]), Page[Item](items=[{"n": 1}]), Numbers([1, 2]), Items(items=[])]
def check(x):
    assert x[0].items == [1] and isinstance(x[0], Page) and type(x[1].items[0]) is Item and x[2].total() == 3
    assert type(x[2]) is Numbers and type(x[3]) is Items and Page[int](items=["2"]).items == [2]
    try: Page[int](items=["a"])
    except pydantic.ValidationError: return
    raise AssertionError("it is not checked")
""",
    "generic model, and its class": """
import pydantic, typing
T = typing.TypeVar("T")
class Page(pydantic.BaseModel, typing.Generic[T]):
    items: list[T]
x = Page[int](items=["1"])
def check(x): assert type(x) is Page[int] and x.items == [1] and isinstance(x, Page)
""",
    "unions, aliases, dataclass and adapter": """
import pydantic, typing
class Cat(pydantic.BaseModel):
    kind: typing.Literal["cat"] = "cat"
class Dog(pydantic.BaseModel):
    kind: typing.Literal["dog"] = "dog"
Pet = typing.Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
Positive = typing.Annotated[int, pydantic.AfterValidator(lambda n: n if n > 0 else 1)]
class Home(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", arbitrary_types_allowed=True)
    pets: list[Pet]
    rooms: Positive = 1
@pydantic.dataclasses.dataclass
class Data:
    n: int
x = [Home(pets=[{"kind": "dog"}], rooms=-5, more=1), Data("3")]
def check(x):
    assert type(x[0].pets[0]) is Dog and x[0].rooms == 1 and x[0].more == 1 and type(x[0]) is Home
    assert x[1].n == 3 and type(x[1]) is Data and Home(pets=[{"kind": "cat"}], rooms=-1).rooms == 1
    assert pydantic.TypeAdapter(list[Data]).validate_python([{"n": "1"}])[0].n == 1
""",
}

WEAK = {
    "WeakSet": """
import weakref
class Own: pass
one, two = Own(), Own()
x = [weakref.WeakSet([one, two]), one, two]
def check(x):
    assert set(x[0]) == {x[1], x[2]} and type(x[0]) is weakref.WeakSet and type(x[1]) is Own
    local = Own()
    x[0].add(local)
    del local
    assert len(x[0]) == 2
""",
    "object that can be weakly referred to": """
import weakref
class Own: pass
class Slotted: __slots__ = ("a", "__weakref__")
def f(): pass
x = [Own(), Slotted(), f]
def check(x): assert [weakref.ref(each)() is each for each in x] == [True] * 3
""",
    "class that keeps its instances weakly": """
import weakref
class Own:
    all = weakref.WeakSet()
    def __init__(self): Own.all.add(self)
x = Own()
def check(x):
    made = Own()
    assert made in Own.all and type(x) is Own
""",
}

CONTAINERS = {
    "range, slice, Ellipsis and the like": """
x = [range(1, 9, 2), slice(1, None, 2), ..., NotImplemented, None, type(None), type(...), type(NotImplemented), True]
def check(x): assert x[:2] == [range(1, 9, 2), slice(1, None, 2)] and [a is b for a, b in zip(x[2:], [..., NotImplemented, None, type(None), type(...), type(NotImplemented), True])] == [True] * 7
""",
    "numbers": """
import decimal, fractions
x = [float("nan"), float("inf"), -0.0, 1 + 2j, 10**50, decimal.Decimal("1.10"), fractions.Fraction(1, 3)]
def check(x): assert x[0] != x[0] and str(x[2]) == "-0.0" and x[1:2] + x[3:] == [float("inf"), 1 + 2j, 10**50, decimal.Decimal("1.10"), fractions.Fraction(1, 3)]
""",
    "text and bytes": """
import array
x = ["a\\udc80é", b"\\0", bytearray(b"ab"), array.array("d", [1.5]), "x" * 70000, b"y" * 70000]
def check(x): assert x == ["a\\udc80é", b"\\0", bytearray(b"ab"), array.array("d", [1.5]), "x" * 70000, b"y" * 70000]
""",
    "memoryview, as bytes": """
x = [memoryview(b"Hello"), memoryview(b"Hello!" * 3)[2:15:2]]
def check(x): assert [bytes(each) for each in x] == [b"Hello", bytes((b"Hello!" * 3)[2:15:2])]
""",
    "views of a dict": """
import collections
plain, ordered = {"a": 1, "b": 2}, collections.OrderedDict(a=1, b=2)
x = [plain.keys(), plain.values(), plain.items(), ordered.keys(), ordered.values(), ordered.items()]
def check(x):
    assert [type(each) for each in x] == [type(each) for each in (plain.keys(), plain.values(), plain.items(), ordered.keys(), ordered.values(), ordered.items())]
    assert x[0] == {"a", "b"} and list(x[1]) == [1, 2] and x[2] == {("a", 1), ("b", 2)} and list(x[4]) == [1, 2]
""",
    "collections": """
import collections
class Own(collections.UserDict):
    def go(self): return len(self)
x = [
    collections.OrderedDict(b=1, a=2), collections.defaultdict(lambda: [0], a=1), collections.Counter("aab"),
    collections.ChainMap({"a": 1}, {"b": 2}), collections.deque([1, 2, 3], maxlen=2), Own(a=1), collections.UserList([1]),
]
def check(x):
    assert list(x[0]) == ["b", "a"] and x[1]["missing"] == [0] and x[2]["a"] == 2 and x[3]["b"] == 2 and len(x[3].maps) == 2
    assert x[4] == collections.deque([2, 3]) and x[4].maxlen == 2 and x[5].go() == 1 and type(x[5]) is Own and x[6][0] == 1
""",
    "MappingProxyType and SimpleNamespace": """
import types
class Own: pass
x = [types.MappingProxyType({"a": Own}), types.SimpleNamespace(a=1, b=Own())]
def check(x): assert type(x[0]) is types.MappingProxyType and x[0]["a"] is Own and x[1].a == 1 and type(x[1].b) is Own
""",
    "containers that hold themselves": """
class Own: pass
items, table, one = [1], {}, Own()
items.append(items)
table["self"], table["items"] = table, items
one.me, one.all = one, [one]
x = [items, table, one]
def check(x): assert x[0][1] is x[0] and x[1]["self"] is x[1] and x[1]["items"] is x[0] and x[2].me is x[2] is x[2].all[0]
""",
    "one object in two places": """
shared = []
x = {"a": shared, "b": [shared], "c": (shared,)}
def check(x): assert x["a"] is x["b"][0] is x["c"][0]
""",
    "deep nesting": """
x = []
for _ in range(150): x = [x]
def check(x):
    for depth in range(150): [x] = x
    assert x == []
""",
    "notebook's classes inside containers": """
class Key:
    def __init__(self, n): self.n = n
    def __hash__(self): return hash(self.n)
    def __eq__(self, other): return self.n == other.n
x = [{Key(1): Key}, {Key(2), Key(3)}, (Key(4), [Key(5)]), frozenset([Key(6)])]
def check(x): assert x[0][Key(1)] is Key and Key(2) in x[1] and type(x[2][1][0]) is Key and Key(6) in x[3]
""",
    "iterators": """
x = [iter([1, 2, 3]), iter((1, 2)), iter({"a": 1}), enumerate("ab", 5), zip([1], [2]), map(lambda n: n + 1, [1, 2]),
     filter(None, [0, 1]), reversed([1, 2]), iter(range(3)), iter("ab")]
next(x[0])
def check(x):
    import copy
    assert x[0].__reduce__()[1][0] == [1, 2, 3] and x[0].__reduce__()[2] == 1 and x[3].__reduce__()[1][1] == 5
    assert [type(each).__name__ for each in x[3:8]] == ["enumerate", "zip", "map", "filter", "list_reverseiterator"]
""",
    "itertools": """
import itertools
x = [itertools.count(5), itertools.chain([1], [2]), itertools.repeat(3, 2), itertools.product("ab", [1])]
next(x[0])
def check(x): assert repr(x[0]) == "count(6)" and repr(x[2]) == "repeat(3, 2)" and type(x[1]) is itertools.chain and type(x[3]) is itertools.product
""",
}

LIBRARY = {
    "dates and time zones": """
import datetime, zoneinfo
class Fixed(datetime.tzinfo):
    def utcoffset(self, when): return datetime.timedelta(hours=2)
    def dst(self, when): return None
    def tzname(self, when): return "fixed"
x = [datetime.datetime(2024, 1, 2, 3, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")), datetime.date(2024, 1, 2), datetime.time(3, fold=1),
     datetime.timedelta(1.5), datetime.timezone(datetime.timedelta(hours=1), "one"), datetime.datetime(2024, 1, 1, tzinfo=Fixed())]
def check(x):
    assert x[0].tzinfo is zoneinfo.ZoneInfo("Europe/Berlin") and x[0].utcoffset() == datetime.timedelta(hours=1)
    assert x[1] == datetime.date(2024, 1, 2) and x[2].fold == 1 and x[3].days == 1 and x[4].tzname(None) == "one"
    assert type(x[5].tzinfo) is Fixed and x[5].utcoffset() == datetime.timedelta(hours=2)
""",
    "Decimal contexts": """
import decimal
x = decimal.Context(prec=5, rounding=decimal.ROUND_DOWN, traps=[decimal.Inexact])
def check(x): assert x.prec == 5 and x.rounding == decimal.ROUND_DOWN and x.traps[decimal.Inexact] and not x.traps[decimal.Overflow]
""",
    "uuid, paths, addresses, patterns": """
import ipaddress, pathlib, re, string, uuid
x = [uuid.UUID(int=5), pathlib.PurePosixPath("a/b"), pathlib.Path("c"), ipaddress.ip_network("10.0.0.0/8"),
     re.compile("(a)(?P<n>b)", re.I), string.Template("$a")]
def check(x):
    assert x[0].int == 5 and x[1].name == "b" and x[2] == pathlib.Path("c") and x[3].num_addresses == 2**24
    assert x[4].match("AB")["n"] == "B" and x[4].flags & re.I and x[5].substitute(a=1) == "1"
""",
    "exceptions": """
class Broken(Exception):
    def __init__(self, code, *, hint): super().__init__(code, hint); self.code, self.hint = code, hint
    def __reduce__(self): return rebuild, (self.code, self.hint), {"more": 1}
def rebuild(code, hint): return Broken(code, hint=hint)
x = [ValueError("a", 1), Broken(3, hint="h"), KeyError("k"), OSError(2, "gone", "file"), ExceptionGroup("all", [ValueError(1), Broken(1, hint="")])]
x[0].add_note("a note")
def check(x):
    assert x[0].args == ("a", 1) and x[0].__notes__ == ["a note"] and type(x[1]) is Broken and (x[1].code, x[1].hint) == (3, "h")
    assert type(x[3]) is FileNotFoundError and x[3].filename == "file" and type(x[4].exceptions[1]) is Broken
""",
    "loggers": """
import logging
x = [logging.getLogger("families.own"), logging.getLogger(), logging.LoggerAdapter(logging.getLogger("families.own"), {"a": 1})]
def check(x):
    assert x[0] is logging.getLogger("families.own") and x[1] is logging.getLogger() and x[2].extra == {"a": 1} and x[2].logger is x[0]
""",
    "modules": """
import json, xml.dom.minidom, os.path
x = [json, xml.dom.minidom, os.path]
def check(x):
    import sys
    assert x[0] is json and x[1] is sys.modules["xml.dom.minidom"] and x[2] is os.path
""",
    "module made by the program": """
import types
x = types.ModuleType("made_here", "Its doc.")
exec("k = [1]\\ndef f(n): k.append(n); return k\\nclass Own:\\n    def go(self): return Own, k", x.__dict__)
def check(x):
    before = list(x.k)
    assert x.f(5) is x.k == [*before, 5] and x.__name__ == "made_here" and x.__doc__ == "Its doc." and before[0] == 1
    assert x.Own().go()[0] is x.Own and x.f.__globals__["k"] is x.k
""",
    "buffers of io, files that are open to read": """
import io, os, sys, tempfile
x = [io.StringIO("abc"), io.BytesIO(b"abc")]
x[0].read(1)
def check(x): assert x[0].getvalue() == "abc" and x[0].tell() == 1 and x[1].getvalue() == b"abc"
""",
    "file that is open to read, as text": """
import os, sys
x = open(os.__file__)
first = x.readline()
def check(x): assert x.tell() == len(first) and "def " in x.read() and x.seek(len(first))
""",
    "standard streams": """
import sys
x = [sys.stdout, sys.stderr]
def check(x): assert x[0] is sys.stdout and x[1] is sys.stderr
""",
    "random generators": """
import random
x = random.Random(5)
def check(x): assert random.Random.getstate(x) == random.Random(5).getstate()
""",
    "struct, Signature, argparse": """
import argparse, inspect, struct
def f(a: int, *, b=2): pass
x = [inspect.signature(f), argparse.Namespace(a=1), inspect.signature(f).parameters["b"]]
def check(x): assert str(x[0]) == "(a: int, *, b=2)" and x[1].a == 1 and x[2].default == 2
""",
}

NUMPY = {
    "arrays": """
import numpy as np
class Own:
    def __init__(self, n): self.n = n
x = [np.arange(6).reshape(2, 3)[:, ::2], np.array([Own(1), None], dtype=object), np.array(["a"]), np.float32(1.5),
     np.ma.array([1, 2], mask=[0, 1]), np.array("2024", "M8[D]"), np.arange(20000.0), np.asfortranarray(np.ones((2, 3)))]
def check(x):
    assert x[0].tolist() == [[0, 2], [3, 5]] and type(x[1][0]) is Own and x[1][0].n == 1 and x[3].dtype == np.float32
    assert x[4].mask.tolist() == [False, True] and x[5].dtype == np.dtype("M8[D]") and x[6][-1] == 19999 and x[7].flags.f_contiguous
""",
    "dtypes and structured arrays": """
import numpy as np
kind = np.dtype([("a", "i4"), ("b", "f8", (2,))], align=True)
x = [kind, np.zeros(2, kind), np.zeros(2, kind).view(np.recarray), np.dtype("U5"), np.zeros(1, kind)[0]]
def check(x):
    assert x[0] == kind and x[0].isalignedstruct and x[1].dtype == kind and x[1]["b"].shape == (2, 2) and x[2].a.tolist() == [0, 0]
    assert x[3].itemsize == 20 and x[4]["a"] == 0
""",
    "ufuncs, random generators, vectorize, subclasses": """
import numpy as np
class Own(np.ndarray):
    def __array_finalize__(self, other): self.unit = getattr(other, "unit", "s")
    def go(self): return self.sum() * 2
rng = np.random.default_rng(5)
x = [np.add, np.sin, rng, np.vectorize(lambda n: n + 1), np.ones(3).view(Own), np.poly1d([1, 2]), np.random.RandomState(1)]
def check(x):
    assert x[0] is np.add and x[1] is np.sin and type(x[2]) is np.random.Generator and x[3]([1, 2]).tolist() == [2, 3]
    assert type(x[4]) is Own and x[4].go() == 6 and x[5](2) == 4
    assert x[2].bit_generator.state == np.random.default_rng(5).bit_generator.state
""",
}

TORCH = {
    "Module with hooks": """
import torch
class Net(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(2)])
        self.tied = self.layers[0].weight
        self.register_buffer("scale", torch.ones(1))
        self.calls = []
        self.register_forward_hook(lambda module, args, out: module.calls.append("after"))
        self.register_forward_pre_hook(self.before)
    def before(self, module, args): self.calls.append("before")
    def forward(self, inputs):
        for layer in self.layers: inputs = layer(inputs)
        return inputs * self.scale
torch.manual_seed(0)
x = Net()
def check(x):
    x.calls.clear()
    out = x(torch.ones(1, 2))
    assert type(x) is Net and x.calls == ["before", "after"] and out.requires_grad and x.tied is x.layers[0].weight
    assert len(list(x.parameters())) == 4 and "scale" in dict(x.named_buffers()) and Net(3)(torch.ones(1, 3)).shape == (1, 3)
    out.sum().backward()
    assert x.layers[0].weight.grad is not None
    x.zero_grad()
""",
    "Dataset, Function, optimizer, dtypes": """
import torch
class Squares(torch.utils.data.Dataset):
    def __len__(self): return 3
    def __getitem__(self, index): return torch.tensor(index**2)
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value): return value * 2
    @staticmethod
    def backward(ctx, grad): return grad * 2
weight = torch.nn.Parameter(torch.ones(2))
x = [Squares(), Double, weight, torch.optim.Adam([weight], lr=0.5), torch.float32, torch.device("cpu"), torch.Size([1, 2])]
def check(x):
    assert [int(each) for each in torch.utils.data.DataLoader(x[0])] == [0, 1, 4] and type(x[0]) is Squares
    value = torch.ones(2, requires_grad=True)
    x[1].apply(value).sum().backward()
    assert value.grad.tolist() == [2, 2] and x[3].param_groups[0]["params"][0] is x[2] and x[3].param_groups[0]["lr"] == 0.5
    assert x[4] is torch.float32 and x[5] == torch.device("cpu") and x[6] == (1, 2)
""",
    "tensors": """
import torch
base = torch.arange(6.0).reshape(2, 3)
x = [base, base.t(), torch.nn.Parameter(torch.ones(2)), torch.ones(2, dtype=torch.bfloat16), torch.arange(3).to_sparse(), torch.ones(30000)]
def check(x):
    assert x[1].tolist() == [[0, 3], [1, 4], [2, 5]] and type(x[2]) is torch.nn.Parameter and x[2].requires_grad
    assert x[3].dtype == torch.bfloat16 and x[4].is_sparse and x[5].sum() == 30000
""",
}

REFUSED = {
    "generator": ("generator", "x = (n for n in range(3))"),
    "coroutine": ("coroutine", "async def f(): pass\nx = f()\nx.close()"),
    "lock": ("_thread.lock", "import threading\nx = threading.Lock()"),
    "lock in an instance": (
        "_thread.RLock",
        "import threading\nclass Own: pass\nx = Own()\nx.lock = [threading.RLock()]",
    ),
    "event": ("_thread.lock", "import threading\nx = [threading.Event()]"),
    "queue": ("_thread.lock", "import queue\nx = queue.Queue()"),
    "multiprocessing lock": ("Lock", "import multiprocessing\nx = multiprocessing.Lock()"),
    "socket": ("socket", "import socket\nx = socket.socket()\nx.close()"),
    "frame": ("frame", "import sys\nx = sys._getframe()"),
    "traceback": ("traceback", "try: 1 / 0\nexcept ZeroDivisionError as error: x = error.__traceback__"),
    "file open to write": ("files", "import os\nx = open(os.devnull, 'w')"),
    "database connection": ("sqlite3.Connection", "import sqlite3\nx = sqlite3.connect(':memory:')\nx.close()"),
    "context variable": ("ContextVar", "import contextvars\nx = contextvars.ContextVar('x')"),
    "process": ("_thread.lock", "import subprocess, sys\nx = subprocess.Popen([sys.executable, '-c', ''])\nx.wait()"),
    "mmap": ("mmap", "import mmap\nx = mmap.mmap(-1, 10)\nx.close()"),
    "weakref.ref": ("ReferenceType", "import weakref\nclass Own: pass\nown = Own()\nx = weakref.ref(own)"),
    "WeakKeyDictionary": (
        "ReferenceType",
        "import weakref\nclass Own: pass\nown = Own()\nx = weakref.WeakKeyDictionary({own: 1})",
    ),
    "WeakValueDictionary": (
        "ReferenceType",
        "import weakref\nclass Own: pass\nown = Own()\nx = weakref.WeakValueDictionary({1: own})",
    ),
    "WeakMethod": (
        "WeakMethod",
        "import weakref\nclass Own:\n    def go(self): pass\nown = Own()\nx = weakref.WeakMethod(own.go)",
    ),
}
"""Objects that neither cloudpickle nor we can copy: a word for each that the error must have, and its text."""

FAMILIES: Final = {
    "Functions": FUNCTIONS,
    "Closures": CLOSURES,
    "functools": FUNCTOOLS,
    "Classes": CLASSES,
    "Abstract classes": ABSTRACT,
    "Enums": ENUMS,
    "typing": TYPING,
    "Data classes": DATA_CLASSES,
    "attrs": ATTRS,
    "pydantic": PYDANTIC,
    "Weak references": WEAK,
    "Values and containers": CONTAINERS,
    "The standard library": LIBRARY,
    "NumPy": NUMPY,
    "PyTorch": TORCH,
}

NEEDS: Final = {"attrs": "attrs", "NumPy": "numpy", "PyTorch": "torch"}
ROWS: Final = {
    name: text
    for family, rows in FAMILIES.items()
    if importlib.util.find_spec(NEEDS.get(family, "sys"))
    for name, text in rows.items()
}

Kept = Literal["yes", "named", "no"]
AS_CLOUDPICKLE: Final[tuple[Kept, Kept, Kept]] = ("named", "yes", "named")
"""As an argument, as a global and as a result. What has no name goes by cloudpickle there, with cloudpickle's limits."""
LIMITS: Final[dict[str, tuple[Kept, Kept, Kept]]] = {
    **dict.fromkeys(("closures over one loop variable", "counter with nonlocal"), ("no", "yes", "no")),
    **dict.fromkeys(
        (
            "singledispatch", "singledispatchmethod", "cached_property", "lru_cache and cache", "cached method",
            "class, and the order of its attributes", "__slots__", "__slots__ with private names",
            "__init_subclass__ that registers", "metaclass that registers", "enum with aliases",
            "enum with a mixin and __init__", "enum with __new__", "enum with functions, classes and nonmembers",
            "ParamSpec and TypeVarTuple", "NewType", "TypedDict", "TypedDict that inherits", "dataclass, and MISSING",
            "dataclass with slots", "attrs with slots",
        ),
        AS_CLOUDPICKLE,
    ),
    "slots with docs": ("yes", "yes", "named"),
    "copyreg": ("yes", "yes", "no"),
    "singleton by __reduce__": ("no", "no", "no"),
    "generic model, and its class": ("no", "no", "no"),
}  # fmt: skip
"""What is not kept in every way, as an argument, as a global and as a result."""
VARYING: Final = ("WeakSet", "tensors")
"""Their pickles hold addresses, or are in the order of these."""

WAYS: Final = {
    "argument": ("argument", "local argument"),
    "global": ("global", "local global"),
    "result": ("back", "result", "argument again", "local back", "local result", "local argument again"),
}


def table() -> str:
    """The table of the documentation."""
    lines = ["| family | objects | argument | global | result |", "|---|---|---|---|---|"]
    for family, rows in FAMILIES.items():
        by_limits: dict[tuple[Kept, Kept, Kept], list[str]] = {("yes", "yes", "yes"): []}
        for name in rows:
            by_limits.setdefault(LIMITS.get(name, ("yes", "yes", "yes")), []).append(name)
        lines += [
            f"| {family} | {' · '.join(_marked(name) for name in names)} | {' | '.join(limits)} |"
            for limits, names in by_limits.items()
            if names
        ]
    refused = " · ".join(_marked(name) for name in REFUSED)
    return "\n".join([*lines, f"| Refused | {refused} | FJ402 | FJ402 | FJ403 |"])


def _marked(name: str) -> str:
    """The name with what looks like code as code."""
    return re.sub(r"\w*_\w+(\(\))?|\w+\(\)", r"`\g<0>`", name)


def cell(name: str, text: str) -> str:
    """The cell that makes these objects, each among the notebook's names and as a function's locals; and reports."""
    indented = "\n".join(f"    {line}" for line in text.strip().splitlines())
    return f"{text.strip()}\ndef build():\n{indented}\n    return x, check\nreport({name!r}, globals())\n"


def refused_cell(name: str, text: str) -> str:
    """The same for what must be refused."""
    return cell(name, f"{text}\ndef check(x): raise AssertionError('it was copied')")
