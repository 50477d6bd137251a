"""`doctor`: what is wrong, and what to do."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from .. import _version, errors, runtime
from ..client import text
from ..core import protocol as p
from .connection import talk
from .processes import replica_processes, wait_gone
from .stop import POLITE_S
from .terminal import FAILED, OK, say, say_json

BIG_LIBRARIES: Final = ("torch", "tensorflow", "jax", "cupy", "numpy")
ADVISED: Final = {"tornado": "6.5.7"}
"""Floors of packages that we do not require, but that must not be older where they are installed."""
NETWORK_FILE_SYSTEMS: Final = (
    "nfs",
    "cifs",
    "smb",
    "sshfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what is so, and what to do about it."""

    state: Literal["ok", "warn", "fail"]
    about: str
    found: str
    do: str = ""


def run_doctor(options: argparse.Namespace) -> int:
    checks = [_check_versions, _check_folder, _check_broker, _check_devices, _check_leftovers, _check_imports]
    if options.call:
        checks.append(_check_call)
    findings = []
    for check in checks:
        try:
            found = list(check())
        except (errors.PoolError, OSError) as problem:
            notes = getattr(problem, "__notes__", ())
            found = [
                Finding(
                    "fail",
                    check.__name__.removeprefix("_check_"),
                    " ".join((str(problem), *notes[:-1])),
                    *notes[-1:],
                )
            ]
        findings += found
        if not options.json:
            for finding in found:
                say(f"{finding.state:4}  {text.visible(finding.about)}: {text.visible(finding.found)}")
                if finding.do:
                    say(f"      -> {text.visible(finding.do)}")
    bad = any(finding.state == "fail" for finding in findings)
    if options.json:
        say_json({"ok": not bad, "findings": [asdict(finding) for finding in findings]})
    return FAILED if bad else OK


def _check_versions() -> Iterable[Finding]:
    from importlib import metadata

    python = sys.version.split()[0]
    yield Finding("ok", "Python", f"{python}, {sys.executable}")
    yield Finding("ok", "flyte_jupyter", f"{_version.__version__}, {Path(__file__).parents[1]}")
    try:
        requirements = metadata.requires("flyte-jupyter") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "warn",
            "packages",
            "flyte-jupyter is not installed, only importable",
            "Run `pip install flyte-jupyter`.",
        )
        return
    good = []
    for package, floor in (*_floors(requirements), *ADVISED.items()):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package not in ADVISED:
                yield Finding("fail", package, "not installed", f"Run `pip install '{package}>={floor}'`.")
            continue
        if _numbers(version) < _numbers(floor):
            yield Finding(
                "warn" if package in ADVISED else "fail",
                package,
                f"{version}, older than {floor}",
                f"Run `pip install -U '{package}>={floor}'`.",
            )
        else:
            good.append(f"{package} {version}")
    yield Finding("ok", "packages", ", ".join(good))


def _floors(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    for requirement in requirements:
        what, _, marker = requirement.partition(";")
        floor = re.search(r">=\s*([0-9.]+)", what)
        name = re.match(r"[A-Za-z0-9._-]+", what)
        if floor and name and "extra" not in marker:
            yield name[0], floor[1]


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in release[0].split(".")] if release else []
    while numbers and not numbers[-1]:  # 6.0 is 6
        numbers.pop()
    return tuple(numbers)


def _check_folder() -> Iterable[Finding]:
    import psutil

    folder = runtime.private_folder()
    room = runtime.MAX_SOCKET_PATH - runtime.LONGEST_NAME - len(str(folder))
    kind, mount = "unknown", ""
    for partition in psutil.disk_partitions(all=True):
        if len(partition.mountpoint) >= len(mount) and Path(partition.mountpoint) in (
            folder,
            *folder.parents,
        ):
            kind, mount = partition.fstype, partition.mountpoint
    yield Finding("ok", "runtime folder", f"{folder}, yours alone (0700), {room} characters to spare, on {kind}")
    if any(name in kind.lower() for name in NETWORK_FILE_SYSTEMS):
        yield Finding(
            "fail",
            "runtime folder",
            f"{kind} is a network file system: sockets and locks do not work there reliably",
            f"Set {runtime.VARIABLE} to a folder on this machine.",
        )
    free = shutil.disk_usage(folder).free
    if free < 100 * 2**20:
        yield Finding("warn", "runtime folder", f"only {text.size(free)} free", "Logs need some room: make space.")


def _check_broker() -> Iterable[Finding]:
    with talk() as broker:
        if broker is None:
            holder = runtime.lock_holder(runtime.runtime_folder())
            if holder is not None:
                yield Finding(
                    "warn",
                    "broker",
                    f"pid {holder} has the lock, but no socket",
                    "Wait a moment, or `flyte-jupyter stop`.",
                )
            else:
                yield Finding("ok", "broker", "none runs; it starts with the first call of a task")
            return
        asked = time.perf_counter()
        snapped = broker.snapshot()
        took = (time.perf_counter() - asked) * 1000
        yield Finding("ok", "broker", f"pid {broker.pid} answers in {took:.1f} ms")
        if broker.version != _version.__version__:
            yield Finding(
                "warn",
                "broker",
                f"it is version {broker.version}, this is {_version.__version__}",
                "Run `flyte-jupyter stop` when nothing runs; the next call starts this version.",
            )
        for view in snapped.snapshot.pools:
            if not view.single_use:
                how = snapped.spawned.get(view.key, "forked from a warm process") if view.replicas else "none now"
                yield Finding("ok", f"pool {view.name}", f"replicas: {text.visible(how)}")
            if view.failure is not None:
                said = view.failure.cause.strip().splitlines() or ["unknown"]
                where = view.failure.replica
                yield Finding(
                    "warn",
                    f"pool {view.name}",
                    f"{where} failed: {said[-1]}",
                    f"See `flyte-jupyter logs {where}`; then `flyte-jupyter warm {view.name}`.",
                )


def _check_devices() -> Iterable[Finding]:
    from ..devices import DECLARED, find_devices

    found = find_devices()
    declared = f" (declared in {DECLARED})" if DECLARED in os.environ else ""
    if found.devices:
        names = ", ".join(f"{device.index} · {device.model}" for device in found.devices)
        yield Finding("ok", "GPUs", f"{names}{declared}")
    else:
        yield Finding(
            "warn",
            "GPUs",
            f"{found.problem or 'none'}{declared}",
            f"Pools on the CPU work. For others correct {DECLARED}."
            if declared
            else "Pools on the CPU work. For others check that `nvidia-smi` lists a GPU here.",
        )


def _check_leftovers() -> Iterable[Finding]:
    import psutil

    folder = runtime.runtime_folder()
    there = replica_processes(folder)
    known: set[str | int | None] = set()
    with talk() as broker:
        if broker is not None:
            snapped = broker.snapshot()
            replicas = [replica for view in snapped.snapshot.pools for replica in view.replicas]
            # By id: what a replica has started. By pid: a forked one carries its zygote's tag.
            known = {each for replica in replicas for each in (replica.id, replica.pid)}
            known |= {zygote.pid for zygote in snapped.zygotes}
    left = [pid for pid, replica in there.items() if replica not in known and pid not in known]
    if left:
        time.sleep(0.5)  # it may just be ending
        left = [pid for pid in left if pid in replica_processes(folder) and psutil.pid_exists(pid)]
    if left:
        yield Finding(
            "warn",
            "processes",
            f"left behind by an earlier broker: pid {', '.join(map(str, left))}",
            "Run `flyte-jupyter stop`, which ends them.",
        )
    else:
        yield Finding("ok", "processes", f"{len(there)} of replicas, none left behind")


def _check_imports() -> Iterable[Finding]:
    import flyte_jupyter as flyte

    for name in flyte.__all__:
        getattr(flyte, name)
    loaded = [name for name in BIG_LIBRARIES if name in sys.modules]
    if loaded:
        yield Finding("warn", "imports", f"`import flyte_jupyter` also loads {', '.join(loaded)}", "Please report it.")
    else:
        yield Finding("ok", "imports", "`import flyte_jupyter` loads neither CUDA nor torch")
    holder = runtime.lock_holder(runtime.runtime_folder())
    if holder is not None:
        with contextlib.suppress(OSError):
            if b"libcuda.so" in Path(f"/proc/{holder}/maps").read_bytes():
                yield Finding("fail", "imports", "the broker has loaded CUDA and holds GPU memory", "Please report it.")


def _check_call() -> Iterable[Finding]:
    """One call in a kernel that is used once."""
    import psutil

    import flyte_jupyter as flyte

    with talk() as broker:
        was_there = broker is not None
    environment = flyte.TaskEnvironment("doctor")

    @environment.task
    def nothing() -> int:
        return 42

    began = time.perf_counter()
    answer = nothing()
    took = time.perf_counter() - began
    if answer == 42:
        yield Finding("ok", "call", f"a kernel was started, ran a task and answered in {took:.2f} s")
    else:
        yield Finding("fail", "call", f"the task answered {answer!r}, not 42", "Please report it.")
    if not was_there:
        from ..client.broker import current

        connection = current()
        if connection is not None and len(connection.snapshot().snapshot.clients) == 1:
            with contextlib.suppress(psutil.NoSuchProcess):
                started = psutil.Process(connection.broker_pid)
                connection.send(p.Shutdown())
                wait_gone(started, POLITE_S)
