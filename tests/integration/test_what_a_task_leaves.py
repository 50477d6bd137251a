"""What tasks leave in the notebook's objects lives until the notebook makes those anew; caches live longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from seen import cell, clean, opened, value
from test_notebook import Notebook

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    yield from opened(tmp_path_factory.mktemp("nb"))


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    yield kernel
    clean(kernel)


STATE = {
    "a list": ("x = []", "x.append(1); return len(x)", [1, 2, 3]),
    "a dictionary": ("x = {'calls': 0}", "x['calls'] += 1; return x['calls']", [1, 2, 3]),
    "a set": ("x = set()", "x.add(len(x)); return len(x)", [1, 2, 3]),
    "a deque": ("x = collections.deque(maxlen=2)", "x.append(1); return len(x)", [1, 2, 2]),
    "an array": ("x = np.zeros(1)", "x[0] += 1; return float(x[0])", [1.0, 2.0, 3.0]),
    "a generator": ("x = random.Random(0)", "return x.randint(0, 99)", [49, 97, 53]),
    "a generator of numpy": ("x = np.random.default_rng(0)", "return int(x.integers(100))", [85, 63, 51]),
    "a counter": ("x = itertools.count()", "return next(x)", [0, 1, 2]),
    "an iterator": ("x = iter('abc')", "return next(x)", ["a", "b", "c"]),
    "an object": ("class C: n = 0\nx = C()", "x.n += 1; return x.n", [1, 2, 3]),
    "a class": ("class x: n = 0", "x.n += 1; return x.n", [1, 2, 3]),
    "a function": ("def x(): pass\nx.n = 0", "x.n += 1; return x.n", [1, 2, 3]),
    "a closure": (
        "def make():\n    n = 0\n    def inner():\n        nonlocal n\n        n += 1\n        return n\n"
        "    return inner\n"
        "x = make()",
        "return x()",
        [1, 2, 3],
    ),
    "a default": ("def x(seen=[]):\n    seen.append(1)\n    return len(seen)", "return x()", [1, 2, 3]),
    "a number": ("x = 0", "global x; x += 1; return x", [1, 2, 3]),
    "a text": ("x = ''", "global x; x += 'a'; return x", ["a", "aa", "aaa"]),
    "a tuple": ("x = ()", "global x; x += (1,); return len(x)", [1, 2, 3]),
    "nothing": ("x = None", "global x; x = (x or 0) + 1; return x", [1, 2, 3]),
    "of a loop": ("for x in range(1): pass", "global x; x += 1; return x", [1, 2, 3]),
    "of a walrus": ("if (x := 0) == 0: pass", "global x; x += 1; return x", [1, 2, 3]),
    "of several": ("(x, y), *z = (0, 1), 2", "global x; x += 1; return x", [1, 2, 3]),
    "of a timed cell": ("%%time\nx = 0", "global x; x += 1; return x", [1, 2, 3]),
    "of a timed line": ("%time x = 0", "global x; x += 1; return x", [1, 2, 3]),
}


@pytest.mark.parametrize(("make", "step", "expected"), STATE.values(), ids=STATE)
def test_what_the_notebook_makes_anew_begins_anew(
    notebook: Notebook, make: str, step: str, expected: list[object]
) -> None:
    cell(notebook, make)
    task = f"@env.task\ndef step():\n    {step}\n@many.task\nasync def async_step():\n    {step}"
    cell(notebook, task)
    for again in ("", make, make, task):
        cell(notebook, again)
        if again == task:  # another function that does the same with what is there
            assert value(notebook, "step()") not in expected[:1]
        else:
            assert value(notebook, "[step(), step(), step()]") == expected
            assert value(notebook, "[await async_step() for _ in range(3)]") == expected
        if again == make and "iter" in make:
            return


def test_a_list_that_is_made_anew_in_the_same_cell_begins_anew(notebook: Notebook) -> None:
    cell(notebook, "history = []\n@env.task\ndef step(x):\n    history.append(x)\n    return list(history)")
    assert value(notebook, "step(1), step(2)\nhistory = []\nstep(3)") == [3]
    assert value(notebook, "step(4)") == [3, 4]
    assert value(notebook, "history.append(7)\nstep(8)") == [7, 8]
    assert value(notebook, "history.clear()\nstep(9)") == [9]


def test_what_a_cell_binds_before_its_call_is_not_begun_anew_after_it(notebook: Notebook) -> None:
    cell(notebook, "@env.task\ndef step():\n    global total\n    total += 1\n    return total")
    for _ in range(2):
        assert value(notebook, "total = 0\nstep()") == 1
        assert value(notebook, "step()") == 2


LOADERS = """
data, count = [0], 0
@functools.lru_cache
def loader(): return os.urandom(4).hex()
@functools.cache
def keyed(k): return os.urandom(4).hex()
class Model:
    def __init__(self): self.name = os.urandom(4).hex()
@functools.lru_cache(maxsize=None)
def model(kind=Model) -> Model: return kind()
def helper(x): return x + 1
@functools.lru_cache
def uses(x): return os.urandom(4).hex(), helper(x)
@env.task
def look():
    global count
    data[0] += 1
    count += 1
    return (data[0], count), (loader(), keyed(1), model().name), uses(1)
"""


def test_caches_survive_a_restart_of_the_kernel_and_values_do_not(kernel: Notebook, notebook: Notebook) -> None:
    cell(notebook, LOADERS)
    first, cached, used = value(notebook, "look()")
    assert first == (1, 1)
    assert value(notebook, "look()") == ((2, 2), cached, used)
    for text in (LOADERS, f"# a line more\n\n{LOADERS}"):
        kernel.restart()
        cell(notebook, text)
        assert value(notebook, "look()") == ((1, 1), cached, used)
        cell(notebook, text)
        assert value(notebook, "look()") == ((1, 1), cached, used)
    kernel.restart()
    cell(notebook, LOADERS.replace("x + 1", "x + 2"))
    values, loaded, (name, number) = value(notebook, "look()")
    assert (values, loaded, number) == ((1, 1), cached, 3)
    assert name != used[0], "it may have been computed with what was there before"


def test_what_a_restarted_kernel_does_not_define_is_gone(kernel: Notebook, notebook: Notebook) -> None:
    cell(
        notebook, "def sum(x): return 'mine'\ndef helper(): return 1\nnumber = 2\nimport json as module\nclass C: pass"
    )
    tasks = (
        'def tries(get):\n    try: return get()\n    except NameError as error: return str(error).split("\'")[1]\n'
        "def look():\n    gets = lambda: helper(), lambda: number, lambda: module.dumps(1), lambda: C.__name__\n"
        "    return sum([1, 2]), [tries(get) for get in gets]\n"
        "task = env.task(look)\n@many.task\nasync def async_task(): return look()"
    )
    cell(notebook, tasks)
    assert value(notebook, "[look(), task(), await async_task()]") == [("mine", [1, 2, "1", "C"])] * 3
    kernel.restart()
    cell(notebook, tasks)
    gone = (3, ["helper", "number", "module", "C"])
    assert value(notebook, "[look(), task(), await async_task()]") == [gone] * 3


# --- tasks of methods, and tasks as arguments


def test_a_task_of_a_method_sees_its_object_as_it_is_now(notebook: Notebook) -> None:
    cell(
        notebook,
        "class O:\n    k = 3\n    def __init__(self, n): self.n = n\n    def method(self, x): return self.n + x\n"
        "    @classmethod\n    def of_class(cls, x): return cls.k + x\n"
        "    async def waits(self, x): return self.n * x\n"
        "o = O(1)\nt, u, v = env.task(o.method), env.task(O.of_class), env.task(o.waits)\n"
        "os_ = [O(n) for n in range(3)]\nts = [env.task(each.method) for each in os_]",
    )
    assert value(notebook, "t(1), u(1), [each(0) for each in ts], await v(5)") == (2, 4, [0, 1, 2], 5)
    cell(notebook, "o.n, O.k = 100, 200\nfor each in os_: each.n += 10")
    assert value(notebook, "t(1), u(1), [each(0) for each in ts], await v(5)") == (101, 201, [10, 11, 12], 500)
    cell(notebook, "old, o = o, O(7)\nold.n = 8")
    assert value(notebook, "t(1), t.func(1)") == (9, 9)
    cell(notebook, "def helper(x): return x * 1000\nO.of_class.__func__.__code__ = (lambda cls, x: helper(x)).__code__")
    assert value(notebook, "u(1)") == 1000


def test_a_task_is_an_argument_of_a_task(notebook: Notebook) -> None:
    cell(
        notebook,
        "@env.task\nasync def leaf(x): return x + 1\n"
        "@many.task\nasync def apply(f, x): return await f(x)\n"
        "@outer.task\nasync def inside(): return await apply(leaf, 2)\n"
        "@outer.task\nasync def given(f): return await apply(f, 2)\n"
        "@outer.task\nasync def of_many(fs): return [await f(1) for f in fs.values()]",
    )
    assert value(notebook, "await apply(leaf, 2), await inside(), await given(leaf)") == (3, 3, 3)
    assert value(notebook, "await of_many({'a': leaf, 'b': leaf.override(short_name='b')})") == [2, 2]
    cell(notebook, "@env.task\nasync def leaf(x): return x + 100")
    assert value(notebook, "await apply(leaf, 2), await inside(), await given(leaf)") == (102, 102, 102)
    cell(notebook, "def helper(x): return x * 2\n@env.task\nasync def leaf(x): return helper(x)")
    assert value(notebook, "await inside(), await given(leaf)") == (4, 4)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_tasks_that_a_loop_has_made_are_several(notebook: Notebook, kind: str) -> None:
    wait = "await " if kind == "async def" else ""
    cell(
        notebook,
        f"tasks = []\nfor i in range(3):\n    @env.task\n    {kind} g(x, i=i): return x * i\n    tasks.append(g)\n"
        f"@outer.task\n{kind} of_all(): return [{wait}each(10) for each in tasks]\n"
        f"@outer.task\n{kind} of_one(f): return {wait}f(10)",
    )
    for _ in range(2):
        assert value(notebook, f"[{wait}each(10) for each in tasks]") == [0, 10, 20]
        assert value(notebook, f"{wait}of_all()") == [0, 10, 20]
        assert value(notebook, f"[{wait}of_one(each) for each in tasks]") == [0, 10, 20]


# --- classes without a text


CLASSES = {
    "a named tuple": ("T = collections.namedtuple('T', 'x y')", "T(1, 2)"),
    "of another name": ("T = collections.namedtuple('Point', 'x y', defaults=(2,))", "T(1)"),
    "type()": ("T = type('Ty', (), {'v': 5, '__eq__': lambda a, b: a.v == b.v})", "T()"),
    "make_dataclass": ("T = dataclasses.make_dataclass('T', [('x', int)])", "T(1)"),
    "Enum()": ("T = enum.Enum('T', 'A B')", "T.A"),
    "Flag()": ("T = enum.IntFlag('T', 'A B')", "T.A | T.B"),
    "NamedTuple()": ("T = typing.NamedTuple('T', [('x', int)])", "T(1)"),
    "class NamedTuple": ("class T(typing.NamedTuple):\n    x: int", "T(1)"),
    "of a named tuple": ("class T(collections.namedtuple('B', 'x')):\n    __slots__ = ()", "T(1)"),
    "new_class": ("T = types.new_class('T', (tuple,))", "T((1, 2))"),
    "a factory": ("def make():\n    class Local(list): pass\n    return Local\nT = make()", "T([1])"),
    "of a loop": ("made = {n: collections.namedtuple(n, 'x') for n in 'ab'}\nT = made['a']", "T(1)"),
    "create_model": ("T = pydantic.create_model('T', n=(int, 3))", "T(n=4)"),
    "slots": ("@dataclasses.dataclass(frozen=True, slots=True)\nclass T:\n    n: int", "T(n=4)"),
    "generic": (
        "X = typing.TypeVar('X')\n@dataclasses.dataclass\nclass T(typing.Generic[X]):\n    x: X",
        "T[int](3)",
    ),
    "its own reduction": (
        "class T(int):\n    def __new__(cls, n, k): made = super().__new__(cls, n); made.k = k; return made\n"
        "    def __getnewargs__(self): return int(self), self.k",
        "T(3, 4)",
    ),
}


@pytest.mark.parametrize(("make", "obj"), CLASSES.values(), ids=CLASSES)
def test_a_class_is_one_class_on_both_sides(notebook: Notebook, make: str, obj: str) -> None:
    cell(
        notebook,
        f"@env.task\ndef f(p): return isinstance(p, T), p == {obj}, p, T, {obj}, [p]\n"
        f"@many.task\nasync def g(ps): return all(type(p) is T for p in ps), ps\n"
        f"def one(a, b, p, t, q, ps): return a, b, type(p) is T, p == obj, t is T, type(q) is T, type(ps[0]) is T",
    )
    for _ in range(2):  # made anew, it is another class
        cell(notebook, f"{make}\nobj = {obj}")
        for _ in range(2):
            assert value(notebook, "one(*f(obj))") == (True,) * 7
            assert value(notebook, "a, ps = await g([obj, obj]); a, [type(p) is T for p in ps]") == (True, [True] * 2)
    assert value(notebook, "[one(*found) for found in flyte.map(f, [obj] * 3)]") == [(True,) * 7] * 3


def test_a_name_may_mean_one_class_after_another(notebook: Notebook) -> None:
    cell(notebook, "@env.task\ndef f(p): return type(p) is T, p, T")
    for make, obj in [*CLASSES.values(), *reversed(CLASSES.values())]:
        cell(notebook, f"{make}\nobj = {obj}")
        assert value(notebook, "a, p, t = f(obj); a, type(p) is T, p == obj, t is T") == (True,) * 4, make


MODEL = "class T(pydantic.BaseModel):\n    n: int = 3"
HISTORIES = {
    "made by a function": [MODEL, "T = pydantic.create_model('T', n=(int, 4))"],
    "of the same base": [
        "class Base(pydantic.BaseModel): b: int = 1",
        "class T(Base): n: int = 3",
        "T = pydantic.create_model('T', __base__=Base, n=(int, 4))",
    ],
    "put there by hand": [MODEL, "globals()['T'] = pydantic.create_model('T', n=(int, 4))"],
    "by its metaclass": [
        MODEL,
        "T = type(pydantic.BaseModel)('T', (pydantic.BaseModel,), "
        "{'__module__': '__main__', '__annotations__': {'n': int}, 'n': 4})",
    ],
    "after a plain one": ["class T:\n    n: int = 3", "T = pydantic.create_model('T', n=(int, 4))"],
    "after one that a decorator made": [
        "@dataclasses.dataclass(frozen=True, slots=True)\nclass T:\n    n: int = 3",
        "T = pydantic.create_model('T', n=(int, 4))",
    ],
    "a base made anew": [
        "class Base(pydantic.BaseModel): b: int = 1",
        "class T(Base): n: int = 4",
        "class Base(pydantic.BaseModel): b: int = 2",
    ],
    "a base made anew, with a method": [
        "class Base(pydantic.BaseModel): b: int = 1",
        "class T(Base):\n    n: int = 4\n    def twice(self): return 2 * self.n",
        "class Base(pydantic.BaseModel): b: int = 2",
    ],
    "registered by hand": [
        MODEL,
        "known = []\ndef registered(cls):\n    known.append(cls)\n    return cls",
        "T = registered(T)",
    ],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_a_model_is_the_one_that_its_name_means(notebook: Notebook, history: list[str]) -> None:
    cell(
        notebook,
        "import inspect\ndef look(): return T().n, str(inspect.signature(T)), [base.__name__ for base in T.__mro__]",
    )
    cell(notebook, "task = env.task(look)")
    for text in history:
        cell(notebook, text)
        if value(notebook, "'T' in globals()"):
            assert value(notebook, "task()") == value(notebook, "look()"), text


def test_a_cell_that_failed_has_made_no_class(notebook: Notebook) -> None:
    cell(notebook, f"{MODEL}\n@env.task\ndef f(): return T().n")
    assert value(notebook, "f()") == 3
    assert notebook.run(f"1 / 0\n{MODEL.replace('3', '4')}").error
    assert value(notebook, "f()") == 3
    assert notebook.run("1 / 0\nT = 5").error
    assert value(notebook, "f()") == 3
