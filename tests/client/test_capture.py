from __future__ import annotations

import pickle
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from flyte_jupyter.client.capture import Captured
from flyte_jupyter.core.definitions import Closure, ImportDefinition, SourceDefinition, ValueDefinition
from flyte_jupyter.errors import ArgumentNotSerializable

Sources = Callable[[Closure], dict[str, str]]


def names(closure: Closure) -> list[str]:
    return [definition.name for definition in closure.definitions]


def find(closure: Closure, name: str) -> Any:
    return next(definition for definition in closure.definitions if definition.name == name)


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


def test_a_function_takes_with_it_what_it_mentions_and_nothing_else(notebook, sources: Sources) -> None:
    notebook.cell("import math\nscale = 2\nother = 3\ndef helper(x): return x * scale")
    notebook.cell("def train(x):\n    return helper(math.floor(x)), print, undefined")
    closure = Captured(notebook["train"]).closure()
    assert sorted(names(closure)) == ["helper", "math", "scale", "train"]
    assert sources(closure)["helper"] == "def helper(x): return x * scale\n"
    assert find(closure, "math") == ImportDefinition("math", find(closure, "math").digest, "math")


def test_a_function_of_a_module_is_imported(notebook) -> None:
    closure = Captured(threading.stack_size).closure()
    assert names(closure) == ["stack_size:"]
    notebook.cell("from textwrap import dedent as d\ndef train(): return d")
    definition = find(Captured(notebook["train"]).closure(), "d")
    assert (definition.module, definition.attribute) == ("textwrap", "dedent")


def test_names_of_ipython_stay_at_home_but_the_users_own_open_goes(notebook, sources: Sources) -> None:
    notebook.cell("1 + 1\ndef train(): return In, Out, _, _i, _1, get_ipython, exit, open, display")
    assert names(Captured(notebook["train"]).closure()) == ["train"]
    notebook.cell("def open(path): return path")
    assert sorted(sources(Captured(notebook["train"]).closure())) == ["open", "train"]


def test_decorators_defaults_annotations_bases_and_inner_scopes_are_searched(notebook) -> None:
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
    found = set(names(Captured(notebook["train"]).closure()))
    assert found == {*"abcdefgh", "Base", "Model", "mark", "train"}


def test_a_class_body_may_read_a_global_of_the_same_name(notebook) -> None:
    notebook.cell("epochs = 3\nsize = 1")
    notebook.cell(
        "class Config:\n    epochs = epochs\n    @property\n"
        "    def size(self): pass\n    @size.setter\n    def size(self, v): pass"
    )
    assert sorted(names(Captured.of_names(["Config"], notebook.names).closure())) == ["Config", "epochs"]


def test_what_is_executed_comes_after_what_it_needs(notebook) -> None:
    notebook.cell("class Base:\n    def make(self): return Derived()\nclass Derived(Base): pass")
    notebook.cell("def note(x): return [x]\ndef mark(f): note(f); return f\n@mark\ndef helper(x=Base): pass")
    notebook.cell("def train(): return helper(), Derived")
    order = names(Captured(notebook["train"]).closure())
    assert order.index("Base") < order.index("Derived")
    assert max(order.index("note"), order.index("mark"), order.index("Base")) < order.index("helper")


def test_a_submodule_that_was_imported_is_imported_there(notebook) -> None:
    notebook.cell("import xml.dom.minidom\ndef train(): return xml.dom.minidom.parseString")
    closure = Captured(notebook["train"]).closure()
    assert names(closure) == ["xml.dom", "xml.dom.minidom", "train", "xml"]


def test_a_class_of_a_notebook_is_found_in_the_newest_cell_that_can_have_made_it(notebook, sources) -> None:
    notebook.cell("class Config:\n    lr = 1")
    notebook.cell("class Config:\n    lr = 2")
    assert sources(Captured.of_names(["Config"], notebook.names).closure())["Config"].endswith("lr = 2\n")
    notebook.cell("class Config:\n    lr = 1")
    assert sources(Captured.of_names(["Config"], notebook.names).closure())["Config"].endswith("lr = 1\n")


def test_a_class_with_methods_is_found_by_them(notebook, sources: Sources) -> None:
    notebook.cell("from dataclasses import dataclass\n@dataclass\nclass Config:\n    lr: float\n    def f(self): pass")
    old = notebook["Config"]
    notebook.cell("class Config:\n    def f(self): return 'new'")
    assert "lr: float" in sources(Captured.of_names(["Config"], {**notebook.names, "Config": old}).closure())["Config"]


def test_an_enum_and_a_dataclass_without_methods_go_by_source(notebook, sources: Sources) -> None:
    notebook.cell("import enum\nfrom dataclasses import dataclass, field")
    notebook.cell("class Color(enum.Enum):\n    RED = 1")
    notebook.cell(
        "@dataclass\nclass Config:\n    tags: list = field(default_factory=list)\n    color: Color = Color.RED"
    )
    found = sources(Captured.of_names(["Config"], notebook.names).closure())
    assert found["Config"].startswith("@dataclass\nclass Config:")
    assert found["Color"].startswith("class Color")


def test_a_product_of_a_decorator_is_found_by_its_name(notebook, sources: Sources) -> None:
    notebook.cell("def twice(f):\n    def inner(): return f() * 2\n    return inner")
    notebook.cell("@twice\ndef helper(): return 1\ndef train(): return helper()")
    assert sources(Captured(notebook["train"]).closure())["helper"].startswith("@twice\ndef helper")


def test_an_alias_stays_an_alias(notebook) -> None:
    notebook.cell("def helper(): pass\nalias = helper\ndef train(): return alias")
    closure = Captured(notebook["train"]).closure()
    assert isinstance(find(closure, "helper"), SourceDefinition)
    assert isinstance(find(closure, "alias"), ValueDefinition)
    assert len(find(closure, "alias").pickled) < 200


def test_compiler_flags_are_kept(notebook) -> None:
    notebook.cell("from __future__ import annotations\ndef train(x: Missing): pass\nclass Config:\n    x: int = 1")
    assert find(Captured(notebook["train"]).closure(), "train").flags
    assert find(Captured.of_names(["Config"], notebook.names).closure(), "Config").flags


def test_text_inside_an_if_keeps_its_indentation_and_place(notebook) -> None:
    notebook.cell("if True:\n    def train():\n        return '''a\nb'''\n")
    definition = find(Captured(notebook["train"]).closure(), "train")
    assert definition.first_line == 2
    assert definition.lines == "    def train():\n        return '''a\nb'''\n"


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
    assert {name for name, _ in set(second.manifest) - set(first.manifest)} == {"config"}
    notebook.cell("rate = 2")
    third = captured.closure()
    assert {name for name, _ in set(third.manifest) - set(second.manifest)} == {"rate"}
    assert third.beyond(dict(second.manifest)).definitions == (find(third, "rate"),)


def test_a_name_that_appears_later_is_noticed(notebook) -> None:
    notebook.cell("def train(): return helper(), len")
    captured = Captured(notebook["train"])
    assert names(captured.closure()) == ["train"]
    notebook.cell("def helper(): pass\nlen = 3")
    assert sorted(names(captured.closure())) == ["helper", "len", "train"]


def test_an_edited_helper_changes_its_digest_alone_but_an_edited_base_its_subclass_too(notebook) -> None:
    notebook.cell("def helper(): return 1\nclass Base: x = 1")
    notebook.cell("class Derived(Base): pass\ndef train(): return helper(), Derived()")
    captured = Captured(notebook["train"])
    first = dict(captured.closure().manifest)
    notebook.cell("def helper(): return 2")
    second = dict(captured.closure().manifest)
    assert {name for name in first if first[name] != second[name]} == {"helper"}
    notebook.cell("class Base: x = 2")
    third = dict(captured.closure().manifest)
    assert {name for name in first if third[name] != second[name]} == {"Base", "Derived"}


def test_moving_a_function_to_another_cell_is_no_change(notebook) -> None:
    notebook.cell("def train(): return 1")
    first = Captured(notebook["train"]).closure()
    notebook.cell("# a comment\n\n\ndef train(): return 1")
    assert Captured(notebook["train"]).closure().digest == first.digest


def test_our_decorator_and_those_above_it_are_cut_and_lines_stay_right(notebook) -> None:
    notebook.names.update(env=Env())
    notebook.cell("def keep(f): return f")
    notebook.cell("@keep\n@env.task(\n    cache=True,\n)\n@keep\ndef train():\n    return 1")
    definition = find(Captured(notebook["train"].func).closure(), "train:")
    assert (definition.lines, definition.first_line) == ("@keep\ndef train():\n    return 1\n", 5)


def test_a_task_that_calls_itself_has_its_function_and_itself(notebook) -> None:
    notebook.names.update(env=Env())
    notebook.cell("@env.task\ndef train(n):\n    return train(n - 1) if n else 0")
    closure = Captured(notebook["train"].func).closure()
    assert (closure.entry, sorted(names(closure))) == ("train:", ["train", "train:"])
    assert find(closure, "train").wrap is not None
    assert find(closure, "train:").wrap is None


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


def test_names_that_the_preload_makes_are_not_sent(notebook) -> None:
    notebook.cell("model = object()\ndef train(): return model")
    assert names(Captured(notebook["train"], skip={"model"}).closure()) == ["train"]


def test_names_of_arguments_are_captured_with_what_they_need(notebook) -> None:
    notebook.cell("class Base: pass\nclass Config(Base):\n    class Inner: pass")
    closure = Captured.of_names(["Config.Inner", "Config"], notebook.names).closure()
    assert (closure.entry, names(closure)) == ("", ["Base", "Config"])
    with pytest.raises(NameError, match="'nothing' is not defined"):
        Captured.of_names(["nothing"], notebook.names).closure()


def test_rebinding_a_captured_name_is_noticed_without_an_entry(notebook) -> None:
    notebook.cell("rate = 1")
    captured = Captured.of_names(["rate"], notebook.names)
    first = captured.closure()
    notebook.cell("rate = 2")
    assert captured.closure().digest != first.digest


def test_a_module_that_only_this_process_has_goes_by_value(notebook) -> None:
    module = types.ModuleType("made_here")
    exec("def f(): return 41 + one\none = 1", module.__dict__)
    notebook.names.update(f=module.f)  # type: ignore[attr-defined]
    notebook.cell("one = 100\ndef train(): return f(), one")
    closure = Captured(notebook["train"]).closure()
    assert isinstance(find(closure, "f"), ValueDefinition)
    assert cloudpickle.loads(find(closure, "f").pickled)() == 42
    assert pickle.loads(find(closure, "one").pickled) == 100


def test_the_cell_names_of_ipykernel_are_understood(notebook, sources: Sources) -> None:
    from ipykernel.compiler import XCachingCompiler

    notebook.shell.compile = XCachingCompiler()
    notebook.cell("class Config: pass\ndef train(): return Config")
    closure = Captured(notebook["train"]).closure()
    assert sources(closure) == {"train": "def train(): return Config\n", "Config": "class Config: pass\n"}
    assert "ipykernel_" in find(closure, "train").filename
