"""`!commands`, `%magics` and `sys.path` in task functions, their helpers and preloads: as in the notebook itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seen import TASKS, cell, clean, opened, value
from test_notebook import Notebook

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    yield from opened(tmp_path_factory.mktemp("nb"))


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    yield kernel
    clean(kernel)


COMMANDS: dict[str, tuple[str, str | None, Any]] = {
    "a command": ("def look():\n    !echo shell", "shell\n", None),
    "of a local variable": ("def look():\n    p = 'here'\n    !echo $p {p}", "here here\n", None),
    "of a global variable": ("p = 'everywhere'\ndef look():\n    !echo $p", "everywhere\n", None),
    "of a closure's variable": (
        "def make(p):\n    def look():\n        use = p\n        !echo $p\n    return look\nlook = make('closed')",
        "closed\n",
        None,
    ),
    "its lines": ("def look():\n    p = 'a b'\n    out = !echo $p\n    return list(out), out.n", "", (["a b"], "a b")),
    "a folder's": (
        "import tempfile\n"
        "def look():\n    with tempfile.TemporaryDirectory() as p:\n        open(p + '/x', 'w').close()\n"
        ""
        "        out = !ls $p\n        return list(out)",
        "",
        ["x"],
    ),
    "in a helper": ("def helper(p):\n    out = !echo $p\n    return out[0]\ndef look(): return helper('a')", "", "a"),
    "in a method": (
        "class A:\n    n = 5\n    def m(self, p):\n        out = !echo $p {self.n}\n        return out[0]\n"
        "def look(): return A().m('a')",
        "",
        "a 5",
    ),
    "in an inner function": (
        "def look():\n    def inner(p):\n        out = !echo $p\n        return out[0]\n"
        "    return [inner(each) for each in 'ab']",
        "",
        ["a", "b"],
    ),
    "in a lambda": ("look = lambda: get_ipython().getoutput('echo 1')[0]", "", "1"),
    "its exit code": ("def look():\n    !exit 3\n    return get_ipython().user_ns['_exit_code']", "", 3),
    "a timed line": ("def look():\n    %time y = 1 + 1", None, None),
    "a measured line": ("def look():\n    r = %timeit -n1 -r1 -o -q 1 + 1\n    return r.loops", "", 1),
    "a magic that returns": ("def look():\n    p = %pwd\n    return p == os.getcwd()", "", True),
    "a magic of a variable": (
        "def look():\n    p = 'v'\n    %env FJ_TOLD=$p\n    return os.environ.pop('FJ_TOLD')",
        "env: FJ_TOLD=v\n",
        "v",
    ),
    "a cell magic": ("def look(): get_ipython().run_cell_magic('bash', '', 'echo bash')", "bash\n", None),
    "names of the user": ("def look(): return get_ipython().user_ns['look'] is look", "", True),
}


@pytest.mark.parametrize(("text", "printed", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_does_in_a_task_what_it_does_in_the_notebook(
    notebook: Notebook, text: str, printed: str | None, expected: Any
) -> None:
    cell(notebook, text)
    cell(notebook, TASKS)
    for call in ("look()", "task()", "await async_task()", "nested()", "pool.executor().submit(look).result()"):
        ran = notebook.run(call)
        assert ran.error == "", f"{call}\n{ran.traceback}"
        if printed is not None:
            assert ran.text().replace("\r\n", "\n") == printed, call
        if expected is not None:
            assert ran.value == expected, call


def test_a_magic_sets_up_a_library_in_a_task(notebook: Notebook) -> None:
    pytest.importorskip("matplotlib")
    cell(notebook, "def look():\n    %matplotlib inline\n    import matplotlib\n    return matplotlib.get_backend()")
    assert value(notebook, "env.task(look)()").endswith("inline")


def test_a_preload_may_use_them(notebook: Notebook) -> None:
    cell(
        notebook,
        "shell = flyte.TaskEnvironment('shell', reusable=flyte.ReusePolicy(replicas=(1, 1)))\nword = 'loaded'\n"
        "@flyte.pool(shell).preload\ndef load():\n    p = word + '1'\n    out = !echo $p $word\n    %env FJ_TOLD=$p\n"
        "    return out[0], os.environ['FJ_TOLD']\n"
        "@shell.task\ndef look(): return load()",
    )
    try:
        assert value(notebook, "look()") == ("loaded1 loaded", "loaded1")
    finally:
        notebook.run("flyte.pool(shell).stop()")


# --- sys.path


@pytest.fixture
def folder(notebook: Notebook, tmp_path: Path) -> Iterator[Path]:
    """The notebook's folder, with modules late0 … late7 in folders lib0 … lib7."""
    for n in range(8):
        (tmp_path / f"lib{n}").mkdir()
        (tmp_path / f"lib{n}" / f"late{n}.py").write_text(f"value = {n}\n")
    cell(
        notebook,
        f"before = os.getcwd(), list(sys.path)\nos.chdir({str(tmp_path)!r})\n"
        "@env.task\ndef one(): return 1\n@env.task\ndef imports(name): return __import__(name).value\n"
        "@many.task\nasync def async_imports(name): return __import__(name).value",
    )
    yield tmp_path
    cell(notebook, "os.chdir(before[0])\nsys.path[:] = before[1]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one()\nsys.path.insert(0, os.path.abspath('lib1'))\nimport late1\nenv.task(lambda: late1.value)()", 1),
        ("one()\nsys.path.append(os.path.abspath('lib2'))\nimports('late2')", 2),
        ("one()\nsys.path.insert(0, 'lib3')\nimports('late3')", 3),
        ("one()\nsys.path.append('lib4')\nimport late4\nenv.task(lambda: late4.value)()", 4),
        (
            "await async_imports('json.decoder') if 0 else one()\nsys.path.append('lib5')\n"
            "await async_imports('late5')",
            5,
        ),
        ("one()\nos.chdir('lib6')\nsys.path.insert(0, '')\nimports('late6')", 6),
        ("one()\nsys.path = ['lib7', *sys.path]\nnext(iter(flyte.map(imports, ['late7'])))", 7),
        ("one()\nsys.path[:0] = [types, b'lib0', __import__('pathlib').Path('lib0')]\none()", 1),
    ],
)
def test_a_path_that_a_cell_adds_after_its_first_call_is_there_for_the_next(
    notebook: Notebook, folder: Path, text: str, expected: int
) -> None:
    assert value(notebook, text) == expected
