"""The user's modules that a process has loaded, and the texts that they were loaded from."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from flyte_jupyter import modules

NAMES = ("mine", "mine_too", "bag", "bag.one", "bag.two")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield tmp_path
    for name in NAMES:
        sys.modules.pop(name, None)
    modules.current()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    importlib.invalidate_caches()
    return path


def loaded(name: str) -> modules.Loaded:
    found = modules.loaded(name)
    assert found is not None
    return found


def test_a_module_is_there_with_its_text_as_soon_as_it_is_imported(folder: Path) -> None:
    before = modules.current()
    path = write(folder, "mine.py", "# éöü\r\nK = 1\r\n")
    importlib.import_module("mine")
    assert modules.current() is not before
    assert modules.current() is modules.current()
    assert (loaded("mine").text, loaded("mine").file) == ("# éöü\nK = 1\n", str(path))
    assert modules.read(modules.current().described)["mine"] == (str(path), loaded("mine").digest)
    del sys.modules["mine"]
    assert modules.loaded("mine") is None


@pytest.mark.parametrize("name", ["json", "pytest", "flyte_jupyter.modules", "sys", "no_such_module"])
def test_modules_of_python_of_packages_and_of_ours_are_not_the_users(name: str) -> None:
    assert modules.loaded(name) is None


def test_an_edit_alone_changes_nothing_and_loading_it_anew_does(folder: Path) -> None:
    write(folder, "mine.py", "def f(): return 1\n")
    mine = importlib.import_module("mine")
    before = modules.current()
    write(folder, "mine.py", "def f(): return 2222\n")
    assert modules.current() is before
    importlib.reload(mine)
    assert modules.current() is not before
    assert (loaded("mine").text, loaded("mine").is_known) == ("def f(): return 2222\n", True)


@pytest.mark.parametrize("text", ["1/0\n", "def f(: pass\n"])
def test_a_text_that_raises_leaves_the_module_what_it_was(text: str, folder: Path) -> None:
    write(folder, "mine.py", "def f(): return 1\n")
    mine = importlib.import_module("mine")
    known = loaded("mine")
    write(folder, "mine.py", text)
    with pytest.raises((ZeroDivisionError, SyntaxError)):
        importlib.reload(mine)
    assert loaded("mine") is known


def test_what_was_edited_before_anybody_looked_is_not_known(folder: Path) -> None:
    write(folder, "mine.py", "def f(): return 1\n")
    write(folder, "mine_too.py", "def f(): return 1\n")
    write(folder, "bag/__init__.py", "def f(): return 1\n")
    for name in ("mine", "mine_too", "bag"):
        importlib.import_module(name)
    write(folder, "mine.py", "def f(): return 2222\n")
    write(folder, "mine_too.py", "def f(): return 1  # as it was\n")
    assert not loaded("mine").is_known
    assert loaded("mine_too").is_known
    assert loaded("bag").is_known


def test_a_name_that_means_another_module_by_now_is_noticed(folder: Path) -> None:
    write(folder, "mine.py", "K = 1\n")
    importlib.import_module("mine")
    assert loaded("mine").text == "K = 1\n"
    del sys.modules["mine"]
    write(folder, "mine.py", "K = 2222\n")
    importlib.import_module("mine")
    assert loaded("mine").text == "K = 2222\n"


def test_what_can_be_reached_is_what_texts_import(folder: Path) -> None:
    write(folder, "bag/__init__.py", "")
    write(folder, "bag/one.py", "from . import two\n")
    write(folder, "bag/two.py", "def f():\n    import mine, json\n")
    write(folder, "mine.py", "")
    write(folder, "mine_too.py", "")
    for name in NAMES:
        importlib.import_module(name)
    table = modules.current()
    assert table.reachable(["bag.one"]) == ["bag", "bag.one", "bag.two", "mine"]
    assert table.reachable(["bag.nothing"]) == ["bag"]
    assert table.reachable(["mine_too", "json"]) == ["mine_too"]


@pytest.mark.parametrize(
    ("text", "package", "names"),
    [
        ("import a.b as c, d", "", ["a.b", "d"]),
        ("def f():\n    from a import b", "", ["a"]),
        ("    import indented", "", ["indented"]),
        ("from .. import x", "a.b.c", ["a.b"]),
        ("from .x import y", "a.b", ["a.b.x"]),
        ("from . import y", "", []),
        ("no python", "", []),
    ],
)
def test_imports_are_found_wherever_they_stand(text: str, package: str, names: list[str]) -> None:
    assert list(modules.imports_of(text, package)) == names


def test_what_may_be_a_submodule_is_named_if_asked(folder: Path) -> None:
    assert list(modules.imports_of("from a import b, c", attributes=True)) == ["a", "a.b", "a.c"]


def test_a_text_that_is_not_in_the_file_is_what_was_noted(folder: Path) -> None:
    path = write(folder, "mine.py", "K = 1\n")
    importlib.import_module("mine")
    modules.note("mine", "K = 2\n", str(path))
    assert (loaded("mine").text, loaded("mine").digest) == ("K = 2\n", modules.digest_of_text("K = 2\n"))


def test_a_file_changes_its_stamp_and_a_lost_one_has_none(folder: Path) -> None:
    path = write(folder, "mine.py", "K = 1\n")
    before = modules.stamp_of(str(path))
    os.utime(path, (1, 1))
    assert modules.stamp_of(str(path)) != before
    path.unlink()
    assert (modules.stamp_of(str(path)), modules.text_in(str(path))) == (None, None)


def test_what_no_file_has_is_left_to_its_importer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(folder / "zipped.zip", "w") as archive:
        archive.writestr("mine.py", "K = 1\n")
    monkeypatch.syspath_prepend(str(folder / "zipped.zip"))
    gone = write(folder, "mine_too.py", "K = 1\n")
    for name in ("mine", "mine_too"):
        importlib.import_module(name)
    gone.unlink()
    assert (modules.loaded("mine"), modules.loaded("mine_too")) == (None, None)


def test_a_file_that_is_removed_later_leaves_what_was_loaded(folder: Path) -> None:
    path = write(folder, "mine.py", "def f(): return 1\n")
    importlib.import_module("mine")
    known = loaded("mine")
    path.unlink()
    write(folder, "mine_too.py", "")
    importlib.import_module("mine_too")
    assert loaded("mine") is known


def test_strange_things_among_the_modules_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    monkeypatch.setitem(sys.modules, "mine_too", None)
    assert modules.loaded("mine") is None
    assert modules.loaded("mine_too") is None
