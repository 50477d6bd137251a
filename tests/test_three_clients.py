"""A thread, a blocking command and an event loop talk to the broker, and take all that it says in the same way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flyte_jupyter import errors, runtime
from flyte_jupyter.cli import connection as blocking
from flyte_jupyter.client import broker as threaded
from flyte_jupyter.client.dialing import dial
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.scheduler import Scheduler
from flyte_jupyter.server import connection as looping

SNAPPED = p.Snapped(epoch_offset=0, log_dir="", snapshot=Scheduler().snapshot())
WELCOME = p.Welcome(version="9.9", pid=os.getpid())
IMPATIENT_S = 0.2

Answers = Callable[[dict[str, Any]], bytes | None]
Ask = Callable[[], p.Snapped]
"""Connect, ask for a snapshot, hang up; raises an error whose text is the whole of it."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
    monkeypatch.setenv(runtime.VARIABLE, str(path))
    yield path
    shutil.rmtree(path)


@contextmanager
def answering(folder: Path, answers: Answers) -> Iterator[None]:
    """A process at the broker's socket that answers each line; None hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.broker_socket(folder)))
        listener.listen()

        def serve() -> None:
            stream, _ = listener.accept()
            with stream, stream.makefile("rb") as lines:
                for line in lines:
                    answer = answers(json.loads(line))
                    if answer is None:
                        return
                    stream.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        yield
        serving.join()


def greeted(answer: Callable[[int], bytes | None]) -> Answers:
    """Welcome, and then that answer to the question of a number."""
    return lambda said: p.to_line(WELCOME) if said["type"] == "hello" else answer(said["question"])


def snapped(question: int) -> bytes:
    return p.to_line(SNAPPED.model_copy(update={"question": question}))


def by_thread() -> p.Snapped:
    stream = dial(runtime.private_folder(), IMPATIENT_S)
    if stream is None:
        return threaded._open(start=False).snapshot()
    connection = threaded._shake_hands(stream)
    try:
        return connection.snapshot()
    finally:
        connection.close()
        connection._thread.join()


def by_blocking() -> p.Snapped:
    with blocking.talk(IMPATIENT_S) as connection:
        if connection is None:
            raise threaded.none_runs()
        return connection.snapshot()


def by_loop() -> p.Snapped:
    async def ask() -> p.Snapped:
        async with looping.connected() as connection:
            return await connection.snapshot()

    return asyncio.run(ask())


@pytest.fixture(params=[by_thread, by_blocking, by_loop])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    for each in (threaded, looping):
        monkeypatch.setattr(each, "ANSWER_S", IMPATIENT_S)
    asking: Ask = request.param
    return asking


def problem_of(ask: Ask) -> str:
    """The whole text of the error."""
    with pytest.raises((errors.PoolError, looping.Unreachable)) as caught:
        ask()
    return errors.whole_text(caught.value)


def test_an_answer_is_an_answer(folder: Path, ask: Ask) -> None:
    with answering(folder, greeted(snapped)):
        assert ask() == SNAPPED.model_copy(update={"question": 1})


@pytest.mark.parametrize(
    "notice",
    [
        b'{"type": "weather"}\n',
        b"\xff\n",
        b'{"type": "granted", "lease": "l"}\n',
        p.to_line(p.Recalled(lease="l")),
        p.to_line(SNAPPED),
        snapped(77),
    ],
)
def test_a_notice_is_not_taken_for_the_answer(folder: Path, ask: Ask, notice: bytes) -> None:
    with answering(folder, greeted(lambda question: notice + snapped(question))):
        assert ask().question == 1


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"type": "forecast", "question": 1}', "the broker's answer is of an unknown kind"),
        ('{"type": "snapshot", "question": 1}', "the broker's answer is of an unknown kind"),
        ('{"type": "told-timeline", "pool": "0", "timeline": null, "question": 1}', "with 'told-timeline'"),
        ('{"type": "failed", "why": "no pool.", "question": 1}', "did not understand a message (no pool)"),
        ('{"type": "failed", "why": "no pool."}', "did not understand a message (no pool)"),
    ],
)
def test_an_answer_that_is_none_is_a_clear_error(folder: Path, ask: Ask, answer: str, problem: str) -> None:
    with answering(folder, greeted(lambda _: answer.encode() + b"\n")):
        text = problem_of(ask)
    assert text.startswith("FJ105 The connection to another process of flyte_jupyter broke: ")
    assert problem in text


@pytest.mark.parametrize("answers", [lambda _: b"", lambda _: b'{"type": "wel', greeted(lambda _: b"")])
def test_a_silent_broker_is_named_with_its_process(folder: Path, ask: Ask, answers: Answers) -> None:
    with answering(folder, answers):
        text = problem_of(ask)
    assert text.startswith(f"FJ107 The broker (pid {os.getpid()}) does not answer. It runs, but")
    assert "run `flyte-jupyter stop`" in text


def test_a_broker_that_ends_is_not_silent(folder: Path, ask: Ask) -> None:
    with answering(folder, greeted(lambda _: None)):
        text = problem_of(ask)
    assert text.startswith("FJ104 No broker runs." if ask is by_loop else "FJ101 The broker is not running.")


@pytest.mark.parametrize("rejected", ['{"type": "rejected", "version": "9.9", "protocol": 99, "pid": 1}',
                                      '{"type": "rejected", "version": "9.9", "since": 2030}'])  # fmt: skip
def test_another_version_is_named(folder: Path, ask: Ask, rejected: str) -> None:
    with answering(folder, lambda _: rejected.encode() + b"\n"):
        text = problem_of(ask)
    assert text.startswith("FJ103 This ")
    assert "and the broker use different flyte_jupyter versions" in text
    assert "broker 9.9" in text


def test_a_greeting_that_is_none_is_no_brokers(folder: Path, ask: Ask) -> None:
    with answering(folder, lambda _: b"HTTP/1.1 400 Bad Request\n"):
        assert "the broker answers the greeting with something unknown" in problem_of(ask)


def test_another_users_process_is_not_spoken_to(folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "peer_uid", lambda _: os.getuid() + 1)
    said: list[Any] = []
    with answering(folder, said.append):
        text = problem_of(ask)
    assert text.startswith("FJ104 The broker is not yours. ")
    assert f"Set {runtime.VARIABLE} to a folder of your own." in text
    assert said == []


def test_without_a_broker_none_is_started(folder: Path, ask: Ask) -> None:
    assert problem_of(ask) == "FJ104 No broker runs. It starts with the first task that is called."
    assert list(folder.iterdir()) == []
