"""A shell with the extension loaded; no kernel, no broker."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from flyte_jupyter import magics, runtime


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    magics.load(made)
    with tempfile.TemporaryDirectory(prefix="fj-", dir="/tmp") as folder:  # Unix sockets: a short path
        monkeypatch.setenv(runtime.VARIABLE, f"{folder}/r")
        yield made
    magics.unload(made)
    made.restore_sys_module_state()
    InteractiveShell.clear_instance()
