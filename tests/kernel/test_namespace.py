from __future__ import annotations

import inspect
import linecache
import os
import pickle
import re
import subprocess
import sys
import traceback
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from flyte_jupyter.client.capture import Captured
from flyte_jupyter.core.context import Action, TaskContext, current
from flyte_jupyter.core.definitions import (
    ABSENT,
    AbsentDefinition,
    Closure,
    Definition,
    ImportDefinition,
    Mark,
    SourceDefinition,
    Text,
    ValueDefinition,
    digest_of,
    make,
)
from flyte_jupyter.kernel.namespace import NotebookModule
from flyte_jupyter.kernel.namespaces import Namespaces


def source(
    lines: str, *, first_line: int = 1, filename: str = "<cell>", name: str = "", wrap: Any = None
) -> Definition:
    symbol = re.findall(r"(?:def|class) (\w+)", lines)[0]
    wrapped = None if wrap is None else pickle.dumps(wrap)
    mark = Mark(digest_of(lines, wrapped))
    return SourceDefinition(name or symbol, mark, Text(filename, first_line, lines), symbol, wrap=wrapped)


def value(name: str, obj: object) -> Definition:
    return ValueDefinition(name, Mark(digest_of(pickle.dumps(obj))), pickle.dumps(obj), type(obj).__name__)


def closure(*definitions: Definition) -> Closure:
    return Closure.of(definitions[0].name, definitions)


class Program:
    """A process that defines things, and sends what a replica has not got."""

    def __init__(self, text: str) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.run(text)

    def run(self, text: str) -> None:
        exec(text, self.names)

    def closure(self, name: str) -> Closure:
        return Captured(self.names[name]).closure()

    def send(self, name: str, module: NotebookModule) -> Any:
        wanted = self.closure(name)
        part = wanted.beyond(module.marks())
        return module.lookup(wanted.digest) or module.define(pickle.loads(pickle.dumps(part, 5)))


@pytest.fixture
def namespaces() -> Namespaces:
    return Namespaces()


@pytest.fixture
def notebook(namespaces: Namespaces, monkeypatch: pytest.MonkeyPatch) -> NotebookModule:
    """The module of a process whose call runs."""
    module = namespaces.notebook("a")
    monkeypatch.setitem(sys.modules, "__main__", module.module)
    return module


def as_list(obj: object) -> list[object]:
    return [obj]


def test_a_closure_is_known_once_it_is_defined(notebook: NotebookModule) -> None:
    wanted = closure(source("def f(): return n\n"), value("n", 3))
    assert notebook.lookup(wanted.digest) is None
    assert notebook.marks() == {}
    entry = notebook.define(wanted)
    assert entry() == 3
    assert notebook.lookup(wanted.digest) is entry
    assert notebook.marks() == {name: mark[:2] for name, mark in wanted.manifest.items()}
    assert wanted.beyond(notebook.marks()).definitions == ()


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("x = [object.__init__]", "x[0] is object.__init__"),
        ("import typing\nclass P(typing.Protocol): pass\nclass x(P): pass\nx()", "isinstance(x(), x)"),
        ("x = [memoryview(b'a')]\ny = (x[0],)", "x == [b'a'] and y == (b'a',)"),
        (
            "class Meta(type):\n    def __getattr__(cls, name): return 'any'\nclass x(metaclass=Meta): pass",
            "x.n == 'any'",
        ),
        (
            "import weakref\ndef make():\n    class Own: all = weakref.WeakSet()\n    Own.all.add(own := Own())\n"
            "    return own\nx = [make()]",
            "x[0] in type(x[0]).all",
        ),
        ("import sys\nx = [sys.stderr]", "x[0] is sys.stderr"),
    ],
    ids=["slot", "protocol", "view", "metaclass", "instances", "stream"],
)
def test_an_object_is_made_again(notebook: NotebookModule, text: str, expression: str) -> None:
    program = Program(f"import sys\n{text}\ndef f(): return {expression}")
    assert program.send("f", notebook)() is True


@pytest.mark.parametrize("kind", ["TypeVar", "ParamSpec", "TypeVarTuple"])
def test_a_type_variable_is_one_object_in_all_that_mentions_it(notebook: NotebookModule, kind: str) -> None:
    program = Program("import typing\ndef make(T):\n    def g(): pass\n    g.__annotations__['a'] = T\n    return T, g")
    program.run(f"T = typing.{kind}('T')\npair = make(typing.{kind}('T'))")
    program.run("def f(): return pair[1].__annotations__['a'] is pair[0], T.__module__, pair[0] is not T")
    program.names["T"].__module__ = "__main__"
    assert program.send("f", notebook)() == (True, "__main__", True)


def test_objects_that_are_made_together_bring_the_names_that_their_code_looks_for(namespaces: Namespaces) -> None:
    program = Program("def a(): return a.other\ndef b(): return b.other\na.other, b.other = b, a\nx = a")
    program.run("def f(): return x()() is x\ndef g(): return x()() is x")
    for number, name in enumerate(["f", "g"]):  # the second finds them captured
        assert program.send(name, namespaces.notebook(str(number)))() is True


def test_only_what_differs_is_applied(notebook: NotebookModule) -> None:
    notebook.define(closure(source("def f(): return g(), seen\n"), source("def g(): return 1\n"), value("seen", [])))
    seen = notebook.names["seen"]
    second = closure(source("def f(): return g(), seen\n"), source("def g(): return 2\n"), value("seen", []))
    part = second.beyond(notebook.marks())
    assert [definition.name for definition in part.definitions] == ["g"]
    entry = notebook.define(part)
    assert entry() == (2, [])
    assert entry()[1] is seen


def test_redefining_a_name_forgets_the_closures_that_had_it(notebook: NotebookModule) -> None:
    one = closure(source("def f(): return n\n"), value("n", 1))
    two = closure(source("def f(): return n\n"), value("n", 2))
    other = closure(source("def g(): pass\n"))
    for each in (one, other, two):
        notebook.define(each)
    assert notebook.lookup(one.digest) is None
    assert notebook.lookup(two.digest)() == 2
    assert notebook.lookup(other.digest) is not None


def test_what_was_neither_sent_nor_defined_is_named(notebook: NotebookModule) -> None:
    whole = closure(source("def f(): return n\n"), value("n", 1))
    with pytest.raises(LookupError, match="not sent: n"):
        notebook.define(whole.beyond({"n": whole.manifest["n"]}))
    assert notebook.lookup(whole.digest) is None


def test_tracebacks_show_the_users_lines_where_the_user_wrote_them(notebook: NotebookModule) -> None:
    filename = "/tmp/ipykernel_1/test_lines.py"
    raises = source("    def f():\n        return 1 / 0\n", first_line=7, filename=filename)
    notebook.define(closure(source("def g(): pass\n", first_line=3, filename=filename)))
    entry = notebook.define(closure(raises))
    linecache.checkcache()
    with pytest.raises(ZeroDivisionError) as caught:
        entry()
    frame = traceback.extract_tb(caught.tb)[-1]
    assert (frame.filename, frame.lineno, frame.line) == (filename, 8, "return 1 / 0")
    assert linecache.getline(filename, 3) == "def g(): pass\n"
    assert inspect.getsource(entry) == "    def f():\n        return 1 / 0\n"


def test_lines_of_a_file_that_this_process_sees_are_left_alone(notebook: NotebookModule) -> None:
    lines = inspect.getsource(as_list)
    first = as_list.__code__.co_firstlineno
    notebook.define(closure(source(lines, first_line=first, filename=__file__)))
    assert linecache.cache[__file__][1] is not None  # still checked against the file


def test_a_private_name_leaves_the_variable_alone(notebook: NotebookModule) -> None:
    text = "def f(n): return f if n else 'bare'\n"
    both = closure(source(text, name="f:"), source(text, wrap=as_list))
    entry = notebook.define(both)
    assert entry(0) == "bare"
    assert entry(1) is notebook.names["f"]
    assert isinstance(notebook.names["f"], list)


def test_classes_belong_to_main_and_are_pickled_by_reference(notebook: NotebookModule) -> None:
    by_text = notebook.define(closure(source("class Config: pass\n")))
    by_value = Program("class Other: pass\ndef f(): return Other").send("f", notebook)()
    for made in (by_text, by_value):
        assert made.__module__ == "__main__"
        assert type(pickle.loads(pickle.dumps(made()))) is made


def test_an_unpickler_finds_the_notebooks_names_under_main(notebook: NotebookModule) -> None:
    outer = notebook.define(closure(source("class Outer:\n    class Inner: pass\n")))
    assert notebook.find_class("__main__", "Outer.Inner") is outer.Inner
    assert notebook.find_class("collections", "OrderedDict").__name__ == "OrderedDict"
    with pytest.raises(AttributeError, match="Missing"):
        notebook.find_class("__main__", "Missing")


def test_what_a_running_call_looks_for_is_asked_of_its_notebook(notebook: NotebookModule) -> None:
    asked = []

    def want(task: TaskContext, name: str) -> Mapping[str, Any]:
        asked.append(name)
        if name == "Config":
            notebook.define(Closure.of("", [source("class Config: pass\n")]))
        return notebook.names

    notebook.names["of_a_task"] = 1
    token = current.set(TaskContext(Action("f-1", "local"), main=notebook.module, want=want))
    try:
        assert notebook.find_class("__main__", "Config") is notebook.names["Config"]
        assert notebook.find_class("__main__", "Config") is notebook.names["Config"]  # or has it another one by now?
        with pytest.raises(AttributeError, match="Missing"):
            notebook.attribute("Missing")
        for own in ("of_a_task", "__path__", "<lambda>"):  # pickle looks for the last one, of every lambda
            assert notebook.ask(own) is notebook.names
    finally:
        current.reset(token)
    assert asked == ["Config", "Config", "Missing"]


def test_two_notebooks_do_not_meet(namespaces: Namespaces) -> None:
    first = namespaces.notebook("a").define(closure(source("def f(): return n\n"), value("n", 1)))
    second = namespaces.notebook("b").define(closure(source("def f(): return n\n"), value("n", 2)))
    assert (first(), second()) == (1, 2)
    assert namespaces.notebook("a").names["f"] is first
    assert namespaces.notebook("b").names["f"] is second


def test_a_failing_import_says_for_what_and_a_second_attempt_goes_on(notebook: NotebookModule) -> None:
    bad = ImportDefinition("np", Mark("d"), "no_such_module_xyz")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_xyz") as caught:
        notebook.define(closure(source("def f(): pass\n"), bad))
    assert caught.value.__notes__ == ["`import no_such_module_xyz`, which the task needs, failed on the replica."]
    assert notebook.marks().keys() == {"f"}


def test_an_error_while_defining_has_the_users_frame(notebook: NotebookModule) -> None:
    definition = source("def f(x=1 / 0): pass\n", first_line=5, filename="<bad cell>")
    with pytest.raises(ZeroDivisionError) as caught:
        notebook.define(closure(definition))
    frame = traceback.extract_tb(caught.tb)[-1]
    assert (frame.filename, frame.lineno, frame.line) == ("<bad cell>", 5, "def f(x=1 / 0): pass")


def test_a_dotted_import_binds_nothing(notebook: NotebookModule) -> None:
    dotted = ImportDefinition("xml.dom", Mark("d"), "xml.dom")
    plain = ImportDefinition("maximum", Mark("e"), "xml", "dom.minidom.Node")
    minidom = ImportDefinition("m", Mark("g"), "xml.dom.minidom")
    entry = notebook.define(closure(source("def f(): return maximum\n"), dotted, minidom, plain))
    assert entry().__name__ == "Node"
    assert "xml.dom" not in notebook.names


def test_a_closure_without_an_entry_gives_the_module(notebook: NotebookModule) -> None:
    wanted = Closure.of("", [value("n", 1)])
    assert notebook.define(wanted) is notebook.module
    assert notebook.lookup(wanted.digest) is notebook.module
    assert notebook.attribute("n") == 1


def test_digests_cannot_be_confused_by_where_a_part_ends() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of(b"1") != digest_of("1") != digest_of(1)


def test_parts_of_a_notebook_are_loaded_by_a_replica_only() -> None:
    (definition,) = Program("def f(): pass").closure("f").definitions
    with pytest.raises(LookupError, match="only be loaded by a replica"):
        pickle.loads(definition.pickled)  # type: ignore[union-attr]
    with pytest.raises(LookupError, match="only be loaded by a replica"):
        make("globals")


# --- names that do not exist


def test_a_name_that_the_notebook_has_no_longer_is_let_go(notebook: NotebookModule) -> None:
    program = Program("len = lambda x: 'mine'\ndef f(): return len('ab')")
    assert program.send("f", notebook)() == "mine"
    program.run("del len")
    assert program.send("f", notebook)() == 2
    assert "len" not in notebook.marks()


def test_a_name_that_no_definition_made_is_left_to_the_task_that_made_it(notebook: NotebookModule) -> None:
    program = Program("def f():\n    global seen\n    seen = 1\ndef g(): return seen")
    program.send("f", notebook)()
    assert program.send("g", notebook)() == 1


def test_what_has_taken_in_an_object_that_is_gone_is_wanted_again(notebook: NotebookModule) -> None:
    holds = ValueDefinition("b", Mark("b"), pickle.dumps([1]), "list", shaping=frozenset({"a"}))
    notebook.define(Closure.of("", [value("a", 1), holds]))
    notebook.define(Closure.of("", [AbsentDefinition("a")]))
    assert holds in Closure.of("", [AbsentDefinition("a"), holds]).beyond(notebook.marks()).definitions


# --- one object under one name


def test_two_names_of_one_list_are_one_list(notebook: NotebookModule) -> None:
    program = Program("a = []\nb = {'a': a}\ndef f(): a.append(1); return b['a'], a\ndef g(): return b")
    first, second = program.send("f", notebook)()
    assert (first, first is second) == ([1], True)
    assert program.send("g", notebook)()["a"] is first
    program.run("a.append(5)")
    first, second = program.send("f", notebook)()
    assert (first, first is second) == ([5, 1], True)


def test_names_that_part_are_two_lists_and_may_meet_again(notebook: NotebookModule) -> None:
    program = Program("a = [1]\nb = {'a': a}\ndef f(): return b['a'] is a, a")
    assert program.send("f", notebook)() == (True, [1])
    program.run("a = [1]")
    assert program.send("f", notebook)() == (False, [1])
    program.run("b['a'] = a")
    assert program.send("f", notebook)() == (True, [1])


def test_functions_that_share_a_variable_share_it_here(notebook: NotebookModule) -> None:
    program = Program(
        "def make():\n    n = 0\n    def get(): return n\n    def add():\n        nonlocal n\n        n += 1\n"
        "    return get, add\nget, add = make()\ndef f(): add(); add(); return get()"
    )
    assert program.send("f", notebook)() == 2


@pytest.mark.parametrize(
    "holder",
    [
        "held = {'z': z}\ndef get(): return held['z']",
        "class A: held = z\ndef get(): return A.held",
        "def get(held=z): return held",
        "def make(held): return lambda: held\nget = make(z)",
        "class A: pass\nheld = A()\nheld.z = z\ndef get(): return held.z",
    ],
)
def test_a_list_that_something_else_holds_is_the_same_after_it_has_changed(
    notebook: NotebookModule, holder: str
) -> None:
    program = Program(f"z = [1]\n{holder}\ndef f(): return get(), z, get() is z")
    assert program.send("f", notebook)() == ([1], [1], True)
    program.run("z.append(2)")
    assert program.send("f", notebook)() == ([1, 2], [1, 2], True)


def test_a_part_that_two_objects_share_stays_that_part_when_one_of_them_changes(notebook: NotebookModule) -> None:
    program = Program("part = [1]\nz = [part]\nb = {'part': part}\ndel part\ndef f(): return z\ndef g(): return b, z")
    program.send("f", notebook)
    program.send("g", notebook)
    program.run("z.insert(0, [2])")
    first, second = program.send("g", notebook)()
    assert (first, second) == ({"part": [1]}, [[2], [1]])
    assert first["part"] is second[1]


@pytest.mark.parametrize(
    "names",
    [
        "A = Model",
        "Z = Model\nA = Z",
        "class Outer:\n    class Model:\n        def m(self): return 1\nA = Outer.Model",
        "a = Model()\nModel = Model()\ndef A(): return a",  # the name of a class may mean an instance of it
    ],
)
def test_a_class_with_methods_may_have_another_name(notebook: NotebookModule, names: str) -> None:
    program = Program(f"class Model:\n    def m(self): return 1\n{names}\ndef f(): return A().m()")
    assert program.send("f", notebook)() == 1


def test_a_class_may_extend_the_one_whose_name_it_takes_and_hold_a_subclass_of_that(notebook: NotebookModule) -> None:
    program = Program("class Model: x = 1\nclass Sub(Model): pass\nclass Model(Model): child = Sub")
    program.run("def f(): return Model, Sub")
    model, sub = program.send("f", notebook)()
    assert model.child is sub
    assert model.__base__ is sub.__base__
    assert sub.x == 1


@pytest.mark.parametrize(
    "text", ["known['x'] = 1", "one.more = 1", "known = {}\none = make(known)\nknown['one'] = one"]
)
def test_a_function_and_the_registry_in_its_closure_may_change(notebook: NotebookModule, text: str) -> None:
    program = Program("def make(known): return lambda: known\nknown = {}\none = make(known)\nknown['one'] = one")
    program.run("def f(): return known['one'] is one, one() is known, list(known)")
    assert program.send("f", notebook)() == (True, True, ["one"])
    program.run(text)
    assert program.send("f", notebook)() == program.names["f"]()


REGISTRY = """
class Base:
    known = {}
    def __init_subclass__(cls): Base.known[cls.__name__] = cls
class One(Base): pass
class Two(Base): pass
def f(): return Base, One, Two
"""


def test_a_registry_and_the_classes_in_it_know_each_other(notebook: NotebookModule) -> None:
    base, one, two = Program(REGISTRY).send("f", notebook)()
    assert base.known == {"One": one, "Two": two}
    assert (one.__mro__, two.__base__) == ((one, base, object), base)


@pytest.mark.parametrize("text", ["class Three(Base): pass", "Base.known['x'] = One", "One.more = 1"])
def test_a_registry_that_grows_keeps_its_classes(notebook: NotebookModule, text: str) -> None:
    program = Program(REGISTRY)
    before = program.send("f", notebook)()
    program.run(text)
    base, one, two = program.send("f", notebook)()
    assert (base, one, two) == before
    assert base.known.keys() == program.names["Base"].known.keys()
    assert (base.known["One"], base.known["Two"]) == (one, two)


# --- edited, and made anew


def test_a_class_on_which_something_was_set_is_still_that_class(notebook: NotebookModule) -> None:
    program = Program("class C:\n    a = 1\n    def get(self): return 'old'\nclass D(C): pass\ndef f(): return C, D")
    cls, derived = program.send("f", notebook)()
    instance = derived()
    program.run("def get(self): return 'new'\nC.get, C.b = get, 2\ndel C.a")
    assert program.send("f", notebook)() == (cls, derived)
    assert (instance.get(), instance.b, hasattr(instance, "a")) == ("new", 2, False)


def test_a_class_that_was_made_anew_is_another(notebook: NotebookModule) -> None:
    program = Program("class C: a = 1\nclass D(C): pass\ndef f(): return D")
    before = program.send("f", notebook)()
    program.run("class C: a = 2\nclass D(C): pass")
    after = program.send("f", notebook)()
    assert after is not before
    assert (before.a, after.a) == (1, 2)


def test_bases_that_were_exchanged_make_another_class(notebook: NotebookModule) -> None:
    program = Program("class A: x = 'a'\nclass B: x = 'b'\nclass C(A): pass\ndef f(): return C.x, C.__bases__")
    assert program.send("f", notebook)()[0] == "a"
    program.run("C.__bases__ = (B,)")
    assert program.send("f", notebook)() == ("b", (notebook.names["B"],))


LOCKED = "import threading\nclass C:\n    a = 1\n    lock = threading.Lock()\n"


def test_what_is_executed_may_use_all_that_it_needs_at_once(notebook: NotebookModule) -> None:
    text = "@mark\ndef train(): return 1\n"
    filename = "<cell of a decorated function>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    program = Program("import threading\ndef note(f): return zlib.crc32(b'')\nimport zlib")
    program.run(
        "def mark(f):\n    lock, number = threading.Lock(), note(f)\n    return lambda: (lock, number, f())[1:]"
    )
    exec(compile(text, filename, "exec"), program.names)
    program.run("def f(): return train()")
    assert program.send("f", notebook)() == (0, 1)


def test_a_class_that_is_executed_is_still_that_class_when_more_is_set_on_it(notebook: NotebookModule) -> None:
    filename = "<cell of a class with a lock>"
    linecache.cache[filename] = (len(LOCKED), None, LOCKED.splitlines(keepends=True), filename)
    program = Program("def f(): return C")
    exec(compile(LOCKED, filename, "exec"), program.names)
    cls = program.send("f", notebook)()
    program.run("C.b = 2")
    assert program.send("f", notebook)() is cls
    assert (cls.a, cls.b) == (1, 2)
    program.run("del C.b")
    assert not hasattr(program.send("f", notebook)(), "b")


@pytest.mark.parametrize(
    ("made", "change"),
    [
        ("[1]", "x.append(2)"),
        ("{1: 2}", "x.clear()"),
        ("{1}", "x.add(2)"),
        ("collections.deque([1], 2)", "x.append(2); x.append(3)"),
        ("collections.deque([1])", "x.clear()"),
        ("collections.Counter('a')", "x['b'] = 1"),
        ("bytearray(b'a')", "x.append(98)"),
    ],
)
def test_a_container_that_has_changed_is_what_it_is_in_the_notebook(
    notebook: NotebookModule, made: str, change: str
) -> None:
    program = Program(f"import collections\nx = {made}\ndef f(): return x")
    program.send("f", notebook)()
    program.run(change)
    found = program.send("f", notebook)()
    assert repr(found) == repr(program.names["x"])


def test_a_list_that_was_made_anew_begins_anew_and_an_unchanged_one_goes_on(notebook: NotebookModule) -> None:
    program = Program("seen = []\ndef f(): seen.append(1); return len(seen)")
    assert [program.send("f", notebook)() for _ in range(2)] == [1, 2]
    program.run("seen = []")
    assert program.send("f", notebook)() == 1


# --- caches

CACHED = "import functools\nk = 1\ndef helper(): return [k]\n@functools.cache\ndef load(): return helper()\n"
CACHED += "def f(): return load()"


@pytest.mark.parametrize(
    "text",
    [
        "def f(): return load()",
        "k = 2",  # as in the notebook: the same function still holds what it has computed
        "@functools.cache\ndef load(): return helper()",  # the same cell again
        "def helper(): return [k]\n@functools.cache\ndef load(): return helper()",
        "k = 1",
    ],
)
def test_a_cache_is_kept(notebook: NotebookModule, text: str) -> None:
    program = Program(CACHED)
    loaded = program.send("f", notebook)()
    program.run(text)
    assert program.send("f", notebook)() is loaded


@pytest.mark.parametrize(
    "text",
    [
        "@functools.cache\ndef load(): return [*helper()]",
        "k = 2\n@functools.cache\ndef load(): return helper()",
        "def helper(): return [k, k]\n@functools.cache\ndef load(): return helper()",
        "@functools.lru_cache(3)\ndef load(): return helper()",
    ],
)
def test_a_cache_is_begun_anew_where_it_would_hold_something_else(notebook: NotebookModule, text: str) -> None:
    program = Program(CACHED)
    loaded = program.send("f", notebook)()
    program.run(text)
    again = program.send("f", notebook)()
    assert again is not loaded
    assert again == program.names["f"]()


def test_a_cache_that_may_hold_results_of_both_is_not_handed_on(notebook: NotebookModule) -> None:
    program = Program(CACHED)
    loaded = program.send("f", notebook)()
    program.run("k = 2")
    assert program.send("f", notebook)() is loaded
    program.run("@functools.cache\ndef load(): return helper()")
    assert program.send("f", notebook)() == [2]
    program.run("k = 1\n@functools.cache\ndef load(): return helper()")
    assert program.send("f", notebook)() == [1]


# --- the preload


def sent(closure: Closure, module: NotebookModule) -> list[str]:
    return [definition.name for definition in closure.beyond(module.marks()).definitions]


def test_names_that_running_the_preload_made_win(namespaces: Namespaces) -> None:
    namespaces.define_preload(closure(source("def load():\n    global model\n    model = 'warm'\n")))()
    notebook = namespaces.notebook("a")
    wanted = closure(source("def f(): return model\n"), value("model", "cold"))
    assert sent(wanted, notebook) == ["f"]
    assert notebook.define(wanted.beyond(notebook.marks()))() == "warm"


def test_a_name_that_only_the_preload_has_is_not_taken_away(namespaces: Namespaces) -> None:
    namespaces.define_preload(closure(source("def load():\n    global model\n    model = 'warm'\n")))()
    assert Program("def f(): return model").send("f", namespaces.notebook("a"))() == "warm"


def test_an_equal_definition_is_shared_with_the_preload_and_another_is_not(namespaces: Namespaces) -> None:
    cached = "@__import__('functools').cache\ndef load(): return object()\n"
    loader = namespaces.define_preload(closure(source(cached), source("def helper(): return 1\n")))
    same = closure(source("def f(): return load, helper()\n"), source(cached), source("def helper(): return 2\n"))
    entry = namespaces.notebook("a").define(same)
    assert entry()[0] is loader
    assert entry()[1] == 2
    assert namespaces.preload.names["helper"]() == 1


def test_what_the_preload_got_by_value_is_what_an_equal_notebook_means(namespaces: Namespaces) -> None:
    program = Program("seen = []\ndef load(): return seen\ndef f(): return load, seen")
    made = {"load": program.names["load"]}
    namespaces.define_preload(Captured.of_names(["load"], program.names, made=made).closure())
    loader = namespaces.preload.names["load"]
    loader().append(1)
    for notebook in (namespaces.notebook("a"), namespaces.notebook("b")):
        assert program.send("f", notebook)() == (loader, [1])


def test_what_the_preload_made_anew_wins_over_its_own_definition(namespaces: Namespaces) -> None:
    text = "def load():\n    global config\n    config = 'loaded'\n"
    namespaces.define_preload(closure(source(text), value("config", "default")))()
    notebook = namespaces.notebook("a")
    assert notebook.define(closure(source("def f(): return config\n"), value("config", "default")))() == "loaded"


def test_an_entry_is_never_taken_from_the_preload(namespaces: Namespaces) -> None:
    namespaces.preload.names["f"] = "the preload's"
    notebook = namespaces.notebook("a")
    wanted = closure(source("def f(): return 'mine'\n"))
    assert sent(wanted, notebook) == ["f"]
    assert notebook.define(wanted.beyond(notebook.marks()))() == "mine"


# --- calls at the same time


def test_a_call_that_would_change_what_runs_gets_a_module_beside_it(notebook: NotebookModule) -> None:
    program = Program(CACHED)
    program.run("def f(): return helper(), load()")
    running, manifest = program.send("f", notebook), program.closure("f").manifest
    loaded = running()[1]
    program.run("def helper(): return 'new'\ndef f(): return helper()")
    beside = notebook.beside([program.closure("f")], [manifest])
    assert (beside is notebook, beside.aside_of is notebook) == (False, True)
    assert program.send("f", beside)() == "new"
    assert running() == ([1], loaded)


def test_a_module_beside_shares_what_neither_changes_nor_uses_what_does(notebook: NotebookModule) -> None:
    program = Program(CACHED)
    program.run("seen = []\nn = 1\ndef f(): return load, seen, n")
    load, seen, _ = program.send("f", notebook)()
    manifest = program.closure("f").manifest
    program.run("n = 2")
    beside = notebook.beside([program.closure("f")], [manifest])
    assert set(beside.marks()) == {"helper", "k", "load", "seen"}
    there = program.send("f", beside)()
    assert (there[0] is load, there[1] is seen, there[2]) == (True, True, 2)


@pytest.mark.parametrize("in_use", [[], [{"g": Mark("other")}]])
def test_names_that_nothing_uses_are_changed_in_place(
    notebook: NotebookModule, in_use: list[Mapping[str, Mark]]
) -> None:
    program = Program("def f(): return 1")
    program.send("f", notebook)
    program.run("def f(): return 2")
    assert notebook.beside([program.closure("f")], in_use) is notebook


def test_what_runs_does_not_keep_an_equal_call_apart(notebook: NotebookModule) -> None:
    program = Program("n = 1\ndef f(): return n\ndef g(): return n")
    program.send("f", notebook)
    assert notebook.beside([program.closure("f"), program.closure("g")], [program.closure("f").manifest]) is notebook


def test_a_name_that_appears_is_not_seen_by_what_runs_without_it(notebook: NotebookModule) -> None:
    program = Program("def f(): return len('ab')")
    running, manifest = program.send("f", notebook), program.closure("f").manifest
    assert manifest["len"] == ABSENT
    program.run("def len(x): return 'mine'")
    beside = notebook.beside([program.closure("f")], [manifest])
    assert program.send("f", beside)() == "mine"
    assert running() == 2


# --- processes that come and go


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_a_process_that_has_ended_leaves_its_caches_to_the_next(
    namespaces: Namespaces, process: subprocess.Popen[bytes]
) -> None:
    program = Program(CACHED)
    program.run("seen = []\ndef f(): seen.append(1); return load(), len(seen)")
    first = namespaces.notebook("a", "first", process.pid)
    loaded, _ = program.send("f", first)()
    process.kill()
    process.wait()
    second = namespaces.notebook("a", "second", os.getpid())
    assert second.marks() == {}
    assert "seen" not in second.names
    assert Program(CACHED).send("f", second)() is loaded
    assert second.process.token == "second"


def test_a_process_that_is_alive_leaves_nothing(namespaces: Namespaces, process: subprocess.Popen[bytes]) -> None:
    first = namespaces.notebook("a", "first", process.pid)
    loaded = Program(CACHED).send("f", first)()
    second = namespaces.notebook("a", "second", os.getpid())
    assert second is not first
    assert Program(CACHED).send("f", second)() is not loaded
    assert namespaces.notebook("a", "first", process.pid) is first
    assert Program(CACHED).send("f", first)() is loaded


def test_a_process_that_nobody_has_waited_for_has_ended(
    namespaces: Namespaces, process: subprocess.Popen[bytes]
) -> None:
    first = namespaces.notebook("a", "first", process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert namespaces.notebook("a", "second", os.getpid()) is first


def test_what_a_call_of_an_ended_process_still_uses_is_left_alone(
    namespaces: Namespaces, process: subprocess.Popen[bytes]
) -> None:
    first = namespaces.notebook("a", "first", process.pid)
    namespaces.in_use = lambda module: module is first
    process.kill()
    process.wait()
    assert namespaces.notebook("a", "second", os.getpid()) is not first
    namespaces.in_use = lambda module: False
    assert namespaces.notebook("a", "third", os.getpid()) is first


def test_caches_are_not_left_to_another_notebook(namespaces: Namespaces, process: subprocess.Popen[bytes]) -> None:
    loaded = Program(CACHED).send("f", namespaces.notebook("a", "first", process.pid))()
    process.kill()
    process.wait()
    assert Program(CACHED).send("f", namespaces.notebook("b", "second", os.getpid()))() is not loaded


def test_the_next_process_computes_what_it_defines_otherwise(
    namespaces: Namespaces, process: subprocess.Popen[bytes]
) -> None:
    assert Program(CACHED).send("f", namespaces.notebook("a", "first", process.pid))() == [1]
    process.kill()
    process.wait()
    program = Program(CACHED.replace("k = 1", "k = 2"))
    assert program.send("f", namespaces.notebook("a", "second", os.getpid()))() == [2]


class Big:
    pass


def test_the_values_of_a_process_go_with_it_and_its_caches_wait_for_the_next(
    namespaces: Namespaces, process: subprocess.Popen[bytes]
) -> None:
    module = namespaces.notebook("a", "first", process.pid)
    loaded = Program(CACHED).send("f", module)()
    module.names["kept"] = Big()
    sent = closure(value("sent", {1, 2}))
    module.define(sent)
    references = [weakref.ref(module.names["kept"]), weakref.ref(module.names["sent"])]
    assert namespaces.process_ended("first")
    assert [reference() for reference in references] == [None, None]
    assert "f" not in module.names
    process.kill()
    process.wait()
    assert namespaces.notebook("a", "second", os.getpid()) is module
    assert Program(CACHED).send("f", module)() is loaded


def test_values_that_a_call_still_uses_stay(namespaces: Namespaces) -> None:
    module = namespaces.notebook("a", "first", os.getpid())
    module.names["kept"] = 1
    namespaces.in_use = lambda each: each is module
    assert not namespaces.process_ended("first")
    assert module.names["kept"] == 1
