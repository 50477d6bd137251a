from __future__ import annotations

import inspect
import linecache
import pickle
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from flyte_jupyter.core.definitions import (
    Closure,
    Definition,
    ImportDefinition,
    SourceDefinition,
    ValueDefinition,
    digest_of,
    is_notebook_module,
    module_at_client,
    notebook_module_name,
)
from flyte_jupyter.kernel.namespace import Namespaces, NotebookModule


def source(
    lines: str, *, first_line: int = 1, filename: str = "<cell>", name: str = "", wrap: Any = None
) -> Definition:
    symbol = re.findall(r"(?:def|class) (\w+)", lines)[0]
    wrapped = None if wrap is None else pickle.dumps(wrap)
    digest = digest_of(lines, wrapped)
    return SourceDefinition(name or symbol, digest, lines, filename, first_line, symbol, wrap=wrapped)


def value(name: str, obj: object) -> Definition:
    return ValueDefinition(name, digest_of(pickle.dumps(obj)), pickle.dumps(obj), type(obj).__name__)


def closure(*definitions: Definition) -> Closure:
    return Closure.of(definitions[0].name, definitions)


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    namespaces = Namespaces()
    yield namespaces
    namespaces.forget("a")
    namespaces.forget("b")


@pytest.fixture
def notebook(namespaces: Namespaces) -> NotebookModule:
    return namespaces.notebook("a")


def as_list(obj: object) -> list[object]:
    return [obj]


def test_a_closure_is_known_once_it_is_defined(notebook: NotebookModule) -> None:
    wanted = closure(source("def f(): return n\n"), value("n", 3))
    assert notebook.lookup(wanted.digest) is None
    assert notebook.missing(wanted.manifest) == ["f", "n"]
    entry = notebook.define(wanted)
    assert entry() == 3
    assert notebook.lookup(wanted.digest) is entry
    assert notebook.missing(wanted.manifest) == []
    assert notebook.digests() == dict(wanted.manifest)


def test_only_what_differs_is_applied(notebook: NotebookModule) -> None:
    notebook.define(closure(source("def f(): return g(), seen\n"), source("def g(): return 1\n"), value("seen", [])))
    seen = notebook.names["seen"]
    second = closure(source("def f(): return g(), seen\n"), source("def g(): return 2\n"), value("seen", []))
    assert notebook.missing(second.manifest) == ["g"]
    entry = notebook.define(second.beyond(notebook.digests()))
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
        notebook.define(whole.only({"f"}))
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


def test_classes_belong_to_the_notebooks_module_and_are_pickled_by_reference(
    notebook: NotebookModule,
) -> None:
    made = notebook.define(closure(source("class Config: pass\n")))
    assert made.__module__ == notebook_module_name("a") == notebook.name
    assert type(pickle.loads(pickle.dumps(made()))) is made
    assert module_at_client(made.__module__) == "__main__"
    assert module_at_client("numpy") == "numpy"
    assert is_notebook_module("flyte_preload")
    assert not is_notebook_module("notebook_utilities")


def test_an_unpickler_finds_the_notebooks_names_under_main(namespaces: Namespaces, notebook: NotebookModule) -> None:
    outer = notebook.define(closure(source("class Outer:\n    class Inner: pass\n")))
    find = namespaces.find_class(notebook)
    assert find("__main__", "Outer.Inner") is outer.Inner
    assert find(notebook.name, "Outer") is outer
    assert find("collections", "OrderedDict").__name__ == "OrderedDict"
    with pytest.raises(AttributeError, match="Missing"):
        find("__main__", "Missing")


def test_two_notebooks_do_not_meet(namespaces: Namespaces) -> None:
    first = namespaces.notebook("a").define(closure(source("def f(): return n\n"), value("n", 1)))
    second = namespaces.notebook("b").define(closure(source("def f(): return n\n"), value("n", 2)))
    assert (first(), second()) == (1, 2)
    assert namespaces.notebook("a") is namespaces.notebook("a")
    namespaces.forget("a")
    assert notebook_module_name("a") not in sys.modules


def test_a_failing_import_says_for_what_and_a_second_attempt_goes_on(notebook: NotebookModule) -> None:
    bad = ImportDefinition("np", "d", "no_such_module_xyz")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_xyz") as caught:
        notebook.define(closure(source("def f(): pass\n"), bad))
    assert caught.value.__notes__ == ["`import no_such_module_xyz`, which the task needs, failed on the replica."]
    assert notebook.digests().keys() == {"f"}


def test_an_error_while_defining_has_the_users_frame(notebook: NotebookModule) -> None:
    definition = source("def f(x=1 / 0): pass\n", first_line=5, filename="<bad cell>")
    with pytest.raises(ZeroDivisionError) as caught:
        notebook.define(closure(definition))
    frame = traceback.extract_tb(caught.tb)[-1]
    assert (frame.filename, frame.lineno, frame.line) == ("<bad cell>", 5, "def f(x=1 / 0): pass")


def test_a_dotted_import_binds_nothing(notebook: NotebookModule) -> None:
    dotted = ImportDefinition("xml.dom", "d", "xml.dom")
    plain = ImportDefinition("maximum", "e", "xml", "dom.minidom.Node")
    entry = notebook.define(
        closure(source("def f(): return maximum\n"), dotted, ImportDefinition("m", "g", "xml.dom.minidom"), plain)
    )
    assert entry().__name__ == "Node"
    assert "xml.dom" not in notebook.names


def test_names_that_running_the_preload_made_win(namespaces: Namespaces) -> None:
    namespaces.define_preload(closure(source("def load():\n    global model\n    model = 'warm'\n")))()
    notebook = namespaces.notebook("a")
    wanted = closure(source("def f(): return model\n"), value("model", "cold"))
    assert notebook.missing(wanted.manifest) == ["f"]
    assert notebook.define(wanted.beyond(notebook.digests()))() == "warm"


def test_an_equal_definition_is_shared_with_the_preload_and_another_is_not(namespaces: Namespaces) -> None:
    cached = "@__import__('functools').cache\ndef load(): return object()\n"
    loader = namespaces.define_preload(closure(source(cached), source("def helper(): return 1\n")))
    same = closure(source("def f(): return load, helper()\n"), source(cached), source("def helper(): return 2\n"))
    notebook = namespaces.notebook("a")
    entry = notebook.define(same)
    assert entry()[0] is loader
    assert entry()[1] == 2
    assert namespaces.preload.names["helper"]() == 1


def test_what_the_preload_made_anew_wins_over_its_own_definition(namespaces: Namespaces) -> None:
    text = "def load():\n    global config\n    config = 'loaded'\n"
    namespaces.define_preload(closure(source(text), value("config", "default")))()
    notebook = namespaces.notebook("a")
    assert notebook.define(closure(source("def f(): return config\n"), value("config", "default")))() == "loaded"


def test_an_entry_is_never_taken_from_the_preload(namespaces: Namespaces) -> None:
    namespaces.preload.names["f"] = "the preload's"
    notebook = namespaces.notebook("a")
    wanted = closure(source("def f(): return 'mine'\n"))
    assert notebook.missing(wanted.manifest, wanted.entry) == ["f"]
    assert notebook.define(wanted.beyond(notebook.digests()))() == "mine"


def test_a_closure_without_an_entry_gives_the_module(notebook: NotebookModule) -> None:
    wanted = Closure.of("", [value("n", 1)])
    assert notebook.define(wanted) is notebook.module
    assert notebook.lookup(wanted.digest) is notebook.module
    assert notebook.attribute("n") == 1


def test_digests_cannot_be_confused_by_where_a_part_ends() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of(b"1") != digest_of("1") != digest_of(1)
