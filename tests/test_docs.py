"""The documentation is right: README's examples run, docstring examples too, and every error code has its section."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

import flyte_jupyter

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))

README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
# Public modules whose examples need no broker.
MODULES = (
    "core.arguments",
    "client.environment",
    "client.task",
    "client.handle",
    "client.image",
    "core.policy",
    "core.format",
    "core.resources",
    "errors",
    "loader",
)


def codes_in(text: str) -> set[str]:
    return set(re.findall(r"\bFJ[1-9]\d\d\b", text))


def codes_of_the_package() -> set[str]:
    folder = Path(flyte_jupyter.__file__).parent
    return codes_in("".join(path.read_text("utf-8") for path in folder.rglob("*.py")))


def test_every_error_code_has_its_section_and_no_other_has() -> None:
    sections = set(re.findall(r"^## (FJ\d+)$", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE))
    assert sections == codes_of_the_package()


def test_the_table_of_readme_lists_the_same_codes() -> None:
    assert codes_in(README) == codes_of_the_package()


def test_the_table_of_readme_names_the_class_of_each_code() -> None:
    classes = {name: getattr(flyte_jupyter.errors, name) for name in flyte_jupyter.errors.__all__}
    by_code = {
        cls.__dict__["fj_code"]: name
        for name, cls in classes.items()
        if isinstance(cls, type) and "fj_code" in cls.__dict__ and cls is not flyte_jupyter.errors.PoolError
    }
    table = dict(re.findall(r"^\| (FJ\d+) \| `(\w+)` \|", README, re.MULTILINE))
    assert table == by_code | dict.fromkeys(table.keys() - by_code.keys(), "ValueError")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("words", ["not a sandbox", "advice, not isolation", "Shared accounts share everything"])
def test_readme_states_what_pools_do_not_protect_from(words: str) -> None:
    assert words in README


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(f"flyte_jupyter.{name}"), optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_the_examples_of_readme_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the cells of one notebook, with a broker of their own that believes in two GPUs."""
    import demo

    gpus = [{"uuid": f"GPU-{number}", "model": "NVIDIA A100-SXM4-40GB"} for number in range(2)]
    monkeypatch.setenv("FLYTE_JUPYTER_GPUS", json.dumps(gpus))
    cells = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(cells) > 5
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.rstrip()) for cell in cells])
    with demo.private_service():
        executed = demo.execute(notebook)
    shown = [
        output["data"]["text/plain"] if output.output_type == "execute_result" else output["text"]
        for cell in executed.cells
        for output in cell.outputs
        if output.output_type in ("execute_result", "stream")
    ]
    assert shown == [
        "['python']",
        "[['sql'], ['shell'], ['html']]",
        "(9, [0, 1, 4, 9])",
        "('ready', ['gpu[0]'])",
        "ZeroDivisionError True\n",
        "('not set', 'fast')",
        "[32, 9] 3\n",
    ]
    assert os.environ.get("JPY_SESSION_NAME") is None


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_the_examples_of_what_a_task_sees_show_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the cells of one notebook; the comment in the last line of a cell is what it shows."""
    import demo

    monkeypatch.setenv("FLYTE_JUPYTER_GPUS", "[]")
    page = (ROOT / "docs" / "what-a-task-sees.md").read_text("utf-8")
    cells = [cell.rstrip() for cell in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    said = [cell.splitlines()[-1].partition("  # ")[2] for cell in cells[1:]]
    assert len(said) > 5
    cells.insert(0, f"import os; os.chdir({str(tmp_path)!r})")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with demo.private_service():
        executed = demo.execute(notebook)
    results = [
        [o["data"]["text/plain"] for o in cell.outputs if o.output_type == "execute_result"] for cell in executed.cells
    ]
    assert results == [[], [], *([each] for each in said)]
