"""Parts of other packages that are not meant for us, and that a replica needs: all of them, and nowhere else.

`tests/test_seams.py` has a test for each name, which says what has moved. Nothing is imported here before it is
used: a replica hides ipykernel's debugger before it imports ipykernel.
"""

from __future__ import annotations

import abc
import asyncio
import atexit
import functools
import importlib
import sys
import types
from typing import Any

# --- ipykernel


def hide_debugger() -> None:
    """Let ipykernel find no debugger. It opens TCP listeners and answers anybody, and is slow to import."""
    hidden = types.ModuleType("ipykernel.debugger")
    hidden._is_debugpy_available = False  # type: ignore[attr-defined]
    sys.modules["ipykernel.debugger"] = hidden


def is_busy(subshells: Any, subshell: str) -> bool:
    """Whether something runs in it; `subshells` is ipykernel's manager of them."""
    return bool(subshells.get_subshell_asyncio_lock(subshell).locked())


def delete_subshell(subshells: Any, subshell: str) -> None:
    """End one that is not busy, as a request on the control channel would."""
    subshells.control_to_shell_channel.from_socket.send_json({"type": "delete", "subshell_id": subshell})
    subshells.control_to_shell_channel.from_socket.recv_json()


def bind(app: Any, socket: Any, port: int) -> int:
    """Bind a socket where the application's connection file says; its port."""
    return int(app._bind_socket(socket, port))


# --- IPython


def display_for_good(shell: Any) -> None:
    """Set the display hook, which IPython sets and takes back around each cell."""
    shell.display_trap.__enter__()


def forget_last(shell: Any) -> None:
    """Let go of the last traceback and result, which hold a cell's values."""
    shell.InteractiveTB.tb = shell.SyntaxTB.last_syntax_error = shell.last_execution_result = None


def check_display(publisher: Any, data: Any, metadata: Any) -> None:
    """Raise what IPython raises if these are no dicts."""
    publisher._validate_data(data, metadata)


# --- tornado


def asyncio_loop(io_loop: Any) -> asyncio.AbstractEventLoop:
    """The loop that tornado's stands on."""
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop
    return loop


# --- cloudpickle


def reduce_class(cls: type) -> Any:
    """How cloudpickle takes a class along by value."""
    from cloudpickle.cloudpickle import _dynamic_class_reduce

    return _dynamic_class_reduce(cls)


def reduce_builtin_class(cls: type) -> Any:
    """How cloudpickle names a class of `builtins` that is not there under its name."""
    from cloudpickle.cloudpickle import _class_reduce

    return _class_reduce(cls)


def reduce_function(pickler: Any, function: types.FunctionType) -> Any:
    """How cloudpickle takes a function along by value, for a pickler that `prepare_pickler` has seen."""
    from cloudpickle import Pickler

    return Pickler._dynamic_function_reduce(pickler, function)


def prepare_pickler(pickler: Any) -> None:
    """Give it what cloudpickle's reducers ask their pickler for."""
    from cloudpickle import Pickler

    if "globals_ref" not in vars(pickler):
        pickler.globals_ref = {}
        pickler._function_getnewargs = functools.partial(Pickler._function_getnewargs, pickler)
        # Code, cells, properties and other parts of them.
        pickler.dispatch_table = {**Pickler.dispatch_table, **pickler.dispatch_table}


def teach_type(cloudpickle: Any, cls: type, reduce: Any) -> None:
    """Have this copy of cloudpickle (joblib has one of its own) reduce instances of `cls` so."""
    cloudpickle.Pickler._dispatch_table[cls] = reduce


def class_tracker(cls: type) -> str:
    """The id that cloudpickle gives a class: it is the same in all processes."""
    from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_CLASS

    return str(_DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls, cls))


# --- CPython


def importing() -> Any:
    """The module whose `_find_and_load` is called for each import of what is not loaded yet."""
    return importlib._bootstrap


def complete_abstract(cls: abc.ABCMeta) -> None:
    """Begin the registry of an abstract class that `type.__new__` has made."""
    abc._abc_init(cls)  # type: ignore[attr-defined]


def run_exit_functions() -> None:
    """Call all that was registered with `atexit`, and wait for no thread."""
    atexit._run_exitfuncs()
