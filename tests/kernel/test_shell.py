"""The names of a cell: found by what runs in its context, and by nothing else."""

from __future__ import annotations

import contextvars
import gc
import pickle
import sys
import weakref
from types import ModuleType
from typing import Any

import pytest

from flyte_jupyter.kernel import outputs
from flyte_jupyter.kernel.shell import Layer, here, route_main


def in_layer(layer: Layer, function: Any, *args: Any) -> Any:
    def run() -> Any:
        layer.enter()
        return function(*args)

    return contextvars.Context().run(run)


def layer(**names: Any) -> Layer:
    return Layer(ModuleType("__main__"), names)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    plain = ModuleType("__main__")
    plain.__dict__["x"] = "plain"
    monkeypatch.setitem(sys.modules, "__main__", route_main(plain))
    return plain


def look() -> tuple[Any, Any]:
    module: Any = sys.modules["__main__"]
    return module.x, vars(module).get("x")


def test_main_is_the_module_of_the_cell_that_looks(main: ModuleType) -> None:
    one, two = layer(x=1), layer(x=2)
    assert in_layer(one, look) == (1, 1)
    assert in_layer(two, look) == (2, 2)
    assert look() == ("plain", "plain")


def test_what_is_set_in_main_is_set_in_the_cell(main: ModuleType) -> None:
    one = layer()

    def change() -> None:
        module: Any = sys.modules["__main__"]
        module.y = 1
        del module._
        assert "y" in dir(module)

    in_layer(one, change)
    assert (one.names["y"], "_" in one.names, "y" in vars(main)) == (1, False, False)


def test_a_class_of_the_cell_is_pickled_by_its_name(main: ModuleType) -> None:
    one = layer()
    exec("class A: pass", one.names)
    made = in_layer(one, pickle.dumps, one.names["A"]())
    assert type(in_layer(one, pickle.loads, made)) is one.names["A"]
    with pytest.raises(AttributeError):
        pickle.loads(made)


def test_a_context_that_lives_on_does_not_keep_the_names() -> None:
    one = layer()
    kept = in_layer(one, contextvars.copy_context)
    watched = weakref.ref(one)
    assert kept.run(here) is one
    del one
    gc.collect()
    assert watched() is None
    assert kept.run(here) is None


def test_the_users_own_underscore_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("builtins._", raising=False)  # which a doctest leaves, and which is not ours either
    one = layer()
    for value in (1, 2, 3, 4):
        one.remember(value)
    assert [one.names[name] for name in ("_", "__", "___")] == [4, 3, 2]
    one.names["_"] = "mine"
    one.remember(5)
    assert [one.names[name] for name in ("_", "__", "___")] == ["mine", 3, 2]


def test_nobody_is_asked_outside_a_call() -> None:
    with pytest.raises(outputs.StdinNotImplementedError, match="not available in tasks"):
        outputs.ask("name? ", False)
