"""What is used and by whom: the real binding over a stand-in for the driver, and real processes."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from standin import CARD, LOST, NO_PERMISSION
from standin import Driver as StandIn
from support import wait_until

from flyte_jupyter import devices as devices_module
from flyte_jupyter.core.usage import DeviceUsage, OwnerView, ReplicaUsage, Usage
from flyte_jupyter.devices import DECLARED, Driver, DriverFailed, Reading, find_devices
from flyte_jupyter.usage import Known, Processes, private_bytes

GIB = 1 << 30


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    driver = StandIn(tmp_path_factory.mktemp("driver"))
    with driver.loaded():
        yield driver


@pytest.fixture
def driver(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.delenv(DECLARED, raising=False)
    driver = Driver()
    yield driver
    driver.close()
    assert standin.calls("init") == standin.calls("shutdown")


# --- the driver


def test_a_card_says_what_is_used_and_by_which_processes(standin: StandIn, driver: Driver) -> None:
    standin.say({**CARD, "used": 14 * GIB, "utilization": 62, "temperature": 61, "compute": f"7:{6 * GIB},9:{3 * GIB}"})
    assert driver.read() == {"GPU-a": Reading(14 * GIB, 62, 61, {7: 6 * GIB, 9: 3 * GIB})}


def test_a_process_that_computes_and_draws_counts_once(standin: StandIn, driver: Driver) -> None:
    standin.say({**CARD, "compute": "7:100,8:5", "graphics": "7:100,9:-", "mps": "10:1"})
    assert driver.read()["GPU-a"].processes == {7: 100, 8: 5, 9: None, 10: 1}


def test_what_is_not_supported_or_not_permitted_is_unknown(standin: StandIn, driver: Driver) -> None:
    standin.say({**CARD, "used": 5, "utilization": NO_PERMISSION, "compute": NO_PERMISSION})
    assert driver.read() == {"GPU-a": Reading(5, None, None, {})}


def test_an_instance_is_asked_for_memory_and_its_card_for_the_temperature(standin: StandIn, driver: Driver) -> None:
    parts = [
        {"name": "NVIDIA H100 MIG 1g.10gb", "uuid": f"MIG-{part}", "total": 10 * GIB, "used": part, "compute": "7:1"}
        for part in (1, 2)
    ]
    standin.say({"name": "NVIDIA H100", "uuid": "GPU-h", "temperature": 50, "mig": 1, "instances": 7, "parts": parts})
    assert [device.partition for device in find_devices().devices] == ["1g.10gb", "1g.10gb"]
    assert driver.read() == {"MIG-1": Reading(1, None, 50, {7: 1}), "MIG-2": Reading(2, None, 50, {7: 1})}


def test_a_lost_card_is_left_out_and_comes_back(standin: StandIn, driver: Driver) -> None:
    other = {**CARD, "uuid": "GPU-b"}
    standin.say({**CARD, "handle": LOST}, other)
    assert driver.read().keys() == {"GPU-b"}
    standin.say(CARD, other)
    assert driver.read().keys() == {"GPU-a", "GPU-b"}


def test_a_driver_that_fails_says_why_and_is_opened_anew(standin: StandIn, driver: Driver) -> None:
    standin.say({**CARD, "handle": LOST})
    with pytest.raises(DriverFailed, match=r"the NVIDIA driver failed \(GPU is lost\)"):
        driver.read()
    standin.say(init="!9")
    with pytest.raises(DriverFailed, match=r"the NVIDIA driver did not answer \(Driver Not Loaded\)"):
        driver.read()
    standin.say(CARD)
    assert driver.read().keys() == {"GPU-a"}


def test_the_driver_stays_open_between_readings(standin: StandIn, driver: Driver) -> None:
    standin.say(CARD)
    opened = standin.calls("init")
    driver.read()
    driver.read()
    assert standin.calls("init") == opened + 1


def test_a_driver_that_hangs_has_no_devices(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DECLARED, raising=False)
    monkeypatch.setattr(devices_module, "PATIENCE_S", 0.1)
    standin.say(CARD, hang=1)
    found = find_devices()
    standin.say(CARD)
    assert (found.devices, found.problem) == ((), "the NVIDIA driver does not answer within 0.1 s")
    wait_until(lambda: standin.calls("init") == standin.calls("shutdown"))


# --- processes


@pytest.fixture
def child() -> Iterator[int]:
    """A process of ours that has started one of its own, whose id this is."""
    inner = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        assert process.stdin is not None
        process.stdin.close()


def owners(processes: dict[int, int | None], known: dict[int, Known]) -> tuple[OwnerView, ...]:
    devices, _ = Processes().usage({"GPU-a": Reading(GIB, None, None, processes)}, known)
    return devices["GPU-a"].owners


def test_what_a_replica_has_started_belongs_to_it(child: int) -> None:
    [owner] = owners({child: 5}, {psutil.Process(child).ppid(): Known("gpu[0]", "r0")})
    assert owner == OwnerView(label="gpu[0]", kind="replica", replica="r0", pid=child, user=getpass.getuser(), bytes=5)


def test_a_client_is_a_notebook_and_others_are_programs(child: int) -> None:
    kinds = {owner.pid: (owner.kind, owner.label) for owner in owners({child: 1, os.getpid(): None}, {})}
    name = psutil.Process().name()
    assert kinds == {child: ("process", psutil.Process(child).name()), os.getpid(): ("process", name)}
    [owner] = owners({child: 1}, {child: Known("train.ipynb")})
    assert (owner.kind, owner.label, owner.replica) == ("notebook", "train.ipynb", None)


def test_a_notebook_of_nobody_we_know_is_named_after_its_file() -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "ipykernel_launcher"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "JPY_SESSION_NAME": "/home/alice/tune.ipynb"},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [owner] = owners({process.pid: 1}, {})
        assert process.stdin is not None
        process.stdin.close()
    assert (owner.kind, owner.label) == ("notebook", "tune.ipynb")


def test_a_process_that_cannot_be_seen_is_still_an_owner() -> None:
    [owner] = owners({2**22 + 1: 7}, {})
    assert owner == OwnerView(label="unknown", kind="process", replica=None, pid=2**22 + 1, user=None, bytes=7)


def test_the_largest_owner_comes_first_and_the_unknown_last() -> None:
    assert [owner.bytes for owner in owners({2**22 + 1: None, 2**22 + 2: 3, 2**22 + 3: 9}, {})] == [9, 3, None]


def test_where_the_card_shares_the_main_memory_the_processes_are_added_up() -> None:
    devices, _ = Processes().usage({"GPU-g": Reading(None, None, None, {2**22 + 1: 3, 2**22 + 2: 4})}, {})
    assert devices["GPU-g"].used_bytes == 7


def test_a_replicas_memory_is_that_of_all_it_has_started(child: int) -> None:
    parent = psutil.Process(child).ppid()
    processes = Processes()
    _, replicas = processes.usage({}, {parent: Known("gpu[0]", "r0"), os.getpid(): Known("a notebook")})
    assert replicas.keys() == {"r0"}
    both = private_bytes(psutil.Process(parent)) + private_bytes(psutil.Process(child))
    assert replicas["r0"].memory_bytes == pytest.approx(both, rel=0.1)


def test_an_orphan_does_not_belong_to_who_gets_the_id_of_its_parent(child: int) -> None:
    parent = psutil.Process(psutil.Process(child).ppid())
    known = {parent.pid: Known("gpu[0]", "r0")}
    processes = Processes()
    processes.usage({}, known)
    parent.kill()
    parent.wait()
    devices, _ = processes.usage({"GPU-a": Reading(0, None, None, {child: 1})}, known)
    assert devices["GPU-a"].owners[0].replica is None
    psutil.Process(child).kill()


# --- what a person would notice

OWNER = OwnerView(label="gpu[0]", kind="replica", replica="r0", pid=7, user="me", bytes=GIB)
DEVICE = DeviceUsage(used_bytes=2 * GIB, utilization=50, temperature_c=60, owners=(OWNER,))
SHOWN = Usage(measured_at=1.0, devices={"GPU-a": DEVICE}, replicas={"r0": ReplicaUsage(memory_bytes=GIB)})


@pytest.mark.parametrize(
    ("device", "noticed"),
    [
        ({}, False),
        ({"used_bytes": 2 * GIB + (1 << 20)}, False),
        ({"used_bytes": 2 * GIB + GIB // 10}, True),
        ({"utilization": 54}, False),
        ({"utilization": 55}, True),
        ({"utilization": None}, True),
        ({"temperature_c": 61}, False),
        ({"temperature_c": 62}, True),
        ({"owners": ()}, True),
        ({"owners": (OWNER.model_copy(update={"bytes": GIB - 1}),)}, False),
        ({"owners": (OWNER.model_copy(update={"bytes": None}),)}, True),
    ],
)
def test_a_device_that_has_hardly_changed_is_no_news(device: dict[str, object], noticed: bool) -> None:
    now = SHOWN.model_copy(update={"measured_at": 2.0, "devices": {"GPU-a": DEVICE.model_copy(update=device)}})
    assert now.differs(SHOWN) is noticed


@pytest.mark.parametrize(
    ("replicas", "noticed"),
    [({"r0": GIB + GIB // 100}, False), ({"r0": GIB + GIB // 20}, True), ({}, True), ({"r0": GIB, "r1": 1}, True)],
)
def test_a_replica_that_has_hardly_changed_is_no_news(replicas: dict[str, int], noticed: bool) -> None:
    used = {name: ReplicaUsage(memory_bytes=count) for name, count in replicas.items()}
    assert SHOWN.model_copy(update={"replicas": used}).differs(SHOWN) is noticed


def test_the_first_measurement_and_another_problem_are_news() -> None:
    assert Usage(measured_at=1.0).differs(Usage())
    assert not Usage(measured_at=2.0).differs(Usage(measured_at=1.0))
    assert Usage(measured_at=2.0, problem="hangs").differs(Usage(measured_at=1.0))
