"""A warm kernel in a terminal: `flyte-jupyter attach gpu[1]`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from .. import runtime
from ..client import text
from .proxy import Proxy
from .side import CHANNELS
from .target import KERNEL


def terminal(wanted: str, *, shared: bool, file: Path | None) -> int:
    """A console on a warm kernel in this terminal, or its channels for any other client; the exit code.

    Args:
        wanted: "gpu[1]" or "gpu".
        file: Serve this connection file until Ctrl-C; it is written if it is not there.
    """
    with contextlib.ExitStack() as clean:
        path = file
        if path is None:
            folder = runtime.private_folder() / f"a{os.getpid()}"
            folder.mkdir(mode=0o700)
            clean.callback(shutil.rmtree, folder, ignore_errors=True)
            path = folder / "kernel.json"
        if not path.exists():
            for made in _write_connection(path.absolute()):
                clean.callback(made.unlink, missing_ok=True)
        if file is None and importlib.util.find_spec("jupyter_console") is not None:
            return _console(path, wanted, shared)
        if file is None:
            _say("There is no jupyter_console here (pip install jupyter_console); any other Jupyter client will do:")
        _say(f"  jupyter console --existing {path}")
        _say("Ctrl-C detaches; the kernel stays warm.")
        return Proxy(path, wanted, shared, foreground=True).run()


def _say(line: str) -> None:
    print(text.visible(line), flush=True)


def _write_connection(path: Path) -> list[Path]:
    """Unix sockets beside the file; all that has to be removed in the end."""
    ports = {f"{channel}_port": number for number, channel in enumerate((*CHANNELS, "iopub", "hb"), 1)}
    info = {"transport": "ipc", "ip": str(path.with_suffix("")), "key": uuid.uuid4().hex, **ports,
            "signature_scheme": "hmac-sha256", "kernel_name": KERNEL}  # fmt: skip
    with open(path, "w", opener=runtime.private) as out:
        json.dump(info, out)
    return [path, *(Path(f"{info['ip']}-{port}") for port in ports.values())]


def _console(path: Path, wanted: str, shared: bool) -> int:
    # Both are in the terminal's foreground, and Ctrl-C reaches the proxy, which interrupts.
    signal.signal(signal.SIGINT, lambda *_: None)
    options = ["--shared"] if shared else []
    command = [sys.executable, "-m", "flyte_jupyter.attach", "-f", str(path), "--replica", wanted, *options]
    with subprocess.Popen(command) as proxy:
        try:
            return subprocess.call([sys.executable, "-m", "jupyter_console", "--existing", str(path)])
        finally:
            proxy.terminate()
