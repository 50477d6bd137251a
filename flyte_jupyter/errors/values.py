"""FJ4xx: names, arguments and results that do not travel."""

from __future__ import annotations

from collections.abc import Iterable
from pickle import PicklingError

from .flyte import RuntimeUserError
from .ours import PoolError


class NameNotOnReplica(PoolError, RuntimeUserError, NameError):
    """A task uses a name that its replica does not have.

    Args:
        missing: The name.
        replica: Where it is missing: `"gpu[1]"`.
        preload: The names that the pool's preload made.
        size: Roughly how large the notebook's value is, in bytes.
    """

    # `missing`, because NameError's own `name` makes Python suggest similar names from our frames.
    fj_code = "FJ401"

    def __init__(
        self,
        missing: str,
        replica: str,
        preload: Iterable[str] = (),
        size: int | None = None,
        in_notebook: bool = True,
    ) -> None:
        names = tuple(preload)
        only = f"task cells run elsewhere and see only the preload names: {', '.join(names) or '(none)'}"
        size_text = "" if size is None else f" ({_size(size)})"
        pool = replica.partition("[")[0]
        self._explain(
            "user",
            f'The name "{missing}" is not defined on replica {replica}.',
            f"It exists in your notebook; {only}." if in_notebook else f"{only[0].upper()}{only[1:]}.",
            (f"Pass it to the task as an argument{size_text}, or create" if in_notebook else "Create")
            + f" it in a function under `@flyte_jupyter.pool(env).preload`, where env is {pool!r}.",
            worker=replica,
        )
        self.missing = missing
        self.replica = replica
        self.preload = names
        self.size = size


class ArgumentNotSerializable(PoolError, RuntimeUserError, TypeError, PicklingError):
    """An argument, or a value that the task's code uses, cannot be copied to another process.

    Args:
        argument: The name of the argument or variable.
        type_name: Its type, with the module: `"sqlite3.Connection"`.
        line: The line of the task that uses it.
        cause: What the pickler said.
    """

    fj_code = "FJ402"

    def __init__(self, argument: str, type_name: str, line: int | None = None, cause: str | None = None) -> None:
        uses = "" if line is None else f" (line {line} uses it)"
        said = f" The pickler said: {cause}" if cause else ""
        noun = type_name.rpartition(".")[2].lower()
        make = "Open the connection" if "connection" in noun else "Create it"
        self._explain(
            "user",
            f'"{argument}" cannot be sent to the pool.',
            f"{type_name} objects cannot be copied to another process{uses}.{said}",
            f"{make} inside the task, or put it into the preload code.",
        )
        self.argument = argument
        self.type_name = type_name
        self.line = line
        self.cause = cause

    @classmethod
    def for_value(cls, *, path: str, type_name: str, problem: str) -> ArgumentNotSerializable:
        """Return the error for the part of an argument at `path`, such as `config["db"]`."""
        return cls(path, type_name, cause=problem)


class ResultNotSerializable(PoolError, RuntimeUserError, TypeError, PicklingError):
    """A task's result cannot be copied back.

    Args:
        type_name: The class of the value.
        result: The name of the result, if it has one.
        cause: What the pickler said; without it, the class is one that this notebook does not have.
    """

    fj_code = "FJ403"

    def __init__(self, type_name: str, result: str | None = None, cause: str | None = None) -> None:
        name = type_name.rpartition(".")[2]
        named = f' "{result}"' if result else ""
        if cause is None:
            why = f"Its class `{name}` was defined in the task cell and does not exist in this notebook."
            do = f"Return plain data, or define `{name}` in a module or in a notebook cell that the task uses."
        else:
            why = f"{type_name} objects cannot be copied to another process. The pickler said: {cause}"
            do = "Return plain data: numbers, text, arrays, or lists and dictionaries of them."
        self._explain("user", f"The result{named} cannot be brought back.", why, do)
        self.type_name = type_name
        self.result = result
        self.cause = cause

    @classmethod
    def for_value(cls, *, path: str, type_name: str, problem: str) -> ResultNotSerializable:
        """Return the error for the part of a result at `path`, such as `result["model"].lock`."""
        return cls(type_name, None if path == "result" else path, problem)


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
