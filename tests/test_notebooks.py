"""The notebooks are right: they run in a real kernel and show what their stored outputs promise."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))

import demo  # noqa: E402


def shown_text(output: Any) -> str:
    """An output as a terminal would show it."""
    if output.output_type == "error":
        return str(output["evalue"])
    return str(output["text"] if output.output_type == "stream" else output["data"]["text/plain"])


def normalised(cell: Any) -> list[tuple[str, str]]:
    """What a cell shows, without what differs from run to run: times, process ids, our own source lines."""
    return [(output.output_type, re.sub(r"\d+\.\d+ (s|ms)\b", r"# \1", shown_text(output))) for output in cell.outputs]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", ()))


def test_stored_outputs_name_no_machine() -> None:
    text = demo.NOTEBOOK.read_text("utf-8")
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", text)


def test_the_notebook_is_stored_with_outputs_in_order() -> None:
    cells = code_cells(demo.read())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= 7


def test_stable_outputs_have_neither_colours_nor_machine_paths() -> None:
    text = "\x1b[31mFile \x1b[32m/opt/x/site-packages/flyte_jupyter/client/remote.py:12\x1b[0m, in call"
    assert demo._plain(text) == "File flyte_jupyter/client/remote.py:12, in call"


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_the_quickstart_shows_what_it_promises() -> None:
    stored = demo.read()
    with demo.private_service():
        run = demo.stable(demo.execute(stored))
    for before, now in zip(code_cells(stored), code_cells(run), strict=True):
        if "view" in tags(before):
            assert [kind for kind, _ in normalised(now)] == ["execute_result"]
            continue
        assert normalised(now) == normalised(before), before.source
    failing = next(cell for cell in code_cells(run) if "raises-exception" in tags(cell))
    assert "return correct / total" in "".join(failing.outputs[-1]["traceback"])
