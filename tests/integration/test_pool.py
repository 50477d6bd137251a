"""What a pool does while nothing goes wrong: concurrency, reuse, identity, devices, retries, output, nested calls."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import (
    START_S,
    TIME_SCALE,
    Counter,
    OwnBroker,
    alive,
    assert_quiet,
    attempt,
    guardians,
    mark,
    pids,
    ready,
    replicas_of,
    view_of,
    wait_until,
    whole_text,
    within,
)

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client import broker

pytestmark = pytest.mark.kernel

ten = flyte.TaskEnvironment("ten", reusable=flyte.ReusePolicy(replicas=2, concurrency=10))
one = flyte.TaskEnvironment("one", reusable=flyte.ReusePolicy(replicas=(1, 1)))
two_slots = flyte.TaskEnvironment("two-slots", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=2))
cold = flyte.TaskEnvironment("cold", env_vars={"FLAVOUR": "vanilla"})


@pytest.fixture(autouse=True)
def _always(shared_broker: Path) -> Iterator[None]:
    for environment in (ten, one, two_slots):
        flyte.pool(environment).warm()
    yield
    assert_quiet(ten, one, two_slots, timeout=START_S)


# --- concurrency


@ten.task
async def nap(path: str) -> int:
    mark(path, f"+ {os.getpid()}")
    await asyncio.sleep(0.05 * TIME_SCALE)  # long enough for all slots to be taken
    mark(path, f"- {os.getpid()}")
    return os.getpid()


@ten.task
async def where() -> int:
    return os.getpid()


def test_two_replicas_of_ten_slots_run_twenty_tasks_at_a_time_and_no_more(tmp_path: Path) -> None:
    async def many(path: str) -> list[int]:
        return await asyncio.gather(*(nap(path) for _ in range(200)))

    asyncio.run(many(str(tmp_path / "warm")))
    ran = Counter(tmp_path / "ran")
    started = time.monotonic()
    answers = asyncio.run(many(ran.path))
    took = time.monotonic() - started
    assert set(answers) == set(pids(ten))
    most: dict[str, int] = {}
    running: dict[str, int] = {}
    for line in ran.lines():
        sign, replica = line.split()
        running[replica] = running.get(replica, 0) + (1 if sign == "+" else -1)
        most[replica] = max(most.get(replica, 0), running[replica])
    assert len(ran) == 400
    assert max(most.values()) == 10
    assert took <= 0.75 * TIME_SCALE


def test_threads_share_a_pool_without_sharing_a_slot(tmp_path: Path) -> None:
    overlap = Counter(tmp_path / "overlap")
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(alone, [overlap.path] * 40)) == 40
    running = 0
    for line in overlap.lines():
        running += 1 if line == "+" else -1
        assert running <= 1


@one.task
def alone(path: str) -> int:
    mark(path, "+")
    time.sleep(0.002)
    mark(path, "-")
    return 1


@one.task
def one_pid() -> int:
    return os.getpid()


# --- nested calls


@one.task
def child_of_one(number: int) -> int:
    return number + 1


@one.task
def parent_of_one(number: int) -> int:
    return child_of_one(number)


@two_slots.task
async def child(number: int) -> int:
    return number + 1


@two_slots.task
async def parent(number: int) -> int:
    return await child(number)


@two_slots.task
async def calls_other_pools(number: int) -> tuple[int, int, int]:
    return await child_of_one.aio(number), await where(), os.getpid()


@two_slots.task
async def forgets_aio() -> int:
    return child_of_one(1)


@one.task
def parent_of_failure() -> str:
    try:
        return str(asyncio.run(fails_below()))
    except ValueError as error:
        return f"caught {error} of type {type(error).__mro__[1].__name__}"


@two_slots.task
async def fails_below() -> int:
    raise ValueError("below")


@one.task
def passes_failure_on() -> int:
    return asyncio.run(fails_below())  # type: ignore[no-any-return]


def test_a_parent_that_holds_the_only_slot_is_told_that_its_child_can_never_start() -> None:
    before = one_pid()
    with within(5):
        error = attempt(parent_of_one, 1)
    assert isinstance(error, errors.StarvationError)
    text = whole_text(error)
    for word in ("one.parent_of_one", "one.child_of_one", 'holds the only replica of "one"', "concurrency 1"):
        assert word in text
    assert 'parent_of_one.override(reusable="off")' in text
    assert one_pid() == before


def test_with_room_for_both_a_parent_gets_its_childs_result() -> None:
    assert asyncio.run(parent(1)) == 2


def test_more_parents_than_slots_are_told_and_the_rest_go_on() -> None:
    async def many() -> list[Any]:
        return await asyncio.gather(*(parent(number) for number in range(4)), return_exceptions=True)

    with within(15):
        outcomes = asyncio.run(many())
    assert all(isinstance(each, int | errors.StarvationError) for each in outcomes), outcomes
    assert asyncio.run(parent(1)) == 2


def test_a_task_calls_tasks_of_other_pools() -> None:
    number, elsewhere, here = asyncio.run(calls_other_pools(4))
    assert number == 5
    assert elsewhere in pids(ten)
    assert [here] == pids(two_slots)


def test_a_sync_call_inside_an_async_task_is_refused_with_its_cure() -> None:
    error = attempt(asyncio.run, forgets_aio())
    assert isinstance(error, errors.SyncTaskCallInAsyncContextError)
    assert "child_of_one.aio" in whole_text(error)


def test_an_error_of_a_child_can_be_caught_by_its_parent_or_pass_through_it() -> None:
    assert parent_of_failure() == "caught below of type RuntimeUserError"
    error = attempt(passes_failure_on)
    assert isinstance(error, ValueError)
    assert isinstance(error, errors.RuntimeUserError)
    assert "one.passes_failure_on" in whole_text(error)


# --- one-shot replicas


@one.task
def flavour() -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("FLAVOUR")


@cold.task
def cold_flavour() -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("FLAVOUR")


def test_a_call_without_reuse_gets_a_replica_of_its_own_that_is_gone_afterwards() -> None:
    warm = one_pid()
    elsewhere, value = flavour.override(reusable="off", env_vars={"FLAVOUR": "mint"})()
    assert (elsewhere != warm, value) == (True, "mint")
    first, value = cold_flavour()
    assert value == "vanilla"
    wait_until(lambda: not alive(elsewhere) and not alive(first), 3, "one-shot replicas are gone")
    assert flavour() == (warm, None)


# --- retries, limits


@one.task(retries=2)
def flaky(ran: str, good_after: int) -> int:
    mark(ran, str(flyte.ctx().attempt_number))
    if len(Path(ran).read_text().splitlines()) <= good_after:
        raise ValueError("not yet")
    return flyte.ctx().attempt_number


@one.task(retries=2)
def hopeless(ran: str) -> None:
    mark(ran)
    raise errors.NonRecoverableError("never")


def test_a_task_is_tried_as_often_as_it_asked_for(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    assert flaky(ran.path, 2) == 2
    assert ran.lines() == ["0", "1", "2"]
    ran = Counter(tmp_path / "exhausted")
    assert isinstance(attempt(flaky, ran.path, 99), ValueError)
    assert ran.lines() == ["0", "1", "2"]
    ran = Counter(tmp_path / "aio")
    assert asyncio.run(flaky.aio(ran.path, 2)) == 2
    assert ran.lines() == ["0", "1", "2"]


def test_an_error_that_says_so_is_not_tried_again(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    error = attempt(hopeless, ran.path)
    assert isinstance(error, errors.RuntimeUserError)
    assert error.code == "NonRecoverableError"
    assert len(ran) == 1


# --- how a task runs


@one.task
def runs_a_loop() -> str:
    async def inside() -> str:
        await asyncio.sleep(0)
        return "ran"

    return asyncio.run(inside()) + asyncio.run(inside())


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@two_slots.task
async def sets_a_variable(value: str) -> tuple[str, str]:
    before = variable.get()
    variable.set(value)
    await asyncio.sleep(0.05)
    return before, variable.get()


def test_a_sync_task_may_run_a_loop_of_its_own() -> None:
    for _ in range(3):
        assert runs_a_loop() == "ranran"


def test_context_variables_of_concurrent_tasks_do_not_meet() -> None:
    async def both() -> list[tuple[str, str]]:
        return await asyncio.gather(sets_a_variable("a"), sets_a_variable("b"))

    assert asyncio.run(both()) == [("unset", "a"), ("unset", "b")]
    assert asyncio.run(both()) == [("unset", "a"), ("unset", "b")]


@two_slots.task
async def talks(name: str) -> None:
    for number in range(20):
        print(f"{name} {number}")
        if number % 5 == 0:
            print(f"{name} {number} err", file=sys.stderr)
        await asyncio.sleep(0.001)


def test_output_of_concurrent_tasks_arrives_in_order_and_complete(capfd: pytest.CaptureFixture[str]) -> None:
    async def both() -> None:
        await asyncio.gather(talks("a"), talks("b"))

    asyncio.run(both())
    out, err = capfd.readouterr()
    for name in "ab":
        assert [line for line in out.splitlines() if line.startswith(name)] == [f"{name} {n}" for n in range(20)]
        assert [line for line in err.splitlines() if line.startswith(name)] == [
            f"{name} {n} err" for n in range(0, 20, 5)
        ]


@one.task
def mutates(values: list[int]) -> list[int]:
    values.append(3)
    return values


def test_arguments_are_copied() -> None:
    mine = [1, 2]
    assert mutates(mine) == [1, 2, 3]
    assert mine == [1, 2]


# --- security


def test_no_process_of_a_pool_listens_on_the_network(shared_broker: Path) -> None:
    everybody = [broker.connect().broker_pid, *guardians(shared_broker), *replicas_of(shared_broker)]
    assert len(everybody) >= 6
    for pid in everybody:
        assert psutil.Process(pid).net_connections("inet") == [], psutil.Process(pid).cmdline()


def test_every_socket_and_file_of_the_runtime_folder_is_the_users_alone(shared_broker: Path) -> None:
    open_to_others = [
        (str(path), oct(path.lstat().st_mode))
        for path in [shared_broker, *shared_broker.rglob("*")]
        if path.lstat().st_mode & 0o077
    ]
    assert open_to_others == []


# --- a replica is a Jupyter kernel


@one.task
def remembers() -> int:
    return os.getpid()


def test_a_console_can_be_attached_to_a_replica_by_hand(shared_broker: Path) -> None:
    from jupyter_client import BlockingKernelClient

    here = remembers()
    [replica] = ready(one)
    [file] = shared_broker.glob(f"*/{replica.id}/kernel.json")
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=START_S)
        answer = client.execute("import os; x = os.getpid(); print(x)", reply=True, timeout=START_S)
        assert answer["content"]["status"] == "ok"
        said = _streamed(client, answer)
        assert said == f"{here}\n"
        assert remembers() == here  # the two do not exclude each other
        sleeping = client.execute("import time; time.sleep(60)")
        time.sleep(0.3)
        control = client.session.msg("interrupt_request", {})
        client.control_channel.send(control)
        assert client.control_channel.get_msg(timeout=5)["content"]["status"] == "ok"
        reply = client._recv_reply(sleeping, timeout=5)
        assert (reply["content"]["status"], reply["content"].get("ename")) == ("error", "KeyboardInterrupt")
        assert remembers() == here
    finally:
        client.stop_channels()


def _streamed(client: Any, reply: dict[str, Any]) -> str:
    text = ""
    while True:
        message = client.get_iopub_msg(timeout=5)
        if message["parent_header"].get("msg_id") != reply["parent_header"]["msg_id"]:
            continue
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
        elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return text


# --- identity: notebooks are scripts here

_NOTEBOOK = """
import functools
env = flyte.TaskEnvironment("model", reusable=flyte.ReusePolicy(replicas=(1, 1)))

@flyte.pool(env).preload
def model() -> dict:
    say("loads", {generation!r})
    return {{"pid": os.getpid()}}

@functools.lru_cache
def singleton() -> object:
    say("singleton")
    return object()

@env.task
def ask() -> tuple:
    {body}
    return model()["pid"], os.getpid(), id(singleton())

for _ in range(3):
    answer = ask()
say("answer", *answer)
"""


def test_a_pool_outlives_its_notebook_and_an_edit_keeps_the_model(own_broker: OwnBroker) -> None:
    def notebook(body: str, generation: str = "first") -> list[str]:
        said = own_broker.run(_NOTEBOOK.format(body=body, generation=generation), name="notebook")
        (own_broker.home / "notebook").unlink()
        return said

    loads, singleton, answer = notebook("pass")
    assert (loads, singleton) == ("loads first", "singleton")
    _, loaded, pid, _ = answer.split()
    assert loaded == pid
    [again] = notebook("pass")
    assert again == answer, "another process: the same replica, the same model"
    [edited] = notebook("say('edited')")[-1:]
    assert edited == answer, "an edited body: swapped in place"
    notebook("pass", "second")  # the old one may still answer
    wait_until(lambda: not alive(int(pid)), START_S, "a changed preload renews the replica")
    [*_, changed] = notebook("pass", "second")
    assert changed.split()[1] == changed.split()[2] != pid


def test_an_environment_that_takes_its_name_back_has_its_pool_again() -> None:
    def flavour() -> str:
        return os.environ["FLAVOUR"]

    policy = flyte.ReusePolicy(replicas=(0, 1))
    first, second = (
        flyte.TaskEnvironment("taken", env_vars={"FLAVOUR": name}, reusable=policy).task(flavour)
        for name in ("vanilla", "mint")
    )
    assert (first(), second()) == ("vanilla", "mint")

    def pools() -> list[str]:
        return [view.key for view in broker.connect().snapshot().snapshot.pools if view.name == "taken"]

    wait_until(lambda: len(pools()) == 1, START_S, "the first one's pool to be gone")
    assert (first(), second(), first()) == ("vanilla", "mint", "vanilla")


def test_a_preload_finds_the_modules_and_files_beside_the_notebook(own_broker: OwnBroker) -> None:
    (own_broker.home / "beside.py").write_text("value = 3\n")
    (own_broker.home / "data.txt").write_text("4")
    said = own_broker.run(
        """
env = flyte.TaskEnvironment("model", reusable=flyte.ReusePolicy(replicas=(1, 1)))

@flyte.pool(env).preload
def model() -> int:
    import beside
    with open("data.txt") as file:
        return beside.value + int(file.read())

@env.task
def ask() -> int:
    return model()

say(ask())
"""
    )
    assert said == ["7"]


def test_a_pool_without_stated_reuse_is_not_shared_by_two_notebooks_names(own_broker: OwnBroker) -> None:
    code = """
env = flyte.TaskEnvironment("shared", reusable=flyte.ReusePolicy(replicas=(1, 1)))
number = {number}

def helper() -> int:
    return number

@env.task
def ask() -> tuple:
    return helper(), os.getpid()

say(*ask())
time.sleep({wait})
say(*ask())
"""
    first = own_broker.start(code.format(number=1, wait=1.0), name="first")
    own_broker.wait_said("first")
    second = own_broker.run(code.format(number=2, wait=0), name="second")
    assert first.wait(START_S) == 0
    [one_line] = set(own_broker.said("first"))
    [two_line] = set(second)
    assert (one_line.split()[0], two_line.split()[0]) == ("1", "2")
    assert one_line.split()[1] == two_line.split()[1], "one replica"


_IN_A_CLASS = """
import functools

env = flyte.TaskEnvironment("class", reusable=flyte.ReusePolicy(replicas=(1, 1)))

class Trainer:
    base = 10

    def __init__(self, rate: int) -> None:
        self.rate = rate

    @staticmethod
    @env.task
    def outside(x: int) -> int:
        return x + 1

    @env.task
    @staticmethod
    async def inside(x: int) -> int:
        return x + 2

    @classmethod
    @env.task
    def named(cls, x: int) -> int:
        return x + cls.base

    @property
    @env.task
    def shown(self) -> int:
        return self.rate

    def fit(self, x: int) -> int:
        return x + self.rate

trainer = Trainer(20)
fit = env.task(trainer.fit)
"""

_CALLS_OF_THEM = """
say(Trainer.outside(0), trainer.outside(0), asyncio.run(trainer.inside(0)), trainer.named(0), trainer.shown, fit(0))
"""


@pytest.mark.parametrize("place", ["script", "module"])
def test_tasks_of_a_class_and_of_an_object_run(place: str, own_broker: OwnBroker) -> None:
    if place == "module":
        (own_broker.home / "beside.py").write_text(f"import flyte_jupyter as flyte\n{_IN_A_CLASS}")
        said = own_broker.run(f"from beside import *\n{_CALLS_OF_THEM}")
    else:
        said = own_broker.run(_IN_A_CLASS + _CALLS_OF_THEM)
    assert said == ["1 1 2 10 20 20"]


# --- environment, secrets, devices

_CANARY = "canary-9f2c7b"


def test_a_secret_reaches_the_task_and_nothing_else(own_broker: OwnBroker) -> None:
    own_broker.start(
        """
env = flyte.TaskEnvironment(
    "safe", secrets=flyte.Secret("api-key"), env_vars={"FLAVOUR": "mint"},
    reusable=flyte.ReusePolicy(replicas=(1, 1)),
)

@env.task
def ask() -> tuple:
    return os.environ["API_KEY"], os.environ["FLAVOUR"], os.environ["CUDA_VISIBLE_DEVICES"], "UNRELATED" in os.environ

say(ask() == (os.environ["API_KEY"], "mint", "", False))
time.sleep(60)
""",
        name="client",
        API_KEY=_CANARY,
        UNRELATED="token",
        CUDA_VISIBLE_DEVICES="0,1,2",
    )
    assert own_broker.wait_said("client") == ["True"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            assert _CANARY.encode() not in line
    for file in own_broker.folder.rglob("*"):
        if file.is_file():
            assert _CANARY not in file.read_text(errors="replace"), file
    snapshot = own_broker.snapshot()
    assert _CANARY not in snapshot.model_dump_json()
    assert _CANARY not in repr(snapshot)


def test_each_replica_gets_a_gpu_of_its_own_and_too_much_is_refused_at_once(tmp_path: Path) -> None:
    gpus = [{"uuid": f"GPU-{name}", "model": "NVIDIA H100", "memory_bytes": 80 << 30} for name in ("a", "b")]
    own = OwnBroker(tmp_path, FLYTE_JUPYTER_GPUS=json.dumps(gpus))
    try:
        said = own.run(
            """
def environment(name, gpus, replicas, **more):
    return flyte.TaskEnvironment(
        name, resources=flyte.Resources(gpu=gpus),
        reusable=flyte.ReusePolicy(replicas=replicas, concurrency=2), **more)

pair, three, cpu = environment("pair", 1, 2), environment("three", 3, (0, 1)), environment("cpu", None, (1, 1))

@pair.task
async def device() -> str:
    await asyncio.sleep(0.1)
    return os.environ["CUDA_VISIBLE_DEVICES"]

@three.task
async def too_much() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]

@cpu.task
async def none() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]

async def main():
    flyte.pool(pair).warm(2)
    devices = await asyncio.gather(*(device() for _ in range(4)))
    say(*sorted(devices))
    say(repr(await none()))
    started = time.monotonic()
    try:
        await too_much()
    except errors.NoRoom as error:
        say(time.monotonic() - started < 2, error, *error.__notes__)

asyncio.run(main())
"""
        )
        assert said[0] == "GPU-a GPU-a GPU-b GPU-b"
        assert said[1] == "''", "a pool without GPUs sees none"
        assert said[2].startswith("True")
        for fact in ('"three"', "3 GPUs wanted", "this machine has 2", "pair[0] GPU 0", "pair[1] GPU 1", "at most 2"):
            assert fact in said[2]
    finally:
        own.end()


def test_a_pool_that_needs_a_gpu_on_a_machine_without_one_says_so_at_once() -> None:
    gpu = flyte.TaskEnvironment("gpu", resources=flyte.Resources(gpu=1), reusable=flyte.ReusePolicy(replicas=2))
    task = gpu.task(one_pid.func)
    with within(2):
        error = attempt(task)
    assert isinstance(error, errors.NoUsableGPU)
    assert "1 GPU was requested" in whole_text(error)


# --- scaling


def test_a_live_pool_is_resized_without_disturbing_what_runs(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    handle = flyte.pool(one)
    before = one_pid()
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(alone_long, ran.path)
        ran.wait()
        handle.scale(2)
        try:
            handle.warm(2)
            assert before in pids(one)
            assert len(pids(one)) == 2
        finally:
            handle.scale(1)
        assert busy.result(START_S) == before
    wait_until(lambda: len(view_of(one).replicas) == 1, START_S)


@one.task
def alone_long(ran: str) -> int:
    mark(ran)
    time.sleep(1.5)
    return os.getpid()


def test_a_stopped_pool_starts_again_with_the_next_call() -> None:
    before = one_pid()
    with within(2):
        flyte.pool(one).stop()
    assert not alive(before)
    assert one_pid() != before


# --- in a real notebook


def test_a_notebook_shows_output_figures_and_progress_of_its_tasks_in_its_cells(own_broker: OwnBroker) -> None:
    import nbformat
    from nbclient import NotebookClient

    cells = [
        """
import asyncio
import flyte_jupyter as flyte
from dataclasses import dataclass
env = flyte.TaskEnvironment("cells", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=4))

@dataclass
class Point:
    x: int
""",
        """
from IPython.display import display, HTML

@env.task
async def shows(point: Point) -> Point:
    print("before")
    display(HTML("<b>shown</b>"))
    print("after")
    return Point(point.x + 1)
""",
        "result = await shows(Point(1))\nassert type(result) is Point and result.x == 2\nresult",
        """
@env.task
async def fails(x: int) -> int:
    return 1 / x

await fails(0)
""",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True)
    patch = pytest.MonkeyPatch()
    try:
        for name, value in own_broker._environment({}).items():
            patch.setenv(name, value)
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
    finally:
        patch.undo()
    shown = notebook.cells[2].outputs
    assert [output.output_type for output in shown] == ["stream", "display_data", "stream", "execute_result"]
    assert shown[0].text == "before\n"
    assert shown[1].data["text/html"] == "<b>shown</b>"
    assert shown[2].text == "after\n"
    assert shown[3].data["text/plain"] == "Point(x=2)"
    [error] = [output for output in notebook.cells[3].outputs if output.output_type == "error"]
    assert error.ename == "ZeroDivisionError"
    assert "return 1 / x" in re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
