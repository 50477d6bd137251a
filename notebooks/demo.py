"""Runs the quickstart in two Jupyter kernels, one after the other, and counts how often its model was loaded.

`python notebooks/demo.py` (or `make demo`) prints what it measured; the exit status is 0 only if every replica
loaded the model exactly once for both kernels. `--save` also stores the first kernel's outputs in the notebook.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
LIMIT_S = 180


@contextmanager
def private_service() -> Iterator[Path]:
    """A runtime folder of our own, so that pools already running are left alone; nothing is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="fjq", dir="/tmp"))
    changed = {
        "FLYTE_JUPYTER_RUNTIME_DIR": str(folder / "r"),
        "TMPDIR": str(folder),
        "IPYTHONDIR": str(folder / "i"),
        "JUPYTER_RUNTIME_DIR": str(folder / "j"),
        "JPY_SESSION_NAME": NOTEBOOK.name,  # as a Jupyter server sets it
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    tempfile.tempdir = None  # it remembers the old TMPDIR
    try:
        yield folder
    finally:
        try:
            stop_service()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            tempfile.tempdir = None
            shutil.rmtree(folder, ignore_errors=True)


def stop_service() -> None:
    """End the broker of the current runtime folder, if there is one, with all that it started."""
    done = subprocess.run(
        [sys.executable, "-m", "flyte_jupyter.cli", "stop", "--force"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)


def execute(notebook: Any, *, leave_out: str = "") -> Any:
    """A copy of the notebook, executed in a new kernel, without the cells that have the tag `leave_out`."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if leave_out not in cell.metadata.get("tags", ())]
    # Over Unix sockets: no TCP port is open on a shared machine. `ip` is what their paths begin with.
    sockets = {"transport": "ipc", "ip": os.path.join(tempfile.mkdtemp(), "kernel")}
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=LIMIT_S,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        config=Config({"KernelManager": sockets}),
    ).execute()
    return notebook


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: Any, tag: str) -> str:
    """What the cell with this tag printed."""
    cell = next(cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))
    return "".join(output["text"] for output in cell.outputs if output.output_type == "stream")


def number(text: str, unit: str) -> float:
    """The number in front of a unit."""
    found = re.search(rf"([\d.]+) {re.escape(unit)}", text)
    if found is None:
        raise ValueError(f"no {unit!r} in {text!r}")
    return float(found[1])


# --- outputs that read the same on every machine


def stable(notebook: Any) -> Any:
    """The notebook with outputs fit for version control: no machine's paths, no terminal colours, no times of day."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                output["traceback"] = [_plain("\n".join(output["traceback"]))]
            elif output.output_type == "stream":
                output["text"] = _plain(output["text"])
        if "outputs" in cell:
            cell["outputs"] = _joined(cell["outputs"])
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def _plain(text: str) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"(/[^\s:()]+)+/(flyte_jupyter/[\w/]+\.py)", r"\2", text)
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "<cell>", text)


# --- the demonstration


def measure(save: bool) -> int:
    notebook = read()
    with private_service():
        print("First kernel: the quickstart, up to its last cell but one ...", flush=True)
        first = execute(notebook, leave_out="stop")
        print("Second kernel: the whole quickstart again, as after a restart ...", flush=True)
        second = execute(notebook)
    counted = printed(second, "loads")
    replicas, loads = int(number(counted, "replicas")), int(number(counted, "model loads"))
    cold = number(printed(first, "first-call"), "s")
    warm_ms = number(printed(first, "warm-calls"), "ms")
    rows = [
        ("first call, cold", f"{cold:.2f} s"),
        ("warm call, median", f"{warm_ms:.2f} ms"),
        ("speed-up", f"{cold * 1000 / warm_ms:.0f} x"),
        ("fan-out: 4 x 0.2 s on 2 replicas", f"{number(printed(first, 'fan-out-time'), 's'):.2f} s"),
        ("replicas", f"{replicas}"),
        ("model loads, both kernels together", f"{loads}"),
        ("first call of the second kernel", f"{number(printed(second, 'first-call'), 's') * 1000:.0f} ms"),
    ]
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value:>10}")
    print()
    if save:
        stop = second.cells[-1]
        first.cells.append(stop)
        for count, cell in enumerate((cell for cell in first.cells if cell.cell_type == "code"), 1):
            cell["execution_count"] = count
        nbformat.write(stable(first), NOTEBOOK)
    if loads != replicas:
        print(f"FAILED: {replicas} replicas loaded the model {loads} times.")
        return 1
    print("The second kernel used what the first one had loaded.")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the clean-up above still runs
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help="store the outputs in the notebook")
    sys.exit(measure(parser.parse_args().save))
