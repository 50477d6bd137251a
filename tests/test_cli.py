"""The command line, against a real broker with one pool."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from support import TIME_SCALE

from flyte_jupyter import cli, orphans, runtime
from flyte_jupyter.cli import doctor, processes, stop
from flyte_jupyter.client import broker
from flyte_jupyter.client.attached import Attachment, find_replica
from flyte_jupyter.core.verbs import POOL, REPLICA

HOLDER = """
import sys, threading
import flyte_jupyter as flyte

def main():
    environment = flyte.TaskEnvironment("gpu", reusable=flyte.ReusePolicy((1, 3), idle_ttl=1800))

    @environment.task
    def nap(seconds: float) -> None:
        import time
        print("said \\x1b[2J by a task", flush=True)
        __import__("os").write(2, b"logged \\x1b[2J\\xe2\\x80\\xae by a task\\n")
        time.sleep(seconds)

    nap(0)
    print("ready", flush=True)
    for line in sys.stdin:
        threading.Thread(target=nap, args=(float(line),), daemon=True).start()

main()
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
    monkeypatch.setenv(runtime.VARIABLE, str(path))
    monkeypatch.setenv("FLYTE_JUPYTER_GPUS", json.dumps([{"uuid": "GPU-a", "model": "NVIDIA L4"}]))
    monkeypatch.setattr(broker, "_connection", None)  # else of the broker that all other tests share
    try:
        yield path
        cli.main(["stop", "--force"])
        assert runtime.lock_holder(path) is None
        assert processes.replica_processes(path) == {}
        assert of_folder(path) == []
    finally:
        for pid, _ in of_folder(path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path)


def of_folder(folder: Path) -> list[tuple[int, list[str]]]:
    """Broker, replicas and guardian of a runtime folder; the guardian has it on its command line."""
    found = []
    tagged = set(orphans.tagged(**{orphans.RUNTIME_TAG: str(folder)}))
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        ours = process.pid in tagged and any(word.startswith("flyte_jupyter.") for word in line)
        if ours or str(folder) in line:
            found.append((process.pid, line))
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as ending:
            code = int(ending.code or 0)
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A script that has called its pool once and still is there; its name tries to clear the screen."""
    script = folder / "train\x1b[2J.py"
    script.write_text(HOLDER)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, runtime.VARIABLE: str(folder)},
    ) as process:
        assert process.stdout is not None
        try:
            while "ready" not in (line := process.stdout.readline()):
                assert line, "the script that holds the pool ended"
            yield process
        finally:
            process.kill()


def busy(run: Run, holder: subprocess.Popen[str], seconds: int = 60) -> None:
    assert holder.stdin is not None
    holder.stdin.write(f"{seconds}\n")
    holder.stdin.flush()
    wait_until(lambda: state(run)["pools"][0]["state"] == "busy")


def state(run: Run) -> Any:
    return json.loads(run("status", "--json")[1])


def wait_until(holds: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout * TIME_SCALE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- without a broker


def test_without_a_broker_status_and_stop_have_nothing_to_do(folder: Path, run: Run) -> None:
    nobody = f"No broker runs in {folder}. It starts with the first call of a task.\n"
    assert run("status") == (0, nobody, "")
    code, out, _ = run("status", "--json")
    assert (code, json.loads(out)) == (0, {"broker": None})
    assert run("stop") == (0, "No broker runs.\n", "")
    assert run("stop", "gpu")[0] == 0


@pytest.mark.parametrize(
    "verb",
    [("scale", "gpu", "1:2"), ("warm", "gpu"), ("keep", "gpu", "2h"), ("restart", "gpu"), ("interrupt", "gpu[0]")],
)
def test_a_verb_for_a_pool_that_is_not_there(folder: Path, run: Run, verb: tuple[str, ...]) -> None:
    code, out, err = run(*verb)
    assert (code, out) == (2, "")
    assert err.splitlines()[:2] == ['FJ102 There is no pool named "gpu".', "No pool exists yet."]


@pytest.mark.parametrize(
    "line",
    ["scale gpu 4:1", "scale gpu x", "scale gpu 0", "keep gpu soon", "warm gpu 0", "logs --tail -1", "fly", ""],
)
def test_bad_arguments_are_refused(run: Run, line: str) -> None:
    code, _, err = run(*line.split())
    assert code == 2
    assert err.startswith("usage: flyte-jupyter")


@pytest.mark.parametrize(
    "command", ["status", "gpu", "stop", "logs", "scale", "warm", "keep", "restart", "interrupt", "doctor"]
)
def test_help_has_an_example_and_the_exit_codes(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"example: flyte-jupyter {command}" in out
    assert "exit codes: 0" in out


def test_logs_of_dead_replicas_are_found_by_name_and_by_id(folder: Path, run: Run) -> None:
    logs = runtime.log_folder(folder)
    logs.mkdir()
    (logs / "broker.log").write_text(
        "2026 INFO flyte_jupyter.broker.engine: start gpu[0] (0123abcd-1): the minimum\n"
        "2026 INFO flyte_jupyter.broker.engine: start my pool[0] (0123abcd-2): a call waits\n"
    )
    for number in (1, 2):
        (logs / f"0123abcd-{number}.log").write_bytes(b"one\ntwo\n\x1b[31mthree\xe2\x80\xae %d\n" % number)
        os.utime(logs / f"0123abcd-{number}.log", (number, number))
    assert run("logs", "gpu[0]", "--tail", "2") == (0, "two\n\\x1b[31mthree\\u202e 1\n", "")
    for name in ("my pool", "my pool[0]", "0123abcd-2"):
        assert run("logs", name, "--tail", "1") == (0, "\\x1b[31mthree\\u202e 2\n", "")
    assert run("logs", "--tail", "0") == (0, "", "")
    assert run("logs")[1].endswith(" 2\n")
    assert run("logs", "--broker", "--tail", "1")[1].endswith("(0123abcd-2): a call waits\n")
    code, _, err = run("logs", "other\x1b")
    assert (code, err.splitlines()[0]) == (2, 'There is no log of "other\\x1b".')


def test_doctor_names_what_is_wrong(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    assert {"about": "GPUs", "state": "ok", "found": "0 · NVIDIA L4 (declared in FLYTE_JUPYTER_GPUS)", "do": ""} in (
        report["findings"]
    )
    monkeypatch.setenv("FLYTE_JUPYTER_GPUS", "{")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv(runtime.VARIABLE, f"/tmp/{'x' * 90}")
    code, out, _ = run("doctor")
    assert code == 1
    assert "fail  folder: FJ104" in out
    assert "Set FLYTE_JUPYTER_RUNTIME_DIR to a shorter path" in out
    assert "warn  GPUs: FLYTE_JUPYTER_GPUS is not a JSON list" in out
    monkeypatch.setenv(runtime.VARIABLE, str(folder))


def test_versions_are_compared_as_numbers() -> None:
    assert doctor._numbers("7.10.0rc1") > doctor._numbers("7.9")
    assert doctor._numbers("6") == doctor._numbers("6.0.0")
    lines = ["ipykernel>=7.4", "pydantic<3,>=2.10", 'pytest>=8.3; extra == "test"', "ipython>=9; python_version > '3'"]
    assert list(doctor._floors(lines)) == [("ipykernel", "7.4"), ("pydantic", "2.10"), ("ipython", "9")]


def test_a_lock_that_somebody_else_holds_is_left_alone(folder: Path, run: Run) -> None:
    import fcntl

    with runtime.broker_lock(folder).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        code, _, err = run("stop")
    assert code == 1
    assert "not a broker of yours; nothing was ended" in err


@pytest.mark.parametrize("verb", [*POOL, *REPLICA])
def test_every_verb_of_the_table_is_a_command(run: Run, verb: str) -> None:
    known = POOL.get(verb) or REPLICA[verb]
    out = " ".join(run(verb, "--help")[1].split())
    assert known.does in out or f"{known.does[0].upper()}{known.does[1:]}" in out
    assert all(verb.word.help in out for verb in (POOL.get(verb), REPLICA.get(verb)) if verb and verb.word)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("keep gpu[0] 2h", "keep is for a whole pool: `flyte-jupyter keep gpu`."),
        ("restart gpu --force", "--force is for one replica: `flyte-jupyter restart 'gpu[0]' --force`."),
    ],
)
def test_an_order_that_does_not_fit_its_target_says_what_does(run: Run, folder: Path, line: str, said: str) -> None:
    assert run(*line.split()) == (2, "", f"{said}\n")


# --- with a broker


@pytest.mark.kernel
def test_a_pool_is_shown_changed_and_stopped(run: Run, holder: subprocess.Popen[str], folder: Path) -> None:
    wait_until(lambda: state(run)["pools"][0]["state"] == "ready")  # the first call's lease lingers
    code, out, _ = run("status")
    assert code == 0
    assert out.startswith("broker ")
    assert "┌ gpu ── 1 ready · 1 to 3 replicas ── idle off in 29:5" in out
    assert "0 · L4" in out
    assert "train\\x1b[2J.py  script" in out
    assert "\x1b" not in out

    shown = state(run)
    assert shown["broker"]["pid"] == runtime.lock_holder(folder)
    assert [client["kind"] for client in shown["clients"]] == ["script"]
    (pool,) = shown["pools"]
    assert abs(pool["replicas"][0]["started_at"] - time.time()) < 60
    assert 1700 < pool["idle_stops_at"] - time.time() < 1800

    assert run("scale", "gpu", "1:2")[:2] == (0, run("scale", "gpu", "1:2")[1])
    assert state(run)["pools"][0]["scaling"]["max_replicas"] == 2
    assert run("keep", "gpu", "2h")[1] == "gpu: 1 ready · 1 to 2 replicas · idle off in 1:59:59 (kept)\n"
    assert run("warm", "gpu", "2")[1].startswith("gpu: 2 ready · 1 to 2 replicas")
    code, _, err = run("warm", "gpu", "3")
    assert (code, err.splitlines()[0]) == (2, "Pool gpu has at most 2 replicas, not 3; `scale` changes that.")
    code, _, err = run("status", "gp")
    assert code == 2
    assert err.splitlines()[1] == "Existing pools: gpu (2 ready)."
    assert "Did you mean `gpu`?" in err
    assert run("status", pool["key"][:8])[0] == 0

    code, out, _ = run("logs", "gpu[0]")
    assert (code, "logged \\x1b[2J\\u202e by a task\n" in out) == (0, True)
    assert "start gpu[0]" in run("logs", "--broker")[1]
    code, out, _ = run("doctor")
    assert code == 0
    assert "of replicas, none left behind" in out

    assert run("stop", "gpu") == (0, "Stopped 2 replicas (gpu[0], gpu[1]). The next call starts the pool again.\n", "")
    assert state(run)["pools"][0]["replicas"] == []
    assert set(processes.replica_processes(folder).values()) <= {"zygote"}


@pytest.mark.kernel
def test_a_pool_that_works_is_stopped_only_by_force(run: Run, holder: subprocess.Popen[str], folder: Path) -> None:
    busy(run, holder)
    code, out, err = run("stop", "gpu", "--timeout", "0.5")
    assert (code, out) == (1, "1 running task may end first; --force ends them now.\n")
    assert err.endswith("To end it now: `flyte-jupyter stop gpu --force`.\n")
    assert run("stop", "gpu", "--force", "--json")[:1] == (0,)
    assert set(processes.replica_processes(folder).values()) <= {"zygote"}


@pytest.mark.kernel
def test_a_stop_counts_front_ends_apart_from_tasks(run: Run, holder: subprocess.Popen[str], folder: Path) -> None:
    connection = broker.connect(start=False)
    _, replica = find_replica(connection.snapshot().snapshot, "gpu")
    nobody: dict[str, Any] = {"session": "", "lost": lambda why: None, "leaving": lambda: None}
    console = Attachment(connection, replica, shared=False, task="attached console", **nobody)
    console.take(lambda what: None)
    busy(run, holder)
    users = "1 running task and 1 attached front end"
    code, out, err = run("stop", "gpu", "--timeout", "0.2")
    assert (code, out) == (1, f"{users} may end first; --force ends them now.\n")
    assert err.startswith(f"Pool gpu still has {users} after 0.2 s; it stops when that ends.\n")
    assert run("stop")[1].endswith(f" and 2 replicas (gpu[0], gpu[1]), with {users}.\n")
    console.close()


@pytest.mark.kernel
def test_a_story_tells_what_ran_and_why_the_pool_scaled(run: Run, holder: subprocess.Popen[str]) -> None:
    wait_until(lambda: "succeeded" in run("story", "gpu")[1])
    code, out, err = run("story", "gpu")
    assert (code, err) == (0, "")
    *lines, saved = out.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  gpu\[\d\] starts: .+", lines[0])
    assert re.search(r"gpu\[\d\]: started its process \d", out)
    assert re.search(r"gpu\[\d\]: \S+ \(train\\x1b\[2J\.py\) succeeded", out)
    assert saved.startswith("cold starts avoided: ")
    busy(run, holder)
    wait_until(lambda: "(train\\x1b[2J.py) running" in run("story", "gpu", "--tail", "1")[1])
    assert len(run("story", "gpu", "--tail", "1")[1].splitlines()) == 2
    told = json.loads(run("story", "gpu", "--json")[1])
    assert {span["kind"] for span in told["spans"]} >= {"starting", "running"}
    assert run("story", "cpu")[0] == 2


@pytest.mark.kernel
def test_replicas_are_interrupted_and_restarted(run: Run, holder: subprocess.Popen[str]) -> None:
    def replicas() -> list[Any]:
        return cast("list[Any]", state(run)["pools"][0]["replicas"])

    def renewed(old: Any) -> bool:
        return [(each["id"] != old["id"], each["state"]) for each in replicas()] == [(True, "ready")]

    busy(run, holder)
    [first] = replicas()
    for line in ("restart gpu --force", "restart gpu[7]", "interrupt gpu[7]"):
        assert run(*line.split())[0] == 2
    # The first one may come before the call has begun.
    wait_until(lambda: run("interrupt", "gpu[0]")[0] == 0 and not replicas()[0]["leases"])
    assert run("restart", "gpu")[0] == 0
    wait_until(lambda: renewed(first))
    [second] = replicas()
    assert second["index"] == 1
    assert run("restart", "gpu[1]", "--force")[0] == 0
    wait_until(lambda: renewed(second))


@pytest.mark.kernel
def test_stop_ends_the_broker_and_everything_it_started(run: Run, holder: subprocess.Popen[str], folder: Path) -> None:
    busy(run, holder)
    pid = runtime.lock_holder(folder)
    code, out, _ = run("stop")
    assert (code, out) == (
        0,
        f"Stopped the broker (pid {pid}, it ended as asked) and 1 replica (gpu[0]), with 1 running task.\n",
    )
    assert runtime.lock_holder(folder) is None
    assert processes.replica_processes(folder) == {}
    assert run("stop")[1] == "No broker runs.\n"
    assert run("logs", "gpu", "--tail", "1")[0] == 0


@pytest.mark.kernel
def test_a_broker_that_hangs_is_ended_and_its_replicas_too(
    run: Run, holder: subprocess.Popen[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "ANSWER_S", 0.3)
    monkeypatch.setattr(stop, "TERM_S", 0.5)
    pid = runtime.lock_holder(folder)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    code, out, err = run("stop")
    assert (code, err) == (0, "")
    assert out == f"Stopped the broker (pid {pid}, it did not answer, so SIGKILL) and no replicas.\n"
    assert runtime.lock_holder(folder) is None
    assert processes.replica_processes(folder) == {}


@pytest.mark.kernel
def test_a_wait_for_a_broker_that_hangs_says_so_and_ends_with_ctrl_c(
    holder: subprocess.Popen[str], folder: Path
) -> None:
    pid = runtime.lock_holder(folder)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "flyte_jupyter.cli", "status"], stderr=subprocess.PIPE, text=True
        ) as waiting:
            assert waiting.stderr is not None
            assert waiting.stderr.readline().startswith(f"Waiting for the broker (pid {pid}), which does not answer.")
            waiting.send_signal(signal.SIGINT)
            _, err = waiting.communicate(timeout=10)
        assert (waiting.returncode, err) == (130, "")
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.kernel
def test_what_a_killed_broker_and_guardian_left_is_found_and_ended(
    run: Run, holder: subprocess.Popen[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {**os.environ, orphans.RUNTIME_TAG: str(folder), orphans.REPLICA_TAG: "0123abcd-9"}
    run("stop")
    with subprocess.Popen(["sleep", "60"], env=variables) as left:
        code, out, _ = run("doctor")
        assert (code, f"left behind by an earlier broker: pid {left.pid}" in out) == (0, True)
        assert run("stop") == (0, f"Ended what was left behind: pid {left.pid}.\n", "")
        assert left.wait(5) == -signal.SIGKILL


@pytest.mark.kernel
def test_watch_prints_each_change_until_interrupted(holder: subprocess.Popen[str], folder: Path, run: Run) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flyte_jupyter.cli", "status", "gpu", "--watch"], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert "1 ready" in watching.stdout.readline()
        busy(run, holder)
        while "1 busy" not in watching.stdout.readline():
            pass
        watching.send_signal(signal.SIGINT)
        out, _ = watching.communicate(timeout=10)
        assert watching.returncode == 0
        assert "Traceback" not in out


@pytest.mark.kernel
def test_doctor_makes_a_real_call_and_leaves_nothing(folder: Path, run: Run) -> None:
    code, out, _ = run("doctor", "--call")
    assert code == 0
    assert "ok    call: a kernel was started, ran a task and answered in" in out
    assert runtime.lock_holder(folder) is None
    wait_until(lambda: broker.current() is None)
    assert processes.replica_processes(folder) == {}
