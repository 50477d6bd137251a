"""The IPython extension: `%load_ext flyte_jupyter`."""

from __future__ import annotations

import weakref
from typing import Any, Final

from .. import _version
from ..client import text
from ..client.cells.sessions import end_sessions
from . import directive
from .background import JobMagics
from .completion import make_matcher
from .notebook import Notebook
from .pools import PoolMagics, greeting
from .tasks import TaskMagics

_loaded: Final[weakref.WeakKeyDictionary[Any, tuple[Notebook, Any]]] = weakref.WeakKeyDictionary()
_TRANSFORMERS: Final = (directive.rewrite, directive.refuse_misplaced)


def load(shell: Any) -> None:
    """Register everything in `shell`, once, and say so in one line."""
    if shell in _loaded:
        return
    notebook = Notebook(shell)
    matcher = make_matcher(notebook)
    _loaded[shell] = notebook, matcher
    shell.register_magics(TaskMagics(notebook), JobMagics(notebook))
    shell.register_magics(PoolMagics(shell, notebook.pools))
    shell.input_transformers_cleanup.extend(_TRANSFORMERS)
    if shell.Completer is not None:
        shell.Completer.custom_matchers.append(matcher)
    print(text.visible(f"flyte_jupyter {_version.__version__} · {greeting()} · help: %flyte"))


def unload(shell: Any) -> None:
    """Take all of it out again; pools and what runs there stay, sessions end."""
    found = _loaded.pop(shell, None)
    if found is None:
        return
    end_sessions()
    for transformer in _TRANSFORMERS:
        shell.input_transformers_cleanup.remove(transformer)
    if shell.Completer is not None and found[1] in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(found[1])
    for kind in shell.magics_manager.magics.values():
        for name in [name for name in kind if name == "flyte" or name.startswith("flyte_")]:
            del kind[name]
