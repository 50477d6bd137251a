"""The user's modules on replicas: what their callers have loaded, whatever files say and other callers have."""

from __future__ import annotations

import ast
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from front_ends import ANSWER_S, Console
from jupyter_client.manager import KernelManager
from support import OwnBroker

from flyte_jupyter import runtime

pytestmark = pytest.mark.kernel

SETUP = """
import importlib, pathlib, sys
from textwrap import dedent
env = flyte.TaskEnvironment({pool!r}, reusable=flyte.ReusePolicy(replicas=(1, 1)))
HERE = pathlib.Path({folder!r})
sys.path.insert(0, str(HERE))
def write(name, text):
    path = HERE / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(dedent(text))
    importlib.invalidate_caches()
def tell(value):
    say(repr(value))
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    broker = OwnBroker(tmp_path_factory.mktemp("scripts"))
    yield broker
    broker.end()


class Project:
    """A folder with modules, and scripts that run there with one replica."""

    def __init__(self, own: OwnBroker, folder: Path, pool: str) -> None:
        self.own = own
        self.folder = folder
        self.pool = pool

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def run(self, code: str, *, name: str = "", folder: Path | None = None) -> list[Any]:
        """What the script has said, one value for each line."""
        setup = SETUP.format(pool=self.pool, folder=str(folder or self.folder))
        said = self.own.run(setup + textwrap.dedent(code), name=name, timeout=60)
        return [ast.literal_eval(line) for line in said]


@pytest.fixture
def project(own: OwnBroker, tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    return Project(own, tmp_path, request.node.name.partition("[")[0][:40].rstrip("_"))


EDIT = """
write("mine.py", '''
    from other import g
    K = 1
    class C:
        def who(self): return "C1"
    def f(): return "f1", g(), K
''')
write("other.py", "def g(): return 'g1'\\n")
import mine
from mine import f
kept = [f, mine.C]
held = mine.C()
class Child(mine.C):
    def both(self): return self.who(), "child"

@env.task
def by_name(): return f()
@env.task
def by_module(): return mine.f(), mine.K, mine.C().who()
@env.task
def in_a_list(): return kept[0](), kept[1]().who()
@env.task
def inherited(): return Child().both(), isinstance(Child(), mine.C)
@env.task
def argument(c): return c.who(), type(c) is mine.C
@env.task
def of_body():
    from mine import f, K
    return f(), K
@env.task
def instance(): return held.who()

def check(when):
    calls = [by_name, by_module, in_a_list, inherited, of_body, instance]
    here = [task.func() for task in calls] + [argument.func(held), argument.func(mine.C())]
    there = [task() for task in calls] + [argument(held), argument(mine.C())]
    tell((when, here == there or (here, there)))

check("at first")
write("mine.py", '''
    from other import g
    K = 22
    class C:
        def who(self): return "C2"
        def more(self): return "more"
    def f(): return "f2", g(), K
''')
check("edited")
importlib.reload(mine)
check("loaded anew")
from mine import f
kept = [f, mine.C]
held = mine.C()
check("imported anew")
write("other.py", "def g(): return 'g2', __name__\\n")
import other
importlib.reload(other)
importlib.reload(mine)
from mine import f
check("and what it imports")
write("mine.py", "1/0")
try:
    importlib.reload(mine)
except ZeroDivisionError:
    check("broken")
"""


def test_tasks_run_what_the_script_has_loaded(project: Project) -> None:
    stages = ["at first", "edited", "loaded anew", "imported anew", "and what it imports", "broken"]
    assert project.run(EDIT) == [(stage, True) for stage in stages]


RUN_AGAIN = """
import mine
from bag import part
@env.task
def t(): return mine.f(), part.g(), os.getpid()
tell(t())
tell(mine.f() == t()[0])
"""


def test_a_script_that_runs_again_after_an_edit_finds_the_same_replica_with_the_new_text(project: Project) -> None:
    project.write("mine.py", "def f(): return 'f1'\n")
    project.write("bag/__init__.py", "")
    project.write("bag/part.py", "from . import inner\ndef g(): return inner.K\n")
    project.write("bag/inner.py", "K = 1\n")
    (one, other, pid), same = project.run(RUN_AGAIN, name="again")
    assert (one, other, same) == ("f1", 1, True)
    project.write("mine.py", "def f(): return 'f2', 'longer'\n")
    project.write("bag/inner.py", "K = 2222\n")
    assert project.run(RUN_AGAIN, name="again")[2:] == [(("f2", "longer"), 2222, pid), True]


PRELOADED = """
import mine
pool = flyte.pool(env)
@pool.preload
def model():
    return mine.Model()
@env.task
def use(): return model().predict(), model().made, isinstance(model(), mine.Model)
tell(use())
write("mine.py", '''
    import os
    class Model:
        def __init__(self): self.made = os.urandom(4).hex()
        def predict(self): return "new"
''')
importlib.reload(mine)
tell(use())
"""


def test_a_model_that_a_preload_has_made_stays_and_gets_the_new_code(project: Project) -> None:
    project.write(
        "mine.py",
        """
        import os
        class Model:
            def __init__(self): self.made = os.urandom(4).hex()
            def predict(self): return "old"
        """,
    )
    (old, made, _), new = project.run(PRELOADED)
    assert (old, new) == ("old", ("new", made, True))


def test_a_module_that_only_tasks_import_is_what_its_file_says(project: Project) -> None:
    project.write("lazy.py", "from lazier import K\ndef z(): return 'z1', K\n")
    project.write("lazier.py", "K = 1\n")
    code = """
        @env.task
        def t():
            import lazy
            return lazy.z()
        tell(t())
        write("lazy.py", "from lazier import K\\ndef z(): return 'z2', 'longer', K\\n")
        tell(t())
        write("lazier.py", "K = 2222\\n")
        write("lazy.py", "from lazier import K\\ndef z(): return 'z3', K, K\\n")
        tell(t())
    """
    assert project.run(code) == [("z1", 1), ("z2", "longer", 1), ("z3", 2222, 2222)]


def test_what_was_edited_and_not_loaded_anew_is_on_a_new_replica_what_the_script_runs(project: Project) -> None:
    project.write("mine.py", "def f(): return 'f1'\n")
    code = """
        import mine
        @env.task
        def t(): return mine.f()
        @env.task
        def fails(): return mine.f(1)
        tell(t())
        write("mine.py", "# two lines\\n# more\\ndef f(): return 'f2', 'longer'\\n")
        flyte.pool(env).restart()
        tell((t(), mine.f()))
        try:
            fails()
        except TypeError as error:
            tell(type(error).__name__)
    """
    assert project.run(code) == [
        "f1",
        ("f1", "f1"),
        "TypeError",
    ]


def test_two_projects_with_a_module_of_one_name_each_find_their_own(own: OwnBroker, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        (folder / "utils.py").write_text(f"WHERE = {folder.name!r}\ncount = 0\n")
        (folder / "lazily.py").write_text(f"WHERE = {folder.name!r}\ncount = 0\n")
    projects = [Project(own, folder, "two_projects") for folder in folders]
    code = """
        import utils
        @env.task
        def t():
            import lazily
            utils.count += 1
            lazily.count += 1
            return utils.WHERE, utils.count, lazily.WHERE, lazily.count, os.getpid()
        tell(t())
        tell("waits")
        wait_said("more")
        tell(t())
    """
    scripts = []
    for each in projects:
        setup = SETUP.format(pool=each.pool, folder=str(each.folder))
        scripts.append(own.start(setup + textwrap.dedent(code), name=f"of_{each.folder.name}"))
        own.wait_said(f"of_{each.folder.name}", 2)
    for each, script in zip(projects, scripts, strict=True):
        with open(own.home / f"of_{each.folder.name}", "a") as said:
            said.write("'more'\n")
        assert script.wait(ANSWER_S) == 0
    said = [[ast.literal_eval(line) for line in own.said(f"of_{each.folder.name}")] for each in projects]
    pids = {line[-1] for lines in said for line in (lines[0], lines[-1])}
    assert len(pids) == 1
    for each, lines in zip(projects, said, strict=True):
        name = each.folder.name
        assert [line[:4] for line in (lines[0], lines[-1])] == [(name, 1, name, 1), (name, 2, name, 2)]


def test_a_module_that_fails_to_load_anew_is_the_calls_error_and_the_old_one_stays(project: Project) -> None:
    project.write("mine.py", "K = 1\n")
    code = """
        import mine
        @env.task
        def t(): return mine.K
        tell(t())
        write("mine.py", '''
            import sys
            if "flyte_jupyter.kernel.kernel" in sys.modules: raise ValueError("not here")
            K = 2222
        ''')
        importlib.reload(mine)
        try:
            t()
        except ValueError as error:
            tell((str(error), any("mine" in note and "anew" in note for note in error.__notes__)))
        write("mine.py", "K = 333333\\n")
        importlib.reload(mine)
        tell(t())
    """
    assert project.run(code) == [1, ("not here", True), 333333]


def test_a_module_of_the_users_that_has_the_name_of_one_in_use_is_refused(project: Project) -> None:
    project.write("ipykernel.py", "K = 1\n")
    code = """
        import ipykernel
        @env.task
        def t(): return ipykernel.K
        try:
            t()
        except ImportError as error:
            tell(str(error))
    """
    (text,) = project.run(code)
    assert str(project.folder / "ipykernel.py") in text
    assert "another name" in text


def test_an_edit_before_the_first_call_warns_once(project: Project) -> None:
    project.write("mine.py", "def f(): return 1\n")
    code = """
        import warnings
        import mine
        write("mine.py", "def f(): return 2222\\n")
        @env.task
        def t(): return mine.f()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = t(), t()
        tell((values, [str(each.message).partition(" has")[0] == mine.__file__ for each in caught],
             [each.filename == __file__ for each in caught]))
    """
    with_bytecode = "import sys; sys.dont_write_bytecode = False\n" + textwrap.dedent(code)
    assert project.run(with_bytecode) == [((2222, 2222), [True], [True])]


@pytest.fixture(scope="module")
def notebook(own: OwnBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Console, Path]]:
    folder = tmp_path_factory.mktemp("notebook")
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "k"))
    variables = {"IPYTHONDIR": str(folder / "ipython"), runtime.VARIABLE: str(own.folder), **own.variables}
    base = {name: value for name, value in os.environ.items() if not name.startswith("FLYTE_JUPYTER_")}
    manager.start_kernel(env={**base, **variables}, cwd=str(folder))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=ANSWER_S)
    try:
        yield Console(client), folder
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


@pytest.mark.parametrize("mode", ["2", "2 --full", "3", "explicit"])
def test_autoreload_in_a_notebook_is_autoreload_on_its_replicas(
    mode: str, notebook: tuple[Console, Path], request: pytest.FixtureRequest
) -> None:
    console, folder = notebook
    name = "auto_" + "".join(filter(str.isalnum, mode))

    def run(code: str) -> str:
        ran = console.run(textwrap.dedent(code))
        assert ran.error == ""
        return ran.result

    def write(version: str) -> None:
        (folder / f"{name}.py").write_text(
            f"K = {version!r}\n"
            f"class C:\n    def who(self): return 'C', {version!r}\n"
            f"def f(x): return x, {version!r}, K\n"
        )

    write("1")
    run("import flyte_jupyter as flyte\nflyte.PoolHandle.view = None\n%load_ext autoreload")
    run(f"%autoreload {mode}\n" + ("%aimport " + name if mode == "explicit" else ""))
    run(
        f"""
        import {name}
        from {name} import f, C
        c = C()
        env = flyte.TaskEnvironment({name!r}, reusable=flyte.ReusePolicy(replicas=(1, 1)))
        @env.task
        def t(x): return f(x), {name}.f(x), C().who(), {name}.C().who(), c.who(), {name}.K
        @env.task
        def argument(c): return c.who()
        @env.task
        def of_body():
            import {name} as found
            return found.f(0), found.K
        """
    )
    both = "((t(1), argument(c), of_body()), (t.func(1), argument.func(c), of_body.func()))"
    for version in ("1", "22", "333"):
        write(version)
        os.utime(folder / f"{name}.py", (len(version) * 1e9, len(version) * 1e9))
        there, here = ast.literal_eval(run(both))
        assert there == here
        assert here[2] == ((0, version, version), version)
    run("flyte.pool(env).stop()")
