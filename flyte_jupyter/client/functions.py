"""What a task can be made of, and what to tell whoever gives something else. `@env.task` asks once for each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..errors import with_notes


def task_function(given: Any, at: FrameType) -> Callable[..., Any]:
    """Return the function that a task is to be made of: what is given, or what a staticmethod holds.

    It is no class, and its name and parameters are known. So wrappers such as those of `functools.cache`, and
    methods of an object or a class, are functions, too.

    Args:
        given: What `@env.task` stands on.
        at: Where that is called.

    Raises:
        TypeError: It is something else, or a method in the body of its class. A note says what to write instead.
    """
    function = given.__func__ if isinstance(given, staticmethod) else given
    _check(function)
    first = first_parameter(function)
    if first and _is_own_method(function, at):
        raise no_method(function, first)
    return function


def first_parameter(function: Callable[..., Any]) -> str | None:
    """Return `self` or `cls` if the function's first parameter is called so: an object or a class is its argument."""
    name = next(iter(inspect.signature(function).parameters), None)
    return name if name in ("self", "cls") else None


def no_method(function: Callable[..., Any], first: str) -> TypeError:
    """Return the error for a method whose task stands in its class as it is: a task is not bound to an object."""
    other = "staticmethod" if first == "self" else "classmethod"
    without = f" and leave {first} out" if first == "self" else ""
    return _refusal(
        f"method {function.__qualname__}",
        f"nothing would give it its {first}",
        f"Write a function outside of the class that takes the object; or put @{other} above @env.task{without}.",
    )


def _is_own_method(function: Callable[..., Any], at: FrameType) -> bool:
    # A function's first line is that of its outermost decorator, and a decorator is called on its own line, in the
    # body of the class. classmethod or property, further out, give the task its first argument, and such tasks work.
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and (owner, code.co_firstlineno) == (at.f_code.co_qualname, at.f_lineno)


def _check(given: Any) -> None:
    name = getattr(given, "__name__", None)
    if isinstance(given, type):
        raise _refusal(f"class {name}", "a task is a function", "Write a function that makes the object.")
    this = f"this {type(given).__name__} object"
    if not callable(given):
        if inspect.isawaitable(given) or inspect.isgenerator(given) or inspect.isasyncgen(given):
            do = f"Give the function itself, without its parentheses: task({name or 'function'})."
            raise _refusal(this, "a call has returned it", do)
        do = "Write @env.task, or @env.task(option=...), above a function; options have names."
        if hasattr(type(given), "__get__"):
            do = "Put @env.task below the other decorator, directly above the def."
        raise _refusal(this, "it cannot be called", do)
    if not isinstance(name, str):
        do = "Write a function that makes or receives the object, and calls it."
        if isinstance(given, functools.partial):
            called = getattr(given.func, "__name__", "it")
            do = f"Write a function that calls {called}(), or give flyte.map a partial of the task of {called}."
        raise _refusal(this, "it can be called, but it is no function", do)
    try:
        inspect.signature(given)
    except (TypeError, ValueError):
        do = f"Write a function that calls it: def with_{name}(...): return {name}(...)"
        raise _refusal(name, "its parameters are not known", do) from None


def _refusal(what: str, why: str, do: str) -> TypeError:
    return with_notes(TypeError(f"Cannot make a task of {what}: {why}."), do)
