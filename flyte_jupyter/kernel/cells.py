"""Runs a cell as IPython runs a cell, but several at once: in names of its own, for the client that sent it.

It uses the parts of IPython's `run_cell` that know no current cell: its input transformers, its compiler's flags, its
events and its display hook. History, execution counts and a stored traceback are what it leaves out.
"""

from __future__ import annotations

import __future__  # isort: skip

import ast
import asyncio
import builtins
import contextvars
import functools
import gc
import inspect
import io
import linecache
import pickle
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult

from .. import errors
from ..core import payload
from ..core.cells import CellReply, CellRequest, Scope
from . import seams
from .namespace import NotebookModule
from .namespaces import Namespaces
from .process import Process
from .shell import Layer, ReplicaShell
from .surroundings import Surroundings, changed, changes, put, take

COMPILED_CELLS: Final = 512
"""How many different cells are kept compiled."""


SessionKey = tuple[str, str]
"""A process and "", or "" and a name that several may know."""


@dataclass(slots=True)
class _Session:
    """Names that outlive a cell, and the processes for which they do."""

    layer: Layer
    users: dict[str, Process] = field(default_factory=dict)


class Finished:
    """A cell that has run, until its reply is on its way: pickling needs the cell's names."""

    def __init__(self, reply: CellReply, layer: Layer, notebook: NotebookModule) -> None:
        self._reply = reply
        self._layer = layer
        self._notebook = notebook

    def dump(self) -> payload.Pickled:
        """The reply as bytes.

        Raises:
            ResultNotSerializable: A value that is wanted back cannot be pickled, or is of a class of the cell's own.
        """
        try:
            return _dump(self._reply, self._notebook)
        except Exception as problem:
            for name, value in self._reply.pulled.items():
                try:
                    _dump(value, self._notebook)
                except _Homeless as homeless:
                    raise errors.ResultNotSerializable(homeless.args[0], name) from None
                except Exception as cause:
                    path, part = payload.find_unpicklable(value, name)
                    raise errors.ResultNotSerializable.for_value(
                        path=path, type_name=type(part).__qualname__, problem=f"{type(cause).__name__}: {cause}"
                    ) from None
            raise problem


@dataclass(frozen=True, slots=True)
class Begun:
    """A cell with a top-level `await`: the rest of it runs as a task of the loop."""

    rest: Coroutine[Any, Any, Finished]


class Cells:
    """The cells of one replica, and the names that outlive a cell."""

    def __init__(
        self,
        shell: ReplicaShell,
        namespaces: Namespaces,
        loop: asyncio.AbstractEventLoop,
        surroundings: Surroundings,
    ) -> None:
        self._shell = shell
        self._surroundings = surroundings
        self._namespaces = namespaces
        self._loop = loop
        self._sessions: dict[SessionKey, _Session] = {}
        self._raw = shell.raw_layer()
        hidden = shell.user_ns_hidden
        self._always = {name: hidden[name] for name in _ALWAYS if name in hidden}
        self._compile = functools.lru_cache(COMPILED_CELLS)(self._compile_anew)

    def function(self, verb: str, notebook: NotebookModule, sessions: set[SessionKey]) -> Callable[..., Any]:
        """The function of a CALL that says "cell" or "names"; `sessions` gets the sessions that its connection uses."""
        return functools.partial(self.names if verb == "names" else self.run, notebook, sessions)

    def run(self, notebook: NotebookModule, sessions: set[SessionKey], request: CellRequest) -> Finished | Begun:
        """Run it, or only begin, if the rest must be awaited."""
        layer = self._layer(notebook, sessions, request.scope, request.session)
        layer.enter()
        layer.names.update(request.push)
        for name in request.definitions:
            layer.names[name] = notebook.attribute(name)
        try:
            compiled = self._compiled(request, layer)
        except BaseException:
            self._drop(request, layer)
            raise
        if compiled.awaits:
            return Begun(self._run_async(compiled, request, layer, notebook))
        with self._lasting(request.scope, layer, compiled.awaits), self._around(request, layer):
            for code in compiled.parts:
                exec(code, layer.names)
        return _finished(request, layer, notebook)

    async def _run_async(
        self, compiled: _Compiled, request: CellRequest, layer: Layer, notebook: NotebookModule
    ) -> Finished:
        with self._lasting(request.scope, layer, compiled.awaits), self._around(request, layer):
            for code in compiled.parts:
                made = eval(code, layer.names)
                if code.co_flags & inspect.CO_COROUTINE:
                    await made
        return _finished(request, layer, notebook)

    def names(self, notebook: NotebookModule, sessions: set[SessionKey], scope: Scope, session: str) -> list[str]:
        """The names that a cell would find, for completion."""
        hidden = self._shell.user_ns_hidden
        return sorted(
            name
            for name, value in self._layer(notebook, sessions, scope, session).names.items()
            if name[:2] != "__" and name != "_" and (name not in hidden or hidden[name] is not value)
        )

    # --- names

    def _layer(self, notebook: NotebookModule, sessions: set[SessionKey], scope: Scope, session: str) -> Layer:
        if scope == "replica":
            return self._raw
        if scope == "fresh":
            return self._new_layer()
        # A session with a name is for all notebooks that know it; without one, it is one process's.
        key = ("", session) if session else (notebook.process.token or notebook.notebook_id, "")
        sessions.add(key)
        found = self._sessions.get(key)
        if found is not None and notebook.process.token not in found.users:
            found.users = {token: process for token, process in found.users.items() if not process.has_ended()}
        if found is None or not found.users:
            found = self._sessions[key] = _Session(self._new_layer())
        found.users[notebook.process.token] = notebook.process
        return found.layer

    def leave(self, process: str, sessions: Iterable[SessionKey]) -> None:
        """End these sessions for that process. The names of one that nobody else uses go, and so does their memory."""
        over = False
        for key in sessions:
            found = self._sessions.get(key)
            if found is not None:
                found.users.pop(process, None)
                if not found.users:
                    del self._sessions[key]
                    over = True
        if over:
            self._loop.call_soon(gc.collect)  # functions and classes refer to the names that they are among

    def process_ended(self, process: str) -> None:
        """It uses no session any more."""
        self.leave(process, list(self._sessions))

    def show_preload(self) -> None:
        """The preload has run: a console that is attached by hand finds its names, too."""
        self._raw.names.update(self._preloaded())

    def _new_layer(self) -> Layer:
        return Layer(ModuleType("__main__"), {"__builtins__": builtins, **self._always, **self._preloaded()})

    def _preloaded(self) -> dict[str, Any]:
        return {name: value for name, value in self._namespaces.preload.names.items() if name[:2] != "__"}

    def _drop(self, request: CellRequest, layer: Layer) -> None:
        """After a cell: nothing of it may hold memory, unless it is meant to."""
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        seams.forget_last(self._shell)
        # A function refers to the names that it is one of: only the collector frees those. Without any, the names
        # are held by the layer and its module alone, and go with them.
        if request.scope == "fresh" and sys.getrefcount(layer.names) > _HELD_ANYHOW:
            self._loop.call_soon(gc.collect)

    def _lasting(self, scope: Scope, layer: Layer, awaits: bool) -> ExitStack:
        """Settings of the process that a cell makes, such as a warning filter, last as long as its names do.

        For a session that is: in all of its cells, as in a notebook of its own, and nowhere else. Those of a cell in
        the replica's own names stay there, as what a console sets.
        """
        stack = ExitStack()
        if scope == "fresh":
            return stack
        if scope == "replica":
            stack.enter_context(self._surroundings.by_hand())
            return stack

        def alone() -> bool:
            return not awaits or self._surroundings.tasks == 1

        attributable, before, outside = alone(), take(), contextvars.copy_context()
        if layer.changes:
            put(changed(before, layer.changes))
        for variable, value in layer.variables.items():
            variable.set(value)

        def over() -> None:
            if attributable and alone():  # else another task may have made them
                layer.changes = changes(before, take())
            layer.variables = {
                variable: value
                for variable, value in contextvars.copy_context().items()
                if outside.get(variable, layer) is not value
            }

        stack.callback(over)
        return stack

    def _around(self, request: CellRequest, layer: Layer) -> ExitStack:
        """Do as IPython does before a cell; and as it does after one, at the end.

        It is no generator, nor is what lasts: `contextlib` would write to the error, which a frozen class refuses.
        """
        events = self._shell.events
        watched = events.callbacks["pre_run_cell"] or events.callbacks["post_run_cell"]
        info = ExecutionInfo(request.code, False, request.silent, True, None) if watched else None
        result = None if info is None else ExecutionResult(info)
        sys.displayhook = self._shell.displayhook
        events.trigger("pre_execute")
        if info is not None:
            events.trigger("pre_run_cell", info)

        def over(kind: object, error: BaseException | None, tb: object) -> None:
            events.trigger("post_execute")
            if result is not None:
                result.error_in_exec = error
                events.trigger("post_run_cell", result)
            self._drop(request, layer)

        stack = ExitStack()
        stack.push(over)
        return stack

    # --- code

    def _compiled(self, request: CellRequest, layer: Layer) -> _Compiled:
        shell, code = self._shell, request.code
        begin = len(code) - len(code.lstrip())
        blank = code.count("\n", 0, begin)  # IPython drops these lines, and all others would move up
        transformed = shell.transform_cell(code[code.rfind("\n", 0, begin) + 1 :])
        # Lines of a magic that goes on below may have been joined. Else what the user wrote is where it was written.
        joined = not code.startswith("%%", begin) and _lines(code) != blank + _lines(transformed)
        _show_lines(request.filename, request.first_line, "\n" * blank + transformed if joined else code)
        interactivity = "none" if request.silent else shell.ast_node_interactivity
        compile_ = self._compile_anew if shell.ast_transformers else self._compile
        compiled = compile_(transformed, request.filename, request.first_line + blank, layer.flags, interactivity)
        layer.flags = compiled.flags
        return compiled

    def _compile_anew(self, code: str, filename: str, first_line: int, flags: int, interactivity: str) -> _Compiled:
        text = "\n" * (first_line - 1) + code
        flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = compile(text, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        tree = self._shell.transform_ast(tree)
        if ";" in code and self._shell.displayhook.semicolon_at_end_of_expression(code):
            interactivity = "none"
        run, shown = _split(tree.body, interactivity)
        parts: list[CodeType] = []
        for node, mode in ((ast.Module(run, []), "exec"), (ast.Interactive(shown), "single")):
            if node.body:
                made = compile(node, filename, mode, flags, dont_inherit=True)
                flags |= made.co_flags & _FUTURE
                parts.append(made)
        return _Compiled(tuple(parts), flags & _FUTURE)


@dataclass(frozen=True, slots=True)
class _Compiled:
    parts: tuple[CodeType, ...]
    flags: int
    """The `from __future__` imports in force after it."""

    @property
    def awaits(self) -> bool:
        return any(part.co_flags & inspect.CO_COROUTINE for part in self.parts)


_ALWAYS: Final = ("get_ipython", "open", "In", "Out", "_ih", "_oh", "_dh")
_FUTURE: Final = functools.reduce(
    int.__or__, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names)
)
_empty: Final = Layer(ModuleType("empty"), {})
_HELD_ANYHOW: Final = sys.getrefcount(_empty.names)
"""References to the names of a layer that nobody else has: its own, its module's, and the question's."""


def _split(nodes: list[ast.stmt], interactivity: str) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """The statements that are run, and those that are run and displayed. Source: IPython's `run_ast_nodes`."""
    last = nodes[-1] if nodes else None
    if interactivity == "all":
        return [], nodes
    if interactivity == "last_expr_or_assign" and not isinstance(last, ast.Expr):
        target = last.targets[0] if isinstance(last, ast.Assign) and len(last.targets) == 1 else None
        target = last.target if isinstance(last, ast.AugAssign | ast.AnnAssign) else target
        if isinstance(target, ast.Name):
            shown = ast.copy_location(ast.Expr(ast.copy_location(ast.Name(target.id, ast.Load()), target)), target)
            return nodes, [shown]
    if interactivity == "last" or (interactivity != "none" and isinstance(last, ast.Expr)):
        return nodes[:-1], nodes[-1:]
    return nodes, []


def _lines(text: str) -> int:
    return text.rstrip("\n").count("\n")


def _show_lines(filename: str, first_line: int, text: str) -> None:
    """Let tracebacks, warnings and `inspect` find the cell's text, on the lines on which the user sees it."""
    lines = ["\n"] * (first_line - 1) + [f"{line}\n" for line in text.removesuffix("\n").split("\n")]
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)


def _finished(request: CellRequest, layer: Layer, notebook: NotebookModule) -> Finished:
    names = layer.names
    pulled = {name: names[name] for name in request.pull if name in names}
    return Finished(CellReply(pulled, tuple(name for name in request.pull if name not in names)), layer, notebook)


class _Homeless(Exception):
    """A class that only this replica knows."""


def _dump(value: object, notebook: NotebookModule) -> payload.Pickled:
    keep = payload._BufferSink()
    with suppress(Exception):
        data = pickle.dumps(value, 5, buffer_callback=keep)
        if b"__main__" not in data:
            return payload.Pickled(data, keep.views)
    keep = payload._BufferSink()
    file = io.BytesIO()
    _pickler()(file, notebook, protocol=5, buffer_callback=keep).dump(value)
    return payload.Pickled(file.getvalue(), keep.views)


@functools.cache
def _pickler() -> Any:
    """cloudpickle's pickler, which takes functions of a cell along. Made late: the import is slow."""
    import cloudpickle

    class ReplyPickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: io.BytesIO, notebook: NotebookModule, **kwargs: Any) -> None:
            super().__init__(file, **kwargs)
            self._notebook = notebook

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type | FunctionType) and obj.__module__ == "__main__":
                names = self._notebook.ask(obj.__qualname__.partition(".")[0])
                if payload.follow(names, obj.__qualname__) is obj:
                    return payload.named, (obj.__qualname__,)
                # It could take classes along, too; but instances of such a copy are of no class that the notebook has.
                if isinstance(obj, type):
                    raise _Homeless(obj.__qualname__)
            return super().reducer_override(obj)

    return ReplyPickler
