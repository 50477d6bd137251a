"""What a task can be made of, and what to tell whoever gives something else. `@env.task` asks once for each."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from ..errors import with_notes


def check_function(given: Any) -> None:
    """Check that a task can be made of it: it is no class, and its name and parameters are known.

    So wrappers such as those of `functools.cache`, and methods of an object or a class, are functions, too.

    Raises:
        TypeError: It is something else. A note says what to write instead.
    """
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
