"""The notebook about task cells is right: it shows what its stored outputs promise, also under papermill."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_notebooks import NOTEBOOKS, code_cells, demo, shown_text

NOTEBOOK = NOTEBOOKS / "cells.ipynb"


def normalised(cell: Any) -> list[tuple[str, str]]:
    """What a cell shows, without what differs from run to run: times, versions, which replica it was."""
    shown = []
    for output in cell.outputs:
        text = re.sub(r"\d+\.\d+ s\b", "# s", shown_text(output))
        text = re.sub(r"files\[\d\]", "files[#]", text)
        shown.append((output.output_type, re.sub(r"flyte_jupyter [\d.]+\w*", "flyte_jupyter #", text)))
    return shown


def assert_shows_what_is_stored(run: Any) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    for before, now in zip(code_cells(stored), code_cells(demo.stable(run)), strict=True):
        if "view" in before.metadata.get("tags", ()):  # a picture of the moment
            assert [kind for kind, _ in normalised(now)] == [kind for kind, _ in normalised(before)], before.source
        else:
            assert normalised(now) == normalised(before), before.source


def test_it_is_stored_with_outputs_in_order_and_names_no_machine() -> None:
    cells = code_cells(nbformat.read(NOTEBOOK, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", NOTEBOOK.read_text("utf-8"))


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_it_shows_what_it_promises() -> None:
    with demo.private_service():
        run = demo.execute(nbformat.read(NOTEBOOK, as_version=4))
    assert_shows_what_is_stored(run)
    failing = next(cell for cell in code_cells(run) if "3 / total" in cell.source)
    assert "----> 3 print(3 / total)" in demo._plain("".join(failing.outputs[-1]["traceback"]))


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_papermill_shows_the_same(tmp_path: Path) -> None:
    papermill = pytest.importorskip("papermill")
    out = tmp_path / "out.ipynb"
    source = nbformat.read(NOTEBOOK, as_version=4)
    # Papermill stops at every error, also at one that is there to be seen.
    for cell in code_cells(source):
        if "raises-exception" in cell.metadata.get("tags", ()):
            cell.source = ""
    nbformat.write(source, tmp_path / "in.ipynb")
    with demo.private_service():
        papermill.execute_notebook(
            str(tmp_path / "in.ipynb"), str(out), cwd=str(tmp_path), progress_bar=False, kernel_name="python3"
        )
    run = nbformat.read(out, as_version=4)
    for cell, before in zip(code_cells(run), code_cells(nbformat.read(NOTEBOOK, as_version=4)), strict=True):
        if not cell.source:
            cell.outputs = before.outputs
    assert_shows_what_is_stored(run)
