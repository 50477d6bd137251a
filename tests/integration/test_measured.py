"""What is used, measured by a real broker: memory of real replicas, GPUs of a driver that is stood in for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from standin import CARD
from standin import Driver as StandIn
from support import START_S, OwnBroker, wait_until

from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.snapshot import PoolView

pytestmark = pytest.mark.kernel

GIB = 1 << 30
MIB = 1 << 20

HOLDER = """
env = flyte.TaskEnvironment("gpu", resources=flyte.Resources(gpu=1), reusable=flyte.ReusePolicy(replicas=1))
held = []

@env.task
def take(megabytes: int) -> int:
    import subprocess, sys
    if megabytes:
        held.append(bytearray(b"x") * (megabytes << 20))
        code = f"import sys; held = bytearray(b'x') * ({megabytes} << 20); print(flush=True); sys.stdin.read()"
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        held.append(child)
        return child.pid
    return os.getpid()

for megabytes in (0, 100):
    say(take(megabytes))
    wait_said(f"go {megabytes}")
"""


@pytest.fixture
def standin(tmp_path: Path) -> StandIn:
    driver = StandIn(tmp_path)
    driver.say({**CARD, "used": GIB})
    return driver


@pytest.fixture
def own(tmp_path: Path, standin: StandIn) -> Iterator[OwnBroker]:
    """A broker that finds the stand-in, as it would find a driver."""
    own = OwnBroker(tmp_path, **standin.variables)
    del own.variables["FLYTE_JUPYTER_GPUS"]
    yield own
    own.end()


def go(own: OwnBroker, word: str) -> None:
    with open(own.home / "holder", "a") as file:
        file.write(f"go {word}\n")


def the_pool(snapped: p.Snapped) -> PoolView:
    [pool] = snapped.snapshot.pools
    return pool


def measured(connection: broker.Connection, condition: Any) -> p.Snapped:
    def look() -> p.Snapped | None:
        snapped = connection.snapshot(usage=True)
        return snapped if condition(snapped) else None

    found = wait_until(look, START_S)
    assert found is not None
    return found


def test_memory_of_a_replica_and_owners_of_a_gpu(own: OwnBroker, standin: StandIn) -> None:
    own.start(HOLDER, name="holder")
    [pid] = own.wait_said("holder")
    with own.connected() as connection:
        before = connection.snapshot()
        assert (standin.calls("init"), standin.calls("read")) == (1, 0)  # when it began, for what there is
        assert before.usage.measured_at is None
        [replica] = the_pool(before).replicas
        before = measured(connection, lambda snapped: replica.id in snapped.usage.replicas)
        go(own, "0")
        child = int(own.wait_said("holder", 3)[2])
        standin.say({**CARD, "used": 9 * GIB, "temperature": 61, "compute": f"{pid}:{4 * GIB},{child}:{GIB},1:{GIB}"})
        after = measured(connection, lambda snapped: snapped.usage.devices["GPU-a"].temperature_c == 61)
    grown = after.usage.replicas[replica.id].memory_bytes - before.usage.replicas[replica.id].memory_bytes
    assert grown == pytest.approx(200 * MIB, abs=20 * MIB)
    usage = after.usage.devices["GPU-a"]
    owners = [(owner.label, owner.kind, owner.replica, owner.pid, owner.bytes) for owner in usage.owners]
    assert owners[0] == ("gpu[0]", "replica", replica.id, int(pid), 4 * GIB)
    assert ("gpu[0]", "replica", replica.id, child, GIB) in owners
    assert {owner[1] for owner in owners} == {"replica", "process"}
    assert usage.used_bytes == 9 * GIB
    go(own, "100")


def test_who_does_not_ask_for_it_has_nothing_measured(own: OwnBroker, standin: StandIn) -> None:
    own.start(HOLDER, name="holder")
    own.wait_said("holder")
    heard: list[p.Snapped | None] = []
    with own.connected() as connection, connection.watching(heard.append):
        wait_until(lambda: heard)
        go(own, "0")
        own.wait_said("holder", 3)
        for _ in range(20):
            connection.snapshot()
    assert (standin.calls("init"), standin.calls("read")) == (1, 0)
    go(own, "100")


PATIENT = "from flyte_jupyter.client import gpu_memory\ngpu_memory.WAIT_S = 60  # the machine may be slow"
FULL = """
pool = flyte.TaskEnvironment("gpu", resources=flyte.Resources(gpu=1), reusable=flyte.ReusePolicy(replicas=1))

class OutOfMemoryError(RuntimeError):
    pass

@pool.task
def pid() -> int:
    return os.getpid()

@pool.task
def fills(what: str) -> None:
    if what == "torch":
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise RuntimeError("CUDA error: out of memory" if what == "cuda" else "the disk is out of memory cards")

def notes(call):
    try:
        call()
    except Exception as error:
        say(json.dumps([type(error).__name__, *error.__notes__]))
"""


def test_a_task_that_runs_out_of_gpu_memory_names_who_holds_it(own: OwnBroker, standin: StandIn) -> None:
    script = f"""
import asyncio, json
{PATIENT}
{FULL}
say(pid())
wait_said("go")
notes(lambda: fills("torch"))
notes(lambda: asyncio.run(fills.aio("torch")))
notes(lambda: list(flyte.map(fills, ["cuda"], return_exceptions=False)))
notes(lambda: fills("disk"))
"""
    own.start(script, name="holder")
    [pid] = own.wait_said("holder")
    standin.say({**CARD, "used": 23 * GIB, "compute": f"1:{4 * GIB},{pid}:{18 * GIB}"})
    go(own, "")
    *full, other = [json.loads(line) for line in own.wait_said("holder", 6)[2:]]
    user, name = psutil.Process(1).username(), psutil.Process(1).name()
    for cls, *notes in full:
        assert cls in ("OutOfMemoryError", "RuntimeError")
        assert notes[1] == "FJ501 Task gpu.fills ran out of GPU memory on gpu[0]: 1.0 of 24.0 GiB free on GPU 0."
        assert notes[2] == f'Held by: gpu[0] 18.0, another process "{name}" of user {user} 4.0.'
        assert notes[3].startswith("Use a smaller batch, or free what is held: ")
    assert [cls for cls, *_ in full] == ["OutOfMemoryError", "OutOfMemoryError", "RuntimeError"]
    assert other == ["RuntimeError", "gpu.fills raised this on gpu[0]."]


def test_a_preload_that_runs_out_of_gpu_memory_names_who_holds_it(own: OwnBroker, standin: StandIn) -> None:
    standin.say({**CARD, "used": 23 * GIB, "compute": f"1:{20 * GIB}"})
    script = f"""
import asyncio, json
{PATIENT}
{FULL}
@flyte.pool(pool).preload
def model():
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
notes(pid)
notes(lambda: asyncio.run(pid.aio()))
"""
    for line in own.run(script):
        cls, *notes = json.loads(line)
        assert cls == "PoolFailed"
        [what] = [note for note in notes if note.startswith("FJ501")]
        assert what == "FJ501 The preload ran out of GPU memory: 1.0 of 24.0 GiB free on GPU 0."
        assert any(note.startswith("Held by: another process ") and note.endswith(" 20.0.") for note in notes)


def test_a_driver_that_hangs_does_not_keep_an_error_back_for_long(own: OwnBroker, standin: StandIn) -> None:
    own.start(
        f"""
import json
{FULL}
say(pid())
wait_said("go")
notes(lambda: fills("torch"))
""",
        name="holder",
    )
    own.wait_said("holder")
    standin.say(CARD, hang=1)
    go(own, "")
    [said] = own.wait_said("holder", 3)[2:]
    assert json.loads(said) == ["OutOfMemoryError", "gpu.fills raised this on gpu[0]."]


def test_a_broker_ends_although_the_driver_hangs(own: OwnBroker, standin: StandIn) -> None:
    own.start(HOLDER, name="holder")
    own.wait_said("holder")
    standin.say(CARD, hang=1)
    with own.connected() as connection:
        assert connection.snapshot(usage=True).usage.devices == {}
    go(own, "0")
    go(own, "100")


def test_a_broker_ends_although_the_driver_hangs_from_the_beginning(own: OwnBroker, standin: StandIn) -> None:
    standin.say(CARD, hang=1)
    script = """
env = flyte.TaskEnvironment("cpu", reusable=flyte.ReusePolicy(replicas=1))

@env.task
def four() -> int:
    return 4

say(four())
"""
    assert own.run(script) == ["4"]


def test_a_replica_that_passes_its_limit_of_memory_is_stopped_and_says_so(own_broker: OwnBroker) -> None:
    script = """
policy = flyte.ReusePolicy(replicas=1)
small = flyte.TaskEnvironment("small", resources=flyte.Resources(memory="300Mi"), reusable=policy)

@small.task
def take(megabytes: int) -> None:
    held = bytearray(b"x") * (megabytes << 20)
    time.sleep(megabytes and 60)

take(0)
try:
    take(400)
except errors.OOMError as error:
    say(error)
"""
    [said] = own_broker.run(script)
    assert "of its limit of 0.29 GiB" in said


def test_the_command_says_who_uses_a_gpu(own: OwnBroker, standin: StandIn) -> None:
    own.start(HOLDER, name="holder")
    [pid] = own.wait_said("holder")
    standin.say({**CARD, "used": 9 * GIB, "utilization": 62, "temperature": 61, "compute": f"{pid}:{6 * GIB}"})
    call = "from flyte_jupyter import cli; sys.stdout = open(SAID, 'w'); cli.main({!r})"
    said = own.run(call.format(["gpu"]))
    assert said == [
        "GPU 0 · RTX 4090 ── 9.0 GiB of 24.0 GiB · 62 % busy · 61 °C · held by gpu[0]",
        "  replicas  gpu[0] 6.0 GiB",
        "  the rest  3.0 GiB (the driver, and what it does not say)",
    ]
    [gpu] = json.loads("\n".join(own.run(call.format(["gpu", "--json"]))))["gpus"]
    assert (gpu["uuid"], gpu["usage"]["used_bytes"], gpu["usage"]["owners"][0]["label"]) == ("GPU-a", 9 * GIB, "gpu[0]")
    status = "\n".join(own.run(call.format(["status"])))
    assert "9.0 GiB of 24.0 GiB" in status
    assert status.splitlines()[3].split() == ["│", "#", "state", "GPU", "memory", "task", "age", "pid"]
    go(own, "0")
    go(own, "100")


def test_the_command_needs_no_broker(own: OwnBroker, standin: StandIn) -> None:
    standin.say({**CARD, "used": GIB})
    call = "from flyte_jupyter import cli; sys.stdout = open(SAID, 'w'); cli.main(['gpu'])"
    assert own.run(call)[0] == "GPU 0 · RTX 4090 ── 1.0 GiB of 24.0 GiB"
    standin.say(init="!9")
    assert own.run(call) == ["GPUs: none (the NVIDIA driver did not answer (Driver Not Loaded))"]
