"""Arrows point left: who may import whom, how large a module may be, and what `import flyte_jupyter` may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import flyte_jupyter

ROOT = Path(flyte_jupyter.__file__).parent

ALLOWED = {
    "errors": set(),
    "_version": set(),
    "core": {"errors"},
    # Modules of no layer: what two programs must agree on, and what the machine is asked.
    "loader": set(),
    "runtime": {"errors"},
    "memory": {"core", "errors"},
    "orphans": set(),
    "devices": {"core"},
    "logs": {"runtime"},
    "peek": {"core", "errors", "runtime"},
    "usage": {"core", "devices"},
    "modules": {"core"},
    "client": {"errors", "core", "loader", "memory", "modules", "runtime", "_version"},
    "broker": {"errors", "core", "runtime", "orphans", "devices", "usage", "_version"},
    "kernel": {"errors", "core", "loader", "memory", "modules", "runtime", "_version"},
    "server": {"errors", "core", "runtime", "logs", "peek", "_version"},
}
CALLERS = ALLOWED["client"] | {"client", "orphans", "devices", "usage", "logs", "peek"}
"""Of magics, widgets, provisioner and cli."""

FORKS = {"broker/zygote.py": {"kernel"}}
"""Programs that become another one: they import it by its name."""

KNOTS = {"kernel"}
"""Folders whose own modules still form circles."""

LINES = 450
LONGER = {"core/scheduler.py"}

IMPURE = {"time", "os", "socket", "threading", "asyncio", "anyio", "random", "subprocess", "select", "logging"}
WARNS_THROUGH_FLYTES_LOGGER = {"policy", "resources"}
"""Flyte warns of some values through the logger `flyte`, when they are stated; so do these two."""

EXTRAS = ["torch", "jupyter_server", "flyte", "IPython", "ipykernel", "zmq", "anyio", "numpy", "cloudpickle", "tblib"]


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, types: bool = False) -> Iterator[str]:
    """Absolute names of all that a module imports, also inside functions and by a name in a string.

    Args:
        types: Also what only type checkers see.
    """
    package = ["flyte_jupyter", *path.relative_to(ROOT).parent.parts]
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *(node.module.split(".") if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (each.value for each in node.args[:1] if isinstance(each, ast.Constant))


def arrows() -> dict[str, set[str]]:
    """Each module with those that it imports, whenever and for whatever."""
    known = {module_name(path) for path in modules()}
    return {
        module_name(path): {name if name in known else name.rpartition(".")[0] for name in imports(path, types=True)}
        & known - {module_name(path)}
        for path in modules()
        if module_name(path) != "flyte_jupyter"  # the names that it hands out are imported when they are used
    }


def folder_of(module: str) -> str:
    return module.removeprefix("flyte_jupyter.").rpartition(".")[0]


def test_imports_form_no_circle() -> None:
    graph = {
        module: {other for other in others if not {folder_of(module), folder_of(other)} <= KNOTS}
        for module, others in arrows().items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


def test_no_module_is_long_but_the_scheduler() -> None:
    long = {
        str(path.relative_to(ROOT))
        for path in modules()
        if sum(bool(line.strip()) for line in path.read_text().splitlines()) > LINES
    }
    assert long <= LONGER


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_left(path: Path) -> None:
    own = layer(path)
    if own == "__init__":
        return
    allowed = ALLOWED.get(own, CALLERS) | FORKS.get(str(path.relative_to(ROOT)), set()) | {own}
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top != "flyte_jupyter" or not rest:
            continue
        target = rest.partition(".")[0]
        assert target in allowed, f"{path.name} ({own}) imports {name}"


@pytest.mark.parametrize("path", [path for path in modules() if layer(path) == "core"], ids=lambda path: path.stem)
def test_the_core_does_no_io_and_reads_no_clock(path: Path) -> None:
    found = {name.partition(".")[0] for name in imports(path)} & IMPURE
    assert found <= ({"logging"} if path.stem in WARNS_THROUGH_FLYTES_LOGGER else set())


def test_the_public_names_are_listed_and_there() -> None:
    assert len(flyte_jupyter.__all__) == len(set(flyte_jupyter.__all__))
    for name in flyte_jupyter.__all__:
        assert hasattr(flyte_jupyter, name)


def fresh(code: str) -> list[str]:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_checkers_and_the_interpreter_find_the_same_names_at_the_same_place() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    checked = {
        alias.name: f".{node.module}"
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "_typing.TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert checked == flyte_jupyter._HOME_OF
    assert {*checked, "errors", "__version__"} == set(flyte_jupyter.__all__)


def test_all_public_names_can_be_listed_and_imported_before_any_is_used() -> None:
    assert set(fresh("import flyte_jupyter; print(*dir(flyte_jupyter))")) >= set(flyte_jupyter.__all__)
    starred = fresh("from flyte_jupyter import *; print(*[name for name in dir() if name[:2] != '__'])")
    assert set(starred) == set(flyte_jupyter.__all__) - {"__version__"}


def test_a_misspelt_name_is_said_to_be_one() -> None:
    with pytest.raises(AttributeError, match="module 'flyte_jupyter' has no attribute 'TaskEnviroment'"):
        _ = flyte_jupyter.TaskEnviroment
    wrong = "import flyte_jupyter; flyte_jupyter.TaskEnviroment"
    done = subprocess.run([sys.executable, "-c", wrong], capture_output=True, text=True, check=False)
    assert "Did you mean: 'TaskEnvironment'?" in done.stderr


def test_the_import_is_cheap() -> None:
    loaded = fresh("import sys, flyte_jupyter as flyte; flyte.TaskEnvironment, flyte.pool; print(*sys.modules)")
    assert set(EXTRAS) & set(loaded) == set()
    assert [name for name in loaded if name.startswith(("flyte_jupyter.broker", "flyte_jupyter.kernel"))] == []


def test_a_jupyter_server_finds_the_extension_without_loading_it() -> None:
    found = "import flyte_jupyter, flyte_jupyter.server; flyte_jupyter._jupyter_server_extension_points()"
    loaded = fresh(f"import sys; {found}; print(*sys.modules)")
    assert {"pydantic", "asyncio", *EXTRAS} & set(loaded) == set()
    assert {name for name in loaded if name.startswith("flyte_jupyter")} == {
        "flyte_jupyter",
        "flyte_jupyter._version",
        "flyte_jupyter.client",
        "flyte_jupyter.client.dispatch",
        "flyte_jupyter.client.views",
        "flyte_jupyter.server",
    }


def test_the_server_extension_loads_nothing_that_runs_user_code() -> None:
    loaded = fresh("import sys, flyte_jupyter.server.handlers; print(*sys.modules)")
    assert {"cloudpickle", "torch", "numpy", "flyte_jupyter.broker", "flyte_jupyter.kernel"} & set(loaded) == set()
    names = {name for path in (ROOT / "server").glob("*.py") for name in imports(path)}
    assert {name for name in names if "pickle" in name or "payload" in name} == set()


def test_the_guardian_needs_only_the_standard_library() -> None:
    path = ROOT / "orphans.py"
    assert {name.partition(".")[0] for name in imports(path)} <= {*sys.stdlib_module_names}


def test_the_broker_is_not_slowed_down_by_what_only_kernels_need() -> None:
    loaded = fresh("import sys, flyte_jupyter.broker.server; print(*sys.modules)")
    assert {"torch", "numpy", "IPython", "ipykernel", "jupyter_server"} & set(loaded) == set()
