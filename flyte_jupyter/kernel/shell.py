"""The replica's IPython shell. There is one, and many calls at once: its names are those of the call that looks.

A cell's names are a `Layer`. A context variable says which one is meant, so concurrent cells do not see each other's,
and `%magics`, `get_ipython().user_ns` and `__main__` mean the right ones everywhere, also in a cell's threads.
"""

from __future__ import annotations

import builtins
import sys
import weakref
from contextvars import ContextVar
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type

from ..core.cells import PARENT
from ..core.context import current
from ..core.definitions import ORIGIN
from ..core.frames import Output
from .outputs import OutputSink, Router, TaskDisplayHook, TaskDisplayPublisher, formatting_result

if TYPE_CHECKING:
    from collections.abc import Mapping


class Layer:
    """The names of a cell, or of the cells of a session; `module` is their `__main__`."""

    __slots__ = ("__weakref__", "_shown", "changes", "flags", "module", "names", "variables")

    def __init__(self, module: ModuleType, names: Mapping[str, Any]) -> None:
        self.module = module
        self.names: dict[str, Any] = vars(module)
        self.flags = 0  # the `from __future__` that its cells have imported
        self.changes: Mapping[int, Any] = {}  # that a session's cells have made to the process; see `surroundings`
        self.variables: Mapping[ContextVar[Any], Any] = {}  # the same for context variables
        self._shown: tuple[Any, Any, Any] = ("", "", "")
        self.names.update(zip(_SHOWN, self._shown, strict=True))
        self.names.update(names)

    def enter(self) -> None:
        """Have this context, and all that starts in it, look here. The caller keeps the layer alive."""
        # Weak: a library's thread that a cell happens to start lives on, and must not keep the cell's tensors.
        _layer.set(weakref.ref(self))

    def remember(self, value: object) -> None:
        """Set `_`, `__` and `___`, unless they are the user's own. Source: IPython's display hook."""
        mine = all(self.names.get(name, shown) is shown for name, shown in zip(_SHOWN, self._shown, strict=True))
        if mine and "_" not in vars(builtins):  # gettext puts its own there
            self._shown = (value, *self._shown[:2])
            self.names.update(zip(_SHOWN, self._shown, strict=True))


_SHOWN: Final = ("_", "__", "___")
_layer: Final[ContextVar[weakref.ref[Layer] | None]] = ContextVar("flyte_jupyter_layer", default=None)


_expanding: Final[ContextVar[dict[str, Any] | None]] = ContextVar("flyte_jupyter_expanding", default=None)
"""The names that `$name` in a command may mean, while one is replaced in this context."""


preloading: Final[ContextVar[ModuleType | None]] = ContextVar("flyte_jupyter_preloading", default=None)
"""The module of the preload, while it runs in this context."""


def here() -> Layer | None:
    """The layer of the cell that runs in this context; None elsewhere, and once the cell is over."""
    reference = _layer.get()
    return None if reference is None else reference()


def _main() -> ModuleType | None:
    """The `__main__` of what runs in this context: a cell's own, a task's notebook, the preload."""
    layer = here()
    if layer is not None:
        return layer.module
    task = current.get()
    return preloading.get() if task is None else task.main


def route_main(plain: ModuleType) -> ModuleType:
    """A `__main__` that is that of whoever asks, so that classes can be pickled; `plain` where nothing runs.

    A notebook is asked for what its call does not take along: a file may hold objects of any of its classes.
    """

    class MainModule(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            module = _main() or plain
            task = current.get()
            origin = None if task is None or task.main is None else getattr(task.main, ORIGIN, None)
            if origin is None or (module is not origin.module and name in vars(module)):
                return getattr(module, name)
            names = origin.ask(name)
            if name in names:
                return names[name]
            if names is origin.names:
                return getattr(module, name)
            raise AttributeError(f"module '__main__' has no attribute {name!r}", name=name, obj=module)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(_main() or plain, name, value)

        def __delattr__(self, name: str) -> None:
            delattr(_main() or plain, name)

        def __dir__(self) -> list[str]:
            return dir(_main() or plain)

    return MainModule(plain.__name__)


class ReplicaShell(ZMQInteractiveShell):
    """The kernel's shell, which knows whose names, displays and errors it handles."""

    display_pub_class = Type(TaskDisplayPublisher)
    displayhook_class = Type(TaskDisplayHook)
    router: Router | None = None

    @property
    def user_ns(self) -> dict[str, Any]:
        names = _expanding.get()
        if names is not None:
            return names
        main = _main()
        return self._user_ns if main is None else vars(main)

    @user_ns.setter
    def user_ns(self, names: dict[str, Any]) -> None:
        self._user_ns = names

    @property
    def user_module(self) -> ModuleType:
        return _main() or self._user_module

    @user_module.setter
    def user_module(self, module: ModuleType) -> None:
        self._user_module = module

    def var_expand(self, cmd: str, depth: int = 0, *formatter: Any, **named: Any) -> str:
        """A function that a cell has got from the notebook finds `$name` among the notebook's names, too."""
        frame: FrameType | None = sys._getframe()
        for _ in range(depth + 1):
            frame = frame and frame.f_back
        names = {} if frame is None or ORIGIN not in frame.f_globals else frame.f_globals
        token = _expanding.set({**self.user_ns, **names})
        try:
            expanded: str = super().var_expand(cmd, depth + 1, *formatter, **named)
        finally:
            _expanding.reset(token)
        return expanded

    def remember(self, value: object) -> None:
        """A cell has shown this value."""
        layer = here()
        if layer is not None:
            layer.remember(value)

    def raw_layer(self) -> Layer:
        """The shell's own names: those of a console that is attached by hand."""
        return Layer(self._user_module, {})

    def get_parent(self) -> Any:
        # An Output widget asks for the message that its front end is running; only the client knows.
        return super().get_parent() if self._sink() is None else {"header": {"msg_id": PARENT}}

    def set_parent(self, parent: Any) -> None:
        if self._sink() is None:
            super().set_parent(parent)

    def ask_exit(self) -> None:
        """`exit` ends a cell, and not the replica."""
        if self._sink() is not None:
            raise SystemExit
        super().ask_exit()

    def payloadpage_page(self, strg: Any, start: int = 0, screen_lines: int = 0, pager_cmd: str | None = None) -> None:
        """`name?` shows its text below the cell: no pager is open where the call came from."""
        if self._sink() is None:
            super().payloadpage_page(strg, start, screen_lines, pager_cmd)
        else:
            self.display_pub.publish(strg if isinstance(strg, dict) else {"text/plain": strg})

    def set_next_input(self, text: str, replace: bool = False) -> None:
        """`%load` shows what it would put into a cell."""
        sink = self._sink()
        if sink is None:
            super().set_next_input(text, replace)
        else:
            sink.write(Output.STDOUT, text)

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        sink = self._sink()
        if sink is None:
            super()._showtraceback(etype, evalue, stb)
        elif formatting_result.get():
            raise evalue
        else:  # of a hook, a formatter or a magic: the cell itself goes on
            sink.write(Output.STDERR, "\n".join(stb) + "\n")

    def _sink(self) -> OutputSink | None:
        if self.router is None or current.get() is None:
            return None
        return self.router.sink()
