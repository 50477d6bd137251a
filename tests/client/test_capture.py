from __future__ import annotations

import functools
import pickle
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from flyte_jupyter.client.capture import Captured
from flyte_jupyter.client.capture.code import mentioned
from flyte_jupyter.core.definitions import (
    ABSENT,
    AbsentDefinition,
    Closure,
    ImportDefinition,
    SourceDefinition,
    ValueDefinition,
)
from flyte_jupyter.errors import ArgumentNotSerializable

Texts = Callable[[Closure], dict[str, str]]

LOCKED = """
import functools, threading
def locked(f):
    lock = threading.Lock()
    @functools.wraps(f)
    def inner(*arguments):
        with lock: return f(*arguments)
    return inner
"""
"""A decorator whose products cannot go by value."""


def names(closure: Closure) -> list[str]:
    """What the notebook has, and in which order it is made."""
    return [definition.name for definition in closure.definitions if definition.mark != ABSENT]


def find(closure: Closure, name: str) -> Any:
    return next(definition for definition in closure.definitions if definition.name == name)


def holds(closure: Closure, name: str) -> set[str]:
    """The names whose objects, or parts of them, this one holds."""
    definition = find(closure, name)
    return {*definition.shaping, *definition.linked}


def differing(new: Closure, old: Closure) -> set[str]:
    return {name for name in {*new.manifest, *old.manifest} if new.manifest.get(name) != old.manifest.get(name)}


class Env:
    """A stand-in for a task environment: its decorators are cut from what is sent."""

    __flyte_decorates__ = True

    def task(self, function: Any = None, **options: Any) -> Any:
        return Task(function) if function is not None else Task


class Task:
    def __init__(self, func: Any) -> None:
        self.func = func

    def __flyte_capture__(self) -> tuple[Any, bytes | None]:
        return self.func, pickle.dumps(Task)


# --- what is taken along


def test_a_function_takes_with_it_what_it_mentions_and_nothing_else(notebook, texts: Texts) -> None:
    notebook.cell("import math\nscale = 2\nother = 3\ndef helper(x): return x * scale")
    notebook.cell("def train(x):\n    return helper(math.floor(x)), print, undefined")
    closure = Captured(notebook["train"]).closure()
    assert sorted(names(closure)) == ["helper", "math", "scale", "train"]
    assert texts(closure)["helper"] == "def helper(x): return x * scale\n"
    assert find(closure, "math") == ImportDefinition("math", closure.manifest["math"], "math")


def test_a_name_that_the_notebook_has_not_is_told_too(notebook) -> None:
    notebook.cell("def train(x): return helper(x), len")
    closure = Captured(notebook["train"]).closure()
    assert find(closure, "helper") == AbsentDefinition("helper")
    assert closure.manifest["helper"] == closure.manifest["len"] == ABSENT


def test_a_function_of_a_module_is_imported(notebook) -> None:
    closure = Captured(threading.stack_size).closure()
    assert names(closure) == ["stack_size:"]
    notebook.cell("from textwrap import dedent as d\ndef train(): return d")
    definition = find(Captured(notebook["train"]).closure(), "d")
    assert (definition.module, definition.attribute) == ("textwrap", "dedent")


def test_names_of_ipython_stay_at_home_but_the_users_own_open_goes(notebook) -> None:
    notebook.cell("1 + 1\ndef train(): return In, Out, _, _i, _1, get_ipython, exit, open, display")
    assert names(Captured(notebook["train"]).closure()) == ["train"]
    notebook.cell("def open(path): return path")
    assert sorted(names(Captured(notebook["train"]).closure())) == ["open", "train"]


def test_a_user_may_call_something_of_theirs_as_ipython_does(notebook) -> None:
    notebook.cell("class In: pass\nOut = [1]\n_ = str.upper\ndef train(): return In, Out, _, __")
    assert sorted(names(Captured(notebook["train"]).closure())) == ["In", "Out", "_", "train"]
    definition = find(Captured(notebook["train"]).closure(), "In")
    assert definition.name == "In"


def test_a_command_takes_the_names_along_that_ipython_replaces_in_it(notebook) -> None:
    notebook.cell("a = b = c = d = 1\ndef train(c):\n    !echo $a {b + c} ${HOME}\n    %time $d")
    assert {"a", "b", "d"} <= set(names(Captured(notebook["train"]).closure()))
    assert "c" not in names(Captured(notebook["train"]).closure())
    notebook.cell("def train(): return '$a {b}'")
    assert names(Captured(notebook["train"]).closure()) == ["train"]


def test_bases_inner_scopes_and_annotations_in_strings_are_searched_and_what_ran_is_not(notebook) -> None:
    notebook.cell("a, b, c, d, e, f, g, h = range(8)\nclass Base: pass\ndef mark(value): return lambda x: x")
    notebook.cell(
        "class Model(Base):\n"
        "    size = c\n"
        "    def go(self): return [[d for _ in range(e)] for _ in ()]\n"
        "@mark(a)\n"
        'def train(x: f = b) -> "g":\n'
        "    def inner(): return lambda: h\n"
        "    return Model, inner\n"
    )
    assert set(names(Captured(notebook["train"]).closure())) == {*"degh", "Base", "Model", "train"}


def test_a_class_as_an_annotation_or_a_default_goes_by_its_name(notebook) -> None:
    notebook.cell("class Config: pass\nclass Other: pass\ndef train(x: Config, y=Other): pass")
    closure = Captured(notebook["train"]).closure()
    assert set(names(closure)) == {"Config", "Other", "train"}
    assert holds(closure, "train") == {"Other"}


def test_what_is_made_comes_after_what_it_needs(notebook) -> None:
    notebook.cell("class Base:\n    def make(self): return Derived()\nclass Derived(Base): pass")
    notebook.cell("def helper(x=Base): pass\nmade = [Derived()]\ndef train(): return helper(), made")
    order = names(Captured(notebook["train"]).closure())
    assert order.index("Base") < order.index("Derived") < order.index("made")
    assert order.index("Base") < order.index("helper")


def test_a_submodule_that_was_imported_is_imported_there(notebook) -> None:
    notebook.cell("import xml.dom.minidom\ndef train(): return xml.dom.minidom.parseString")
    closure = Captured(notebook["train"]).closure()
    assert names(closure) == ["xml.dom", "xml.dom.minidom", "train", "xml"]


def test_an_enum_and_a_dataclass_go_by_value(notebook) -> None:
    notebook.cell("import enum\nfrom dataclasses import dataclass, field\nclass Color(enum.Enum):\n    RED = 1")
    notebook.cell(
        "@dataclass\nclass Config:\n    tags: list = field(default_factory=list)\n    color: Color = Color.RED"
    )
    closure = Captured.of_names(["Config"], notebook.names).closure()
    assert {name: type(find(closure, name)) for name in names(closure)} == {
        "Config": ValueDefinition,
        "Color": ValueDefinition,
    }


def test_a_product_of_a_decorator_goes_by_value(notebook, texts: Texts) -> None:
    notebook.cell("def twice(f):\n    def inner(): return f() * 2\n    return inner")
    notebook.cell("@twice\ndef helper(): return 1\ndef train(): return helper()")
    closure = Captured(notebook["train"]).closure()
    assert names(closure) == ["train", "helper"]
    assert "def inner(): return f() * 2" in texts(closure)["helper"]
    assert "@twice\ndef helper(): return 1" in texts(closure)["helper"]


def test_an_alias_stays_an_alias(notebook) -> None:
    notebook.cell("def helper(): pass\nalias = helper\ndef train(): return alias, helper")
    closure = Captured(notebook["train"]).closure()
    assert {name for name in names(closure) if len(find(closure, name).pickled) < 100} == {"helper"}
    assert holds(closure, "helper") == {"alias"}


def test_what_two_names_share_belongs_to_one_of_them(notebook) -> None:
    notebook.cell("a = [1]\nb = {'a': a}\ndef train(): return b, a\ndef other(): return b")
    closure = Captured(notebook["train"]).closure()
    assert names(closure) == ["train", "a", "b"]
    assert (holds(closure, "a"), holds(closure, "b")) == (set(), {"a"})
    assert names(Captured(notebook["other"]).closure()) == ["other", "a", "b"]


def test_a_closures_cell_that_two_functions_share_belongs_to_one_of_them(notebook) -> None:
    notebook.cell(
        "def make():\n    n = 0\n    def get(): return n\n    def add():\n        nonlocal n\n        n += 1\n"
        "    return get, add\nget, add = make()\ndef train(): add(); return get()"
    )
    closure = Captured(notebook["train"]).closure()
    assert names(closure) == ["train", "add", "get"]
    assert (holds(closure, "add"), holds(closure, "get")) == (set(), {"add"})


def test_a_registry_and_the_classes_in_it_may_know_each_other(notebook) -> None:
    notebook.cell("class Base:\n    known = {}\n    def __init_subclass__(cls): Base.known[cls.__name__] = cls")
    notebook.cell("class One(Base): pass\nclass Two(Base): pass\ndef train(): return Base.known")
    captured = Captured(notebook["train"])
    closure = captured.closure()
    assert sorted(names(closure)) == ["Base", "One", "Two", "train"]
    assert {name: holds(closure, name) for name in ("Base", "One", "Two")} == {
        "Base": {"One", "Two"},
        "One": {"Base"},
        "Two": {"Base"},
    }
    assert find(closure, "One").first == {"Base"}
    assert captured.closure() is closure


def test_names_of_arguments_are_captured_with_what_they_need(notebook) -> None:
    notebook.cell("class Base: pass\nclass Config(Base):\n    class Inner: pass")
    closure = Captured.of_names(["Config.Inner", "Config"], notebook.names).closure()
    assert (closure.entry, names(closure)) == ("", ["Base", "Config"])
    with pytest.raises(NameError, match="'nothing' is not defined"):
        Captured.of_names(["nothing"], notebook.names).closure()


def test_a_module_that_only_this_process_has_goes_by_value(notebook, replica) -> None:
    module = types.ModuleType("made_here")
    exec("def f(): return 41 + one\none = 1", module.__dict__)
    notebook.names.update(f=module.f)  # type: ignore[attr-defined]
    notebook.cell("one = 100\ndef train(): return f(), one")
    closure = Captured(notebook["train"]).closure()
    assert isinstance(find(closure, "f"), ValueDefinition)
    assert replica.define(closure)() == (42, 100)


def test_a_task_that_calls_itself_has_its_function_and_itself(notebook) -> None:
    notebook.names.update(env=Env())
    notebook.cell("@env.task\ndef train(n):\n    return train(n - 1) if n else 0")
    closure = Captured(notebook["train"].func).closure()
    assert (closure.entry, sorted(names(closure))) == ("train:", ["train", "train:"])
    assert find(closure, "train").type_name == "test_capture.Task"
    assert (find(closure, "train:").type_name, holds(closure, "train:")) == ("function", {"train"})


# --- the user's lines


def test_text_inside_an_if_keeps_its_indentation_and_place(notebook) -> None:
    notebook.cell("if True:\n    def train():\n        return '''a\nb'''\n")
    definition = find(Captured(notebook["train"]).closure(), "train")
    (text,) = definition.texts
    assert (text.first_line, text.lines) == (2, "    def train():\n        return '''a\nb'''\n")
    assert definition.places == ((text.filename, 2),)


def test_lines_of_a_library_stay_at_home(notebook, texts: Texts) -> None:
    lines = "@dataclass\nclass Config:\n    lr: float = 1.0\n    def f(self): pass\n"
    notebook.cell(f"from dataclasses import dataclass\n{lines}")
    assert texts(Captured.of_names(["Config"], notebook.names).closure()) == {"Config": lines}


def test_the_cell_names_of_ipykernel_are_understood(notebook, texts: Texts) -> None:
    from ipykernel.compiler import XCachingCompiler

    notebook.shell.compile = XCachingCompiler()
    notebook.cell("class Config:\n    def f(self): pass\ndef train(): return Config")
    closure = Captured(notebook["train"]).closure()
    assert texts(closure) == {
        "train": "def train(): return Config\n",
        "Config": "class Config:\n    def f(self): pass\n",
    }
    assert "ipykernel_" in find(closure, "train").texts[0].filename


# --- what only its text can make again


def test_a_class_of_a_notebook_is_found_in_the_newest_cell_that_can_have_made_it(notebook, texts: Texts) -> None:
    notebook.cell("import threading\nclass Config:\n    lr = 1\n    lock = threading.Lock()")
    notebook.cell("class Config:\n    lr = 2\n    lock = threading.Lock()")
    assert "lr = 2\n" in texts(Captured.of_names(["Config"], notebook.names).closure())["Config"]
    notebook.cell("class Config:\n    lr = 1\n    lock = threading.Lock()")
    assert "lr = 1\n" in texts(Captured.of_names(["Config"], notebook.names).closure())["Config"]


def test_a_class_with_methods_is_found_by_them(notebook, texts: Texts) -> None:
    notebook.cell(
        "import threading\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Config:\n    lr: float\n    lock = threading.Lock()\n    def f(self): pass"
    )
    old = notebook["Config"]
    notebook.cell("class Config:\n    lock = threading.Lock()\n    def f(self): return 'new'")
    assert "lr: float" in texts(Captured.of_names(["Config"], {**notebook.names, "Config": old}).closure())["Config"]


def test_a_product_of_a_decorator_is_found_by_its_name(notebook, texts: Texts) -> None:
    notebook.cell(
        "import threading\ndef twice(f):\n    lock = threading.Lock()\n    def inner():\n"
        "        with lock: return f() * 2\n    return inner"
    )
    notebook.cell("@twice\ndef helper(): return 1\ndef train(): return helper()")
    closure = Captured(notebook["train"]).closure()
    assert isinstance(find(closure, "helper"), SourceDefinition)
    assert texts(closure)["helper"] == "@twice\ndef helper(): return 1\n"


def test_a_class_that_a_library_makes_goes_by_its_text(notebook, texts: Texts, tmp_path, monkeypatch) -> None:
    (tmp_path / "library_of_models.py").write_text("class Meta(type): pass\nclass Model(metaclass=Meta): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    notebook.cell("from library_of_models import Model\nclass Config(Model):\n    lr: int = 1")
    closure = Captured.of_names(["Config"], notebook.names).closure()
    assert isinstance(find(closure, "Config"), SourceDefinition)
    assert texts(closure) == {"Config": "class Config(Model):\n    lr: int = 1\n"}


def test_decorators_defaults_annotations_bases_and_inner_scopes_are_searched(notebook) -> None:
    notebook.cell(f"{LOCKED}\na, b, c, d, e, f, g, h = range(8)\nclass Base: pass\ndef mark(value): return locked")
    notebook.cell(
        "class Model(Base):\n"
        "    size, lock = c, threading.Lock()\n"
        "    def go(self): return [[d for _ in range(e)] for _ in ()]\n"
        "@mark(a)\n"
        'def train(x: f = b) -> "g":\n'
        "    def inner(): return lambda: h\n"
        "    return Model, inner\n"
    )
    found = set(names(Captured(notebook["train"]).closure()))
    assert found == {*"abcdefgh", "Base", "Model", "functools", "locked", "mark", "threading", "train"}


def test_a_class_body_may_read_a_global_of_the_same_name(notebook) -> None:
    notebook.cell("import threading\nepochs = 3\nsize = 1")
    notebook.cell(
        "class Config:\n    lock = threading.Lock()\n    epochs = epochs\n    @property\n"
        "    def size(self): pass\n    @size.setter\n    def size(self, v): pass"
    )
    closure = Captured.of_names(["Config"], notebook.names).closure()
    assert sorted(names(closure)) == ["Config", "epochs", "threading"]


def test_what_is_executed_comes_after_what_it_needs(notebook) -> None:
    notebook.cell(f"{LOCKED}\nclass Base: pass\ndef note(x): return [x]\ndef mark(f): note(f); return locked(f)")
    notebook.cell("@mark\ndef helper(x=Base): pass\ndef train(): return helper()")
    order = names(Captured(notebook["train"]).closure())
    assert max(order.index("mark"), order.index("Base")) < order.index("helper")


def test_compiler_flags_are_kept(notebook) -> None:
    notebook.cell(f"from __future__ import annotations\n{LOCKED}")
    notebook.cell("@locked\ndef train(x: Missing): pass\nclass Config:\n    x: int = 1\n    lock = threading.Lock()")
    closure = Captured.of_names(["train", "Config"], notebook.names).closure()
    assert find(closure, "train").flags
    assert find(closure, "Config").flags


def test_executed_text_inside_an_if_keeps_its_indentation_and_place(notebook) -> None:
    notebook.cell(LOCKED)
    notebook.cell("if True:\n    @locked\n    def train():\n        return '''a\nb'''\n")
    text = find(Captured(notebook["train"]).closure(), "train").text
    assert (text.first_line, text.lines) == (2, "    @locked\n    def train():\n        return '''a\nb'''\n")


def test_our_decorator_and_those_above_it_are_cut_and_lines_stay_right(notebook) -> None:
    notebook.names.update(env=Env())
    notebook.cell(f"{LOCKED}\ndef keep(f): return f")
    notebook.cell("@keep\n@env.task(\n    cache=True,\n)\n@locked\ndef train():\n    return 1")
    text = find(Captured(notebook["train"].func).closure(), "train:").text
    assert (text.lines, text.first_line) == ("@locked\ndef train():\n    return 1\n", 5)


def test_a_task_that_is_executed_is_made_a_task_again(notebook) -> None:
    notebook.names.update(env=Env())
    notebook.cell(f"{LOCKED}\n@env.task\n@locked\ndef train(n):\n    return train(n - 1) if n else 0")
    closure = Captured(notebook["train"].func).closure()
    assert closure.entry == "train:"
    assert find(closure, "train").wrap is not None
    assert find(closure, "train:").wrap is None


def test_what_was_set_on_a_class_since_goes_along_with_its_text(notebook, replica) -> None:
    notebook.cell("import threading\nclass Config:\n    lr, kind = 1, 'a'\n    lock = threading.Lock()")
    notebook.cell("Config.lr = 2\nConfig.size = lambda self: self.lr\ndef train(): return Config().size(), Config.kind")
    closure = Captured(notebook["train"]).closure()
    assert isinstance(find(closure, "Config"), SourceDefinition)
    assert replica.define(closure)() == (2, "a")


def test_defaults_of_what_is_executed_are_those_of_the_notebook(notebook, replica) -> None:
    notebook.cell(f"{LOCKED}\nrate, made = 1, []\ndef make(): made.append(1); return len(made)")
    notebook.cell("@locked\ndef train(x=rate, *, y=make()): return x, y\nrate = 2")
    assert replica.define(Captured(notebook["train"]).closure())() == (1, 1)


# --- what has changed


def test_an_unchanged_closure_is_the_same_object_and_costs_microseconds(notebook) -> None:
    notebook.cell("a, b, c = 1, 'x', (2.5, None)\ndef helper(): return a, b\ndef train(): return helper(), c, len")
    captured = Captured(notebook["train"])
    first = captured.closure()

    def each() -> float:
        start = time.perf_counter()
        for _ in range(100):
            assert captured.closure() is first
        return (time.perf_counter() - start) / 100

    assert min(each() for _ in range(20)) < 20e-6, "it takes 1 us"


def test_rebinding_or_changing_a_global_changes_only_that_definition(notebook) -> None:
    notebook.cell("config = {'lr': 1}\nrate = 1\ndef train(): return config, rate")
    captured = Captured(notebook["train"])
    first = captured.closure()
    notebook["config"]["lr"] = 2
    second = captured.closure()
    assert differing(second, first) == {"config"}
    notebook.cell("rate = 2")
    third = captured.closure()
    assert differing(third, second) == {"rate"}
    assert third.beyond(second.manifest).definitions == (find(third, "rate"),)


def test_a_name_that_appears_later_is_noticed_and_so_is_one_that_goes(notebook) -> None:
    notebook.cell("def train(): return helper(), len")
    captured = Captured(notebook["train"])
    assert names(captured.closure()) == ["train"]
    notebook.cell("def helper(): pass\nlen = 3")
    assert sorted(names(captured.closure())) == ["helper", "len", "train"]
    notebook.cell("del helper, len")
    assert names(captured.closure()) == ["train"]


def test_rebinding_a_captured_name_is_noticed_without_an_entry(notebook) -> None:
    notebook.cell("rate = 1")
    captured = Captured.of_names(["rate"], notebook.names)
    first = captured.closure()
    notebook.cell("rate = 2")
    assert captured.closure().digest != first.digest


def test_an_edited_helper_changes_its_mark_alone_but_an_edited_base_its_subclass_too(notebook) -> None:
    notebook.cell("def helper(): return 1\nclass Base: x = 1")
    notebook.cell("class Derived(Base): pass\ndef train(): return helper(), Derived()")
    captured = Captured(notebook["train"])
    first = captured.closure()
    notebook.cell("def helper(): return 2")
    second = captured.closure()
    assert differing(second, first) == {"helper"}
    notebook.cell("class Base: x = 2\nclass Derived(Base): pass")
    assert differing(captured.closure(), second) == {"Base", "Derived"}


def test_a_base_that_was_made_anew_is_not_yet_that_of_its_subclass(notebook) -> None:
    notebook.cell("class Base: x = 1\nclass Derived(Base): pass\ndef train(): return Derived.x")
    captured = Captured(notebook["train"])
    assert sorted(names(captured.closure())) == ["Base", "Derived", "train"]
    notebook.cell("class Base: x = 2")
    assert sorted(names(captured.closure())) == ["Derived", "train"]


def test_what_is_set_on_a_base_changes_the_base_alone(notebook) -> None:
    notebook.cell("class Base: x = 1\nclass Derived(Base): pass\ndef train(): return Derived()")
    captured = Captured(notebook["train"])
    first = captured.closure()
    notebook.cell("Base.x = 2")
    second = captured.closure()
    assert differing(second, first) == {"Base"}
    assert find(second, "Base").identity == find(first, "Base").identity != ""


def test_a_change_that_another_functions_capture_saw_first_is_still_seen(notebook) -> None:
    notebook.cell("config = [1]\ndef one(): return config\ndef two(): return config")
    one, two = Captured(notebook["one"]), Captured(notebook["two"])
    first = one.closure().manifest["config"]
    assert two.closure().manifest["config"] == first
    notebook["config"].append(2)
    second = two.closure().manifest["config"]
    assert one.closure().manifest["config"] == second != first


def test_an_object_that_came_to_share_a_part_with_another_is_captured_again(notebook) -> None:
    notebook.cell("a, b = [1], {'a': None}\ndef train(): return a, b")
    captured = Captured(notebook["train"])
    assert holds(captured.closure(), "b") == set()
    notebook.cell("b['a'] = a")
    assert holds(captured.closure(), "b") == {"a"}
    notebook.cell("a = [1]")
    assert holds(captured.closure(), "b") == set()


# --- marks


def test_the_same_text_again_is_of_the_same_content_wherever_it_stands(notebook) -> None:
    notebook.cell("def train(): return 1")
    first = Captured(notebook["train"]).closure().manifest["train"]
    notebook.cell("# a comment\n\n\ndef train(): return 1")
    second = Captured(notebook["train"]).closure().manifest["train"]
    assert second.content == first.content
    assert second.epoch != first.epoch  # it is another function


def test_an_equal_list_that_was_made_anew_begins_another_epoch(notebook) -> None:
    notebook.cell("seen = [1]\ndef train(): return seen")
    captured = Captured(notebook["train"])
    first = captured.closure().manifest["seen"]
    notebook.cell("seen = [1]")
    second = captured.closure().manifest["seen"]
    assert second.content == first.content
    assert second.epoch != first.epoch
    notebook.cell("seen.append(2)\nseen.pop()")
    assert captured.closure().manifest["seen"] == second


@pytest.mark.parametrize("value", ["1", "'text'", "(1, ('a', None))", "frozenset({1})", "[1]", "None"])
def test_a_name_that_a_cell_has_bound_again_begins_another_epoch(notebook, value: str) -> None:
    notebook.cell(f"value = {value}\ndef train(): return value")
    captured = Captured(notebook["train"])
    first = captured.closure()
    notebook.cell("other = 1")
    assert captured.closure() is first
    notebook.cell(f"value = {value}")
    second = captured.closure()
    assert differing(second, first) == {"value"}
    assert second.manifest["value"].content == first.manifest["value"].content


def test_what_a_decorator_is_about_to_bind_is_of_no_process(notebook) -> None:
    notebook.cell("seen = [1]\ndef load(): return seen")
    made = functools.partial(notebook["load"])
    closure = Captured.of_names(["load"], notebook.names, made={"load": made}).closure()
    assert find(closure, "load").type_name == "functools.partial"
    assert {mark.epoch for mark in closure.manifest.values()} == {""}


def test_only_what_holds_a_cache_marks_all_that_it_uses(notebook) -> None:
    notebook.cell("import functools\nk = 1\ndef helper(): return k\n@functools.cache\ndef load(): return helper()")
    notebook.cell("def train(): return load()")
    captured = Captured(notebook["train"])
    first = captured.closure()
    assert {name for name, mark in first.manifest.items() if mark.deep} == {"load"}
    notebook.cell("k = 2")
    second = captured.closure()
    assert differing(second, first) == {"k", "load"}
    assert second.manifest["load"].content == first.manifest["load"].content
    assert second.manifest["load"].epoch == first.manifest["load"].epoch


def test_what_holds_an_object_of_another_definition_goes_along_with_it(notebook) -> None:
    notebook.cell("class Base: pass\nclass Derived(Base): pass\nrate = 1\ndef train(): return Derived(), rate")
    closure = Captured(notebook["train"]).closure()
    has = dict(closure.manifest)
    assert closure.beyond(has).definitions == ()
    del has["Base"]
    assert names(closure.beyond(has)) == ["Base", "Derived"]
    assert closure.beyond(has).digest == closure.digest
    assert closure.beyond({**has, "Base": None}).definitions == ()  # it is the preload's


def test_the_entry_is_always_the_notebooks_own(notebook) -> None:
    notebook.cell("rate = 1\ndef train(): return rate")
    closure = Captured(notebook["train"]).closure()
    assert names(closure.beyond({"train": None, "rate": None})) == ["train"]


# --- what goes wrong


def test_a_value_that_cannot_be_pickled_names_itself_and_the_line(notebook) -> None:
    notebook.cell("import sqlite3\nconn = sqlite3.connect(':memory:')")
    notebook.cell("# opens nothing\ndef train():\n    return conn.execute('')")
    with pytest.raises(ArgumentNotSerializable, match='"conn" cannot be sent') as caught:
        Captured(notebook["train"]).closure()
    assert (caught.value.type_name, caught.value.line) == ("sqlite3.Connection", 3)
    notebook["conn"].close()


def test_a_large_value_warns_once_and_names_the_cure(notebook) -> None:
    notebook.cell("data = bytearray(11 * 2**20)\ndef train(): return len(data)")
    captured = Captured(notebook["train"])
    with pytest.warns(UserWarning, match=r'"data" is 11 MiB .* "train".* preload'):
        captured.closure()
    notebook["data"][0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured.closure()


def test_names_that_a_command_or_a_magic_expands_are_mentioned(notebook) -> None:
    notebook.cell("def f():\n    !echo $name {files[0]} {size + 1} '{\"k\": 1}' $$HOME\n    %env A={other}")
    assert mentioned(notebook["f"].__code__).names == {"get_ipython", "name", "files", "size", "other"}
    assert mentioned(compile("print('$name {files}')", "", "exec")).names == {"print"}
