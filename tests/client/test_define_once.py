"""What a notebook captures, defined in another namespace: the two halves together."""

from __future__ import annotations

import asyncio
import functools
import linecache
import pickle
import subprocess
import sys
import traceback
from typing import Any

import pytest

from flyte_jupyter.client.capture import Captured
from flyte_jupyter.core.definitions import ABSENT, Closure
from flyte_jupyter.kernel.namespace import NotebookModule
from flyte_jupyter.kernel.namespaces import Namespaces


class Env:
    __flyte_decorates__ = True

    def task(self, function: Any) -> Any:
        return Task(function)


class Task:
    def __init__(self, func: Any) -> None:
        self.func = func

    def __call__(self, *arguments: Any) -> Any:
        return ("called as a task", self.func(*arguments))

    def __flyte_capture__(self) -> tuple[Any, bytes | None]:
        return self.func, pickle.dumps(Task)


def send(function: Any, replica: NotebookModule) -> Any:
    """Define on the replica only what it says is missing, as it goes over a socket."""
    closure = Captured(function).closure()
    found = replica.lookup(closure.digest)
    if found is None:
        part = closure.beyond(replica.marks())
        found = replica.define(pickle.loads(pickle.dumps(part, 5)))
    return found


def test_two_tasks_share_one_cached_loader_that_survives_an_edited_helper(notebook, replica) -> None:
    notebook.cell("import functools\n@functools.lru_cache\ndef load(): return object()")
    notebook.cell("def helper(): return 1\ndef one(): return load(), helper()\ndef two(): return load()")
    one, two = send(notebook["one"], replica), send(notebook["two"], replica)
    model = one()[0]
    assert two() is model
    notebook.cell("def helper(): return 2")
    assert send(notebook["one"], replica)() == (model, 2)
    notebook.cell("def one(): return 'edited', load()")
    assert send(notebook["one"], replica)() == ("edited", model)


def test_an_asynchronous_cached_loader_runs_once(notebook, replica) -> None:
    notebook.cell(
        "import functools\n"
        "class Once:\n"
        "    def __init__(self, f): self.f, self.made = f, None; functools.update_wrapper(self, f)\n"
        "    async def __call__(self):\n"
        "        if self.made is None: self.made = await self.f()\n"
        "        return self.made\n"
        "@Once\n"
        "async def load(): return object()\n"
        "async def one(): return await load()\n"
        "async def two(): return await load()\n"
    )
    one, two = send(notebook["one"], replica), send(notebook["two"], replica)

    async def both() -> bool:
        return await one() is await two()

    assert asyncio.run(both())


def test_a_wrapper_made_by_hand_is_made_again(notebook, replica) -> None:
    notebook.cell("import functools\nn = 1\ndef load(): return [n]\nload = functools.lru_cache(maxsize=3)(load)")
    notebook.cell("load2 = functools.lru_cache(lambda: [n])\ndef train(): return load, load2")
    load, load2 = send(notebook["train"], replica)()
    assert load() is load()
    assert load2() is load2()
    assert load.cache_parameters() == {"maxsize": 3, "typed": False}


def test_functions_may_call_each_other_in_a_circle(notebook, replica) -> None:
    notebook.cell("def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)")
    assert send(notebook["even"], replica)(10) is True
    assert send(notebook["odd"], replica)(10) is False


def test_a_class_hierarchy_with_super_is_one_on_the_replica(notebook, replica) -> None:
    notebook.cell("class Base:\n    def __init__(self): self.x = 1\n    def copy(self): return Derived()")
    notebook.cell("class Derived(Base):\n    def __init__(self): super().__init__(); self.y = 2")
    notebook.cell("def train(): return Derived().copy()")
    made = send(notebook["train"], replica)()
    assert (made.x, made.y, type(made).__module__) == (1, 2, "__main__")
    assert isinstance(made, replica.names["Base"])


def test_an_edited_base_class_reaches_its_subclass(notebook, replica) -> None:
    notebook.cell("class Base:\n    def x(self): return 1")
    notebook.cell("class Derived(Base): pass")
    notebook.cell("def train(): return Derived().x()")
    assert send(notebook["train"], replica)() == 1
    notebook.cell("class Base:\n    def x(self): return 2")
    notebook.cell("class Derived(Base): pass")
    assert send(notebook["train"], replica)() == 2


def test_dataclasses_enums_and_named_tuples_work(notebook, replica) -> None:
    notebook.cell("import enum\nfrom collections import namedtuple\nfrom dataclasses import dataclass, field, asdict")
    notebook.cell("class Color(enum.Enum):\n    RED = 1\nPoint = namedtuple('Point', 'x y')")
    notebook.cell(
        "@dataclass\nclass Config:\n"
        "    color: Color = Color.RED\n    at: list = field(default_factory=lambda: [Point(1, 2)])"
    )
    notebook.cell("config = Config()\ndef train(): return asdict(config), config, Color, Config")
    fields, config, color, made = send(notebook["train"], replica)()
    assert fields == {"color": color.RED, "at": [(1, 2)]}
    assert type(config) is made
    assert type(config.color) is color


def test_defaults_that_refer_to_globals_are_taken_when_defined(notebook, replica) -> None:
    notebook.cell("rate = 1\ndef make(): return rate\ndef train(x=make(), *, y=rate): return x, y")
    assert send(notebook["train"], replica)() == (1, 1)
    notebook.cell("rate = 2\ndef train(x=make(), *, y=rate): return x, y")
    assert send(notebook["train"], replica)() == (2, 2)


def test_comprehensions_and_inner_functions_see_globals(notebook, replica) -> None:
    notebook.cell("a, b = 1, 2")
    notebook.cell(
        "def train():\n    def inner(): return [[a + b + j for j in range(b)] for i in range(a)]\n    return inner()"
    )
    assert send(notebook["train"], replica)() == [[3, 4]]


def test_a_changed_global_arrives_and_state_made_by_tasks_stays(notebook, replica) -> None:
    notebook.cell("config = {'lr': 1}\ncounter = [0]\ndef train(): counter[0] += 1; return config['lr'], counter[0]")
    assert send(notebook["train"], replica)() == (1, 1)
    notebook["config"]["lr"] = 5
    assert send(notebook["train"], replica)() == (5, 2)


def test_postponed_annotations_stay_so(notebook, replica) -> None:
    notebook.cell("from __future__ import annotations\nimport typing\nclass Config: pass")
    notebook.cell("def train(x: Config, y: NotThere = 1): pass")
    entry = send(notebook["train"], replica)
    assert entry.__annotations__ == {"x": "Config", "y": "NotThere"}
    assert "Config" in replica.names


def test_tracebacks_name_the_cell_and_show_its_lines(notebook, replica) -> None:
    notebook.cell("# one\n# two\ndef helper(x):\n    y = x\n    return 1 / y\n\ndef train():\n    return helper(0)")
    closure = Captured(notebook["train"]).closure()
    filename = notebook["train"].__code__.co_filename
    del linecache.cache[filename]  # another process has not got it
    entry = replica.define(closure)
    linecache.checkcache()
    with pytest.raises(ZeroDivisionError) as caught:
        entry()
    frames = [(f.filename, f.lineno, f.line) for f in traceback.extract_tb(caught.tb)[1:]]
    assert frames == [(filename, 8, "return helper(0)"), (filename, 5, "return 1 / y")]


def test_a_task_runs_bare_and_may_call_itself_as_a_task(notebook, replica) -> None:
    notebook.names.update(env=Env())
    notebook.cell("@env.task\ndef train(n):\n    return train(n - 1) if n else 0")
    assert send(notebook["train"].func, replica)(1) == ("called as a task", 0)


def test_a_task_that_another_calls_arrives_as_a_task_with_all_it_needs(notebook, replica) -> None:
    notebook.names.update(env=Env())
    notebook.cell("n = 7\n@env.task\ndef child(): return n")
    notebook.cell("steps = [child]\n@env.task\ndef parent(): return child(), steps[0] is child")
    assert send(notebook["parent"].func, replica)() == (("called as a task", 7), True)
    assert send(notebook["child"].func, replica)() == 7


def test_lambdas_and_inner_functions_share_the_notebooks_names(notebook, replica) -> None:
    notebook.cell("import functools\n@functools.cache\ndef load(): return object()")
    notebook.cell("def make(n):\n    def inner(k): return (inner, n, load()) if k else load()\n    return inner")
    notebook.cell("f = lambda x=3: (x, load())\ng = make(5)\ndef train(): return load(), f(), g(0), g(1)")
    model, by_lambda, by_inner, (inner, n, again) = send(notebook["train"], replica)()
    assert by_lambda == (3, model)
    assert by_inner is again is model
    assert (n, inner) == (5, replica.names["g"])
    assert send(notebook["f"], replica)(4) == (4, model)
    assert send(notebook["g"], replica)(0) is model


def test_code_without_source_finds_its_globals_there(notebook, replica) -> None:
    exec("def helper(): return n\nclass Made:\n    def get(self): return n", notebook.names)
    notebook.cell("n = 3\ndef train(): return helper(), Made().get(), Made")
    found, got, _ = send(notebook["train"], replica)()
    assert (found, got) == (3, 3)
    assert replica.names["helper"].__globals__ is replica.names


def test_a_decorators_product_without_wrapped_works(notebook, replica) -> None:
    notebook.cell("def twice(f):\n    def inner(): return f() * 2\n    return inner")
    notebook.cell("n = 4\n@twice\ndef helper(): return n\ndef train(): return helper()")
    assert send(notebook["train"], replica)() == 8


def test_a_replica_can_capture_again_for_a_task_it_calls(notebook, replica) -> None:
    notebook.cell("def pad(): pass\nclass Config:\n    x = 1\n    def get(self): return self.x")
    notebook.cell("if True:\n    def helper(): return Config().get()\ndef train(): return helper()")
    entry = send(notebook["train"], replica)
    closure = Captured(entry).closure()
    other = Namespaces().notebook("other")
    assert other.define(closure)() == 1
    assert other.names["helper"].__globals__ is other.names
    assert other.names["Config"].__module__ == "__main__"
    assert closure.manifest == Captured(notebook["train"]).closure().manifest


def test_names_of_arguments_arrive_too(notebook, replica) -> None:
    notebook.cell("class Config:\n    def __init__(self): self.x = 1")
    replica.define(Captured.of_names(["Config"], notebook.names).closure())
    assert replica.attribute("Config")().x == 1


def test_a_function_of_a_module_is_the_modules(notebook, replica) -> None:
    import textwrap

    assert send(textwrap.dedent, replica) is textwrap.dedent


OTHER_PROCESS = """
import pickle, sys, traceback
from flyte_jupyter.kernel.namespaces import Namespaces
module = Namespaces().notebook("abc")
entry = module.define(pickle.load(sys.stdin.buffer))
first, second = entry(0), entry(0)
assert first[0] is second[0], "the loader ran twice"
print(first[1:], module.names["Point"].__module__)
try:
    entry(1)
except ZeroDivisionError:
    print(traceback.format_exc())
"""


def in_another_process(closure: Closure) -> str:
    command = [sys.executable, "-c", OTHER_PROCESS]
    done = subprocess.run(command, input=pickle.dumps(closure, 5), capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_another_process_runs_it_and_shows_the_users_lines(notebook) -> None:
    notebook.cell("import functools, math\nfrom collections import namedtuple\nPoint = namedtuple('Point', 'x y')")
    notebook.cell(
        "@functools.cache\ndef load():\n    return object()\norigin = Point(1, 2)\nsquare = lambda x: x * origin.y"
    )
    notebook.cell(
        "def train(n):\n    if n:\n        return square(1) / 0\n    return load(), square(3), math.floor(origin.x)"
    )
    output = in_another_process(Captured(notebook["train"]).closure())
    assert output.startswith("(6, 1) __main__")
    assert f'File "{notebook["train"].__code__.co_filename}", line 3, in train' in output
    assert "return square(1) / 0" in output


SCRIPT = """
import enum, pickle, sys
from flyte_jupyter.client.capture import Captured
if True:
    class Color(enum.Enum):
        RED = 1
def train(n):
    return Color.RED.name
if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(Captured(train).closure()))
"""


def test_a_script_is_captured_like_a_notebook(replica, tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, check=True, timeout=60)
    entry = replica.define(pickle.loads(done.stdout))
    assert entry(1) == "RED"
    assert (entry.__code__.co_filename, entry.__code__.co_firstlineno) == (str(script), 7)


def test_partials_and_methods_may_be_called_too(notebook, replica) -> None:
    notebook.cell("import functools\nn = 2\ndef add(x, y): return x + y + n\nclass C:\n    def go(self): return n")
    notebook.cell("three = functools.partial(add, 3)\nbound = C().go")
    assert send(notebook["three"], replica)(1) == 6
    assert send(functools.partial(notebook["add"], 4), replica)(1) == 7
    assert send(notebook["bound"], replica)() == 2
    assert isinstance(send(notebook["bound"], replica).__self__, replica.names["C"])


def test_a_wrapper_made_by_hand_may_be_the_entry(notebook, replica) -> None:
    notebook.cell("import functools\ndef load(): return object()\nload = functools.cache(load)")
    entry = send(notebook["load"], replica)
    assert entry() is entry()


def test_a_task_of_a_module_is_imported_and_its_function_is_called(notebook, replica, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tasks_of_a_module.py").write_text(
        f"from {__name__} import Env\nenv = Env()\n@env.task\ndef child(): return 3\n"
    )
    notebook.names.update(env=Env())
    notebook.cell("from tasks_of_a_module import child\n@env.task\ndef parent(): return child()")
    assert send(notebook["child"].func, replica)() == 3
    assert send(notebook["parent"].func, replica)() == ("called as a task", 3)
    del sys.modules["tasks_of_a_module"]


def test_a_single_dispatch_function_keeps_what_was_registered_later(notebook, replica) -> None:
    notebook.cell("import functools\n@functools.singledispatch\ndef kind(x): return 'any'\ndef train(): return kind(1)")
    assert send(notebook["train"], replica)() == "any"
    notebook.cell("class Config: pass\n@kind.register\ndef _(x: int): return 'int', Config")
    assert send(notebook["train"], replica)() == ("int", replica.names["Config"])


def test_a_preload_decorator_that_is_a_call_does_not_reach_the_replica() -> None:
    import linecache

    from flyte_jupyter.client.capture import Captured
    from flyte_jupyter.loader import PreloadFunction

    class Handle:
        __flyte_decorates__ = True

        def preload(self, function: object) -> PreloadFunction:
            return PreloadFunction(function)  # type: ignore[arg-type]

    source = "@pool(1).preload\ndef load():\n    return 1\n\n@pool(2).preload\n@keep\ndef other():\n    return load()\n"
    linecache.cache["<cell 77>"] = (len(source), None, source.splitlines(keepends=True), "<cell 77>")
    scope = {"__name__": "__main__", "pool": lambda number: Handle(), "keep": lambda function: function}
    exec(compile(source, "<cell 77>", "exec"), scope)
    closure = Captured.of_names(["other"], scope).closure()
    assert {definition.name for definition in closure.definitions if definition.mark != ABSENT} == {"load", "other"}


@pytest.mark.parametrize(
    "cells",
    [
        [("x = 0\nr = call()", (1, 1)), ("r = call()", (2, 2)), ("r = call()", (3, 3))],
        [("x = 0; r = call()", (1, 1)), ("r = call(); x = 0", (2, 2)), ("r = call()", (1, 3))],
        [("r = call()\nx = 0\nr = r, call()", ((1, 1), (1, 2))), ("r = call()", (2, 3))],
        [("made = []; r = call()", (1, 1)), ("made = made\nr = call()", (2, 2)), ("made = []\nr = call()", (3, 1))],
        [("for x in [0]:\n    r = call()", (1, 1)), ("if (x := 0) == 0: r = call()", (1, 2)), ("r = call()", (2, 3))],
        [("é = 'ü'; x = 0; r = call()", (1, 1)), ("r = call()", (2, 2))],
        [("x = 0\nawait made_in_a_task()", (1, 1)), ("r = call()", (2, 2))],
    ],
)
def test_a_name_starts_anew_from_where_a_cell_has_bound_it(notebook, replica, cells) -> None:
    notebook.cell("import asyncio\nx = 0\nmade = []")
    notebook.cell("def f():\n    global x\n    x += 1\n    made.append(x)\n    return x, len(made)")
    captured = Captured(notebook["f"])

    def call() -> Any:
        closure = captured.closure()
        found = replica.lookup(closure.digest)
        return (found or replica.define(closure.beyond(replica.marks())))()

    notebook.names["call"] = call
    notebook.cell(
        "async def c(): return call()\nasync def made_in_a_task():\n  global r\n  r = await asyncio.create_task(c())"
    )
    for cell, result in cells:
        notebook.cell(cell)
        assert notebook["r"] == result, cell


@pytest.mark.parametrize(
    ("cell", "result"), [("1 / 0\nx = 0", 2), ("x = 0\n1 / 0", 1), ("x = 0\nthis is no Python", 2)]
)
def test_a_cell_that_fails_has_bound_only_what_stands_above(notebook, replica, cell, result) -> None:
    notebook.cell("x = 0\ndef f():\n    global x\n    x += 1\n    return x")
    captured = Captured(notebook["f"])
    assert replica.define(captured.closure())() == 1
    with pytest.raises((ZeroDivisionError, SyntaxError)):
        notebook.cell(cell)
    closure = captured.closure()
    found = replica.lookup(closure.digest)
    assert (found or replica.define(closure.beyond(replica.marks())))() == result


@pytest.mark.parametrize("made", ["deque([1])", "deque([1], maxlen=3)"])
def test_a_deque_that_grows_stays_one_on_a_replica(notebook, replica, made) -> None:
    notebook.cell(f"from collections import deque\nx = {made}\nholder = [x]\ndef f(): return list(x), x is holder[0]")
    captured = Captured(notebook["f"])
    assert replica.define(captured.closure())() == ([1], True)
    notebook.cell("x.append(2)")
    assert replica.define(captured.closure().beyond(replica.marks()))() == ([1, 2], True)


def test_attributes_that_are_keys_are_asked_for_nothing(notebook, replica) -> None:
    notebook.cell("class D(dict):\n    __getattr__ = dict.__getitem__\n    def __call__(self): return self['x']")
    notebook.cell("x = D(x=D(y=1))\ndef f(): return x.x.y, x(), type(x.x) is D, [x][0] is x")
    assert send(notebook["f"], replica)() == (1, {"y": 1}, True, True)
    notebook.cell("x['x']['y'] = 2")
    assert send(notebook["f"], replica)()[0] == 2


def test_what_every_object_has_is_not_taken_for_a_name(notebook, replica) -> None:
    notebook.cell("class C:\n    def __eq__(self, other): return True\n    __hash__ = object.__hash__")
    notebook.cell("make = object.__new__\ndef f(): return C.__hash__ is object.__hash__, type(make(C)) is C")
    assert send(notebook["f"], replica)() == (True, True)


def test_what_a_class_holds_crosses_although_only_its_text_can_make_it(notebook, replica) -> None:
    notebook.cell("import threading\nclass C:\n    lock = threading.Lock()\n    items, named = [], {'lock': lock}")
    notebook.cell(
        "kept = []\ndef f():\n    kept[:] = kept or [C]\n"
        "    return C.items, [*C.named], getattr(C, 'more', None), kept == [C]"
    )
    captured = Captured(notebook["f"])

    def there() -> Any:
        closure = captured.closure()
        found = replica.lookup(closure.digest)
        return (found or replica.define(closure.beyond(replica.marks())))()

    assert there() == ([], ["lock"], None, True)
    for change, expected in [
        ("C.items.append(1)", ([1], ["lock"], None, True)),
        ("C.more = {1}", ([1], ["lock"], {1}, True)),
        ("C.more.add(2)", ([1], ["lock"], {1, 2}, True)),
        ("C.items = [3]", ([3], ["lock"], {1, 2}, True)),
    ]:
        notebook.cell(change)
        assert there() == expected
    notebook.cell("del C.more")
    assert there()[:3] == ([3], ["lock"], None)
