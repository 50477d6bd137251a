"""What replicas that a zygote has forked must do as well as spawned ones, and what must not reach them from it."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import multiprocessing
import os
import random
import secrets
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import (
    START_S,
    OwnBroker,
    alive,
    assert_quiet,
    attempt,
    pids,
    ready,
    replicas_of,
    wait_until,
)

import flyte_jupyter as flyte
from flyte_jupyter import errors, orphans
from flyte_jupyter.client import broker
from flyte_jupyter.core.protocol import ZygoteView

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(sys.platform != "linux", reason="replicas are forked on Linux only"),
]

SCIENCE = [name for name in ("numpy", "matplotlib", "sklearn", "joblib", "torch") if importlib.util.find_spec(name)]
"""Imported in the zygote: what they start there, such as a thread pool for matrices, is not in the child."""

PREIMPORTS = ["asyncio", "concurrent.futures", "multiprocessing", "sqlite3", "subprocess", *SCIENCE, "numpy.random"]

forked = flyte.TaskEnvironment("forked", reusable=flyte.ReusePolicy(replicas=2))


@pytest.fixture(autouse=True)
def _always(shared_broker: Path) -> Iterator[None]:
    flyte.pool(forked, preimport=PREIMPORTS).warm(2)
    yield
    assert_quiet(forked, timeout=START_S)


def zygote() -> ZygoteView:
    """The one of this environment."""
    snapped = broker.connect().snapshot()
    assert flyte.pool(forked).key not in snapped.spawned, snapped.spawned
    (mine,) = [each for each in snapped.zygotes if set(PREIMPORTS) <= set(each.preimports)]
    return mine


def is_forked(pid: int) -> bool:
    return "flyte_jupyter.broker.zygote" in psutil.Process(pid).cmdline()


def on_both(task: Any) -> list[Any]:
    """The task's value on each of the two replicas; the task ends with `meet(path)`."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        return list(threads.map(task, [folder] * 2))


def meet(folder: str) -> None:
    """Wait until as many as there are replicas are here: no replica can run both tasks."""
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < 2:
        time.sleep(0.005)


# --- they are what they say


@forked.task(timeout=20)
def parent() -> tuple[int, int]:
    return os.getpid(), os.getppid()


def test_replicas_are_forked_from_one_zygote_and_are_children_of_the_broker() -> None:
    broker_pid = broker.connect().broker_pid
    view = zygote()
    assert view.replicas == len(pids(forked)) == 2
    assert "flyte_jupyter.broker.zygote" in psutil.Process(view.pid).cmdline()
    assert psutil.Process(view.pid).children() == []
    for pid in pids(forked):
        assert is_forked(pid)
        assert psutil.Process(pid).ppid() == broker_pid
        assert os.getsid(pid) == pid
    pid, its_parent = parent()
    assert pid in pids(forked)
    assert its_parent == broker_pid


@forked.task(timeout=20)
def preimported() -> bool:
    return "numpy.random" in sys.modules


def test_what_the_zygote_has_imported_is_there() -> None:
    assert preimported()


# --- what hangs or crashes in a child when it was used before the fork


def matrices() -> float:
    import numpy

    return float((numpy.ones((300, 300)) @ numpy.eye(300)).sum())


def four_threads() -> int:
    done: list[int] = []
    threads = [threading.Thread(target=done.append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def thread_pool() -> list[int]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(math.factorial, range(6)))


def process_pool() -> list[int]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(math.factorial, range(6)))


def processes_by_default() -> list[int]:
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(math.factorial, range(6)))


def fork_context() -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(math.factorial, range(6))


def a_child_that_is_told_to_end() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGTERM)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def a_program() -> tuple[str, int]:
    command = ["sh", "-c", "read line; echo $line; exit 3"]
    done = subprocess.run(command, input="hi\n", capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


def an_event_loop() -> list[int]:
    async def one(number: int) -> int:
        await asyncio.sleep(0.001)
        return await asyncio.to_thread(math.factorial, number)

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*map(one, range(6)))

    return asyncio.run(all_of_them())


def a_program_in_a_loop() -> str:
    async def echo() -> str:
        process = await asyncio.create_subprocess_exec("echo", "hi", stdout=subprocess.PIPE)
        return (await process.communicate())[0].decode()

    return asyncio.run(echo())


def a_database() -> int:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (n)")
        database.executemany("insert into t values (?)", [(n,) for n in range(10)])
        return int(database.execute("select sum(n) from t").fetchone()[0])


def a_temporary_file() -> str:
    with tempfile.NamedTemporaryFile("w+") as file, tempfile.TemporaryDirectory() as folder:
        file.write(str(os.path.isdir(folder)))
        file.seek(0)
        return file.read()


def a_signal_handler() -> bool:
    return signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)


FACTORIALS = [1, 1, 2, 6, 24, 120]


@forked.task(timeout=20)
def do(what: Any) -> Any:
    return what()


@pytest.mark.parametrize(
    ("what", "value"),
    [
        (matrices, 90_000.0),
        (four_threads, 6),
        (thread_pool, FACTORIALS),
        (process_pool, FACTORIALS),
        (processes_by_default, FACTORIALS),
        (fork_context, FACTORIALS),
        (a_program, ("hi\n", 3)),
        (an_event_loop, FACTORIALS),
        (a_program_in_a_loop, "hi\n"),
        (a_database, 45),
        (a_temporary_file, "True"),
        (a_signal_handler, True),
        (a_child_that_is_told_to_end, signal.SIGTERM),
    ],
)
def test_it_works_in_a_forked_replica(what: Any, value: Any) -> None:
    for _ in range(2):
        assert do(what) == value


# --- the same for libraries that may be here


def a_plot() -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    import io

    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.plot([1, 2, 3])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    pyplot.close(figure)
    return file.getvalue()[1:4]


def tensors() -> float:
    import torch

    layer = torch.nn.Linear(300, 300)
    layer(torch.ones(64, 300)).sum().backward()
    return float((torch.ones(300, 300) @ torch.eye(300)).sum())


def parallel_jobs() -> list[int]:
    import joblib

    return list(joblib.Parallel(n_jobs=2)(joblib.delayed(math.factorial)(number) for number in range(6)))


def a_forest() -> int:
    import numpy
    from sklearn.ensemble import RandomForestClassifier

    points = numpy.arange(40.0).reshape(20, 2)
    return int(
        RandomForestClassifier(10, n_jobs=2, random_state=0).fit(points, points[:, 0] > 20).predict(points).sum()
    )


@pytest.mark.parametrize(
    ("module", "what", "value"),
    [
        ("matplotlib", a_plot, b"PNG"),
        ("torch", tensors, 90_000.0),
        ("joblib", parallel_jobs, FACTORIALS),
        ("sklearn", a_forest, 9),
    ],
)
def test_a_library_works_in_a_forked_replica(module: str, what: Any, value: Any) -> None:
    if module not in SCIENCE:
        pytest.skip(f"{module} is not installed")
    try:
        for _ in range(2):
            assert do(what) == value
    finally:
        flyte.pool(forked).stop()  # joblib keeps its processes
        flyte.pool(forked).warm(2)


# --- each is on its own


@forked.task(timeout=20)
def draws(folder: str) -> dict[str, Any]:
    import numpy

    drawn = {
        "random": random.random(),
        "numpy.random": float(numpy.random.random()),
        "numpy.random.default_rng": float(numpy.random.default_rng().random()),
        "uuid4": uuid.uuid4().hex,
        "uuid1": uuid.uuid1().hex,
        "secrets": secrets.token_hex(),
        "tempfile": tempfile.mktemp(),
    }
    meet(folder)
    return drawn


@forked.task(timeout=20)
def draws_of_torch(folder: str) -> dict[str, Any]:
    import torch

    numbers = list(range(50))
    drawn = {
        "initial_seed": torch.initial_seed(),
        "randn": torch.randn(2).tolist(),
        "weights": torch.nn.Linear(1, 1).weight.item(),
        "randperm": torch.randperm(50).tolist(),
        "shuffled": torch.cat(list(torch.utils.data.DataLoader(numbers, batch_size=10, shuffle=True))).tolist(),
    }
    assert not torch.cuda.is_initialized()
    meet(folder)
    return drawn


def each_differs(drawn: list[dict[str, Any]]) -> bool:
    return all(len({str(each[name]) for each in drawn}) == len(drawn) for name in drawn[0])


@pytest.mark.parametrize("task", [draws, draws_of_torch], ids=["all", "torch"])
def test_replicas_and_those_that_replace_them_draw_different_numbers(task: Any) -> None:
    if task is draws_of_torch:
        pytest.importorskip("torch")
    before = set(pids(forked))
    drawn = on_both(task)
    flyte.pool(forked).restart()
    wait_until(lambda: len(pids(forked)) == 2 and not before & set(pids(forked)), START_S, "two other replicas")
    drawn += on_both(task)
    assert each_differs(drawn), drawn


KEEPS_GENERATORS = """
import random
import numpy

drawn = random.Random()
draw = random.Random().random
given = random.Random(7)
given_later = random.Random()
given_later.seed("seven")
copied = random.Random()
copied.setstate(given.getstate())
generator = numpy.random.default_rng()
generator_given = numpy.random.default_rng(7)
old = numpy.random.RandomState()
old.standard_normal()  # one of a pair: the other is kept
old_given = numpy.random.RandomState(7)
"""

OWN = ["drawn", "draw", "generator", "old"]
GIVEN = ["given", "given_later", "copied", "generator_given", "old_given"]

SEEDS_ALL = """
import random, sys
import numpy

random.seed(7)
numpy.random.seed(7)
try:
    import torch
    torch.manual_seed(7)
except ImportError:
    pass
"""


def of_module(folder: str) -> dict[str, Any]:
    import keeps_generators

    drawn: dict[str, Any] = {name: getattr(keeps_generators, name) for name in OWN + GIVEN}
    for name, made in drawn.items():
        method = getattr(made, "standard_normal", getattr(made, "random", made))
        drawn[name] = float(method())
    drawn["children"] = float(keeps_generators.generator.spawn(1)[0].random())
    meet(folder)
    return drawn


def of_seeded(folder: str) -> dict[str, Any]:
    import numpy
    import seeds_all  # noqa: F401

    drawn = {"random": random.random(), "numpy": float(numpy.random.random())}
    if "torch" in sys.modules:
        import torch

        drawn["torch"] = torch.randn(1).item()
    meet(folder)
    return drawn


def finds_modules_in(folder: Path) -> dict[str, str]:
    """And what this process finds, which may be another checkout than the one that is installed."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@contextmanager
def with_module(name: str, text: str, folder: Path) -> Iterator[flyte.TaskEnvironment]:
    """An environment of two replicas forked from a process that has imported this module."""
    (folder / f"{name}.py").write_text(text)
    env = flyte.TaskEnvironment(
        name.replace("_", "-"),
        reusable=flyte.ReusePolicy(replicas=2),
        env_vars=finds_modules_in(folder),
    )
    pool = flyte.pool(env, preimport=[name]).warm(2)
    try:
        yield env
    finally:
        pool.stop()


def test_generators_that_modules_keep_differ_unless_they_were_given_a_seed(tmp_path: Path) -> None:
    with with_module("keeps_generators", KEEPS_GENERATORS, tmp_path) as env:
        one, two = on_both(env.task(of_module, timeout=20))
    assert [name for name in (*OWN, "children") if one[name] == two[name]] == []
    assert [name for name in GIVEN if one[name] != two[name]] == []
    assert one["given"] == random.Random(7).random()


def test_a_seed_that_an_import_has_given_stays(tmp_path: Path) -> None:
    with with_module("seeds_all", SEEDS_ALL, tmp_path) as env:
        one, two = on_both(env.task(of_seeded, timeout=20))
    assert one == two
    assert one["random"] == random.Random(7).random()


@forked.task(timeout=20)
def surroundings(folder: str) -> dict[str, Any]:
    printed = subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout
    found = {
        "pid": os.getpid(),
        "python": dict(os.environ),
        "system": dict(line.split("=", 1) for line in printed.split("\0") if line),
        "cwd": os.getcwd(),
    }
    meet(folder)
    return found


def test_the_environment_of_a_replica_is_its_own() -> None:
    names = {replica.pid: (replica.id, replica.name) for replica in ready(forked)}
    both = on_both(surroundings)
    assert {found["pid"] for found in both} == set(names)
    for found in both:
        replica, name = names[found["pid"]]
        for variables in (found["python"], found["system"]):
            assert variables[orphans.REPLICA_TAG] == replica
            assert variables["FLYTE_JUPYTER_REPLICA_NAME"] == name
            assert variables["CUDA_VISIBLE_DEVICES"] == ""
            assert not {"FLYTE_JUPYTER_TASK_FD", "FLYTE_JUPYTER_PARENT"} & set(variables)
        assert found["cwd"] == os.getcwd(), "the caller's, not the zygote's"


def test_the_environment_of_the_zygote_has_neither_devices_nor_a_replica() -> None:
    variables = psutil.Process(zygote().pid).environ()
    assert variables[orphans.REPLICA_TAG] == "zygote"
    for name in ("FLYTE_JUPYTER_TASK_FD", "FLYTE_JUPYTER_PARENT", "CUDA_VISIBLE_DEVICES"):
        assert name not in variables


@forked.task(timeout=20)
def descriptors() -> dict[str, Any]:
    import socket

    packets, targets = [], {}
    for name in os.listdir("/proc/self/fd"):
        try:
            targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    if copy.type == socket.SOCK_SEQPACKET:
                        packets.append(int(name))
        except OSError:
            continue  # the one that lists the folder
    return {"packets": packets, "targets": targets}


def test_a_replica_holds_no_descriptor_of_the_zygote() -> None:
    def ends(pid: int) -> set[str]:
        folder = Path(f"/proc/{pid}/fd")
        return {os.readlink(each) for each in folder.iterdir() if not each.name.isdigit() or int(each.name) > 2}

    of_the_zygote = {target for target in ends(zygote().pid) if target.startswith(("socket:", "pipe:"))}
    assert len(of_the_zygote) == 1, "its control socket"
    for pid in pids(forked):
        assert not of_the_zygote & ends(pid)
    found = descriptors()
    assert found["packets"] == []
    assert found["targets"][0] == os.devnull
    assert "zygote" not in found["targets"][2], "its output goes into a log of its own"
    assert os.path.dirname(found["targets"][1]) == os.path.dirname(found["targets"][2]), "a nameless file beside it"


def test_neither_zygote_nor_replica_listens_on_the_network() -> None:
    for pid in (zygote().pid, *pids(forked)):
        assert psutil.Process(pid).net_connections("inet") == []


# --- deaths


def test_replicas_outlive_their_zygote_and_the_next_one_comes_from_another() -> None:
    before, old = set(pids(forked)), zygote().pid
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: not alive(old))
    assert {found["pid"] for found in on_both(surroundings)} == before
    flyte.pool(forked).scale(3)
    try:
        wait_until(lambda: len(pids(forked)) == 3, START_S, "a third replica")
        assert before < set(pids(forked))
        (third,) = set(pids(forked)) - before
        assert is_forked(third)
        assert zygote().pid != old
    finally:
        flyte.pool(forked).scale(2)
        flyte.pool(forked).stop()  # the other tests want both from one zygote
        flyte.pool(forked).warm(2)


@forked.task(timeout=20)
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@forked.task(timeout=20)
def exits() -> None:
    os._exit(3)


@pytest.mark.parametrize(("task", "number", "code"), [(dies, 9, None), (exits, None, 3)], ids=["signal", "exit"])
def test_a_forked_replica_that_dies_says_how_and_is_replaced_by_a_fork(
    task: Any, number: int | None, code: int | None, shared_broker: Path
) -> None:
    before, its_zygote = set(pids(forked)), zygote().pid
    error = attempt(task)
    assert isinstance(error, errors.ReplicaDied)
    assert (error.signal, error.exit_code) == (number, code)
    wait_until(lambda: len(pids(forked)) == 2 and set(pids(forked)) != before, START_S, "the pool is complete again")
    assert len(before & set(pids(forked))) == 1
    assert all(is_forked(pid) for pid in pids(forked))
    assert zygote().pid == its_zygote
    assert zygote().replicas == 2
    (dead,) = before - set(pids(forked))
    assert dead not in replicas_of(shared_broker)
    assert not psutil.pid_exists(dead), "the broker has collected it"


# --- without


STARTS_A_THREAD = """
import threading
threading.Thread(target=threading.Event().wait, name="eager", daemon=True).start()
"""


def test_an_import_that_starts_a_thread_is_left_to_the_replica_and_said(tmp_path: Path) -> None:
    (tmp_path / "eager.py").write_text(STARTS_A_THREAD)
    variables = finds_modules_in(tmp_path)
    eager = flyte.TaskEnvironment("eager", reusable=flyte.ReusePolicy(replicas=(1, 1)), env_vars=variables)
    pool = flyte.pool(eager, preimport=["eager"]).warm()
    try:
        (reason,) = [why for key, why in broker.connect().snapshot().spawned.items() if key == pool.key]
        assert reason == "forked without preimports: an import has started a thread: eager"
        assert all(is_forked(pid) for pid in pids(eager))
        assert eager.task(imports_eager)() == ["eager"]
    finally:
        pool.stop()


def imports_eager() -> list[str]:
    import eager  # noqa: F401

    return [thread.name for thread in threading.enumerate() if thread.name == "eager"]


def test_without_zygotes_replicas_are_spawned_and_work(own_broker: OwnBroker) -> None:
    own_broker.variables["FLYTE_JUPYTER_ZYGOTE"] = "0"
    said = own_broker.run(
        """
        from flyte_jupyter.client import broker
        env = flyte.TaskEnvironment("spawned", reusable=flyte.ReusePolicy(replicas=(1, 1)))

        @env.task
        def line() -> str:
            return open("/proc/self/cmdline").read()

        say("flyte_jupyter.broker.zygote" in line(), "flyte_jupyter.kernel" in line())
        say(len(broker.connect().snapshot().zygotes))
        """
    )
    assert said == ["False True", "0"]
