"""Questions of a call to its client: for its user's answer, for a name that was not sent, for a module's text."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import os
import pickle
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from IPython.core.error import StdinNotImplementedError

from ..core.context import TaskContext
from ..core.definitions import ORIGIN, Closure
from ..core.frames import Answer, Buffer, Frame, Kind, encode
from .namespace import NotebookModule
from .outputs import NOBODY_TO_ASK

if TYPE_CHECKING:
    from .calls import CallChannel

T = TypeVar("T")

WANTED_S: Final = 10.0
"""How long something may wait for a name that the notebook has not sent."""


class Questions:
    """The questions of one lease's calls, one at a time. The thread that asks waits, and the loop stands still.

    `lock` is held by the thread that reads the client's answer; a call does not end while one does.
    """

    def __init__(self, channel: CallChannel, loop: asyncio.AbstractEventLoop) -> None:
        self.answers: deque[Frame] = deque()
        self.lock = threading.RLock()
        self._channel = channel
        self._loop = loop
        self._pid = os.getpid()

    def ask(self, number: int, prompt: str, password: bool) -> str:
        """Wait for the user's answer, on the main thread."""
        question = pickle.dumps({"prompt": prompt, "password": password}, 5)
        answer = self._answer(encode(Kind.INPUT, number, question), number, Kind.ANSWER, None)
        if answer is None:
            raise EOFError("the client that could be asked is gone")
        if answer.flags == Answer.NOBODY:
            raise StdinNotImplementedError(NOBODY_TO_ASK)
        return str(answer.body, "utf-8")

    def want(self, task: TaskContext, name: str) -> Mapping[str, Any]:
        """Where the call finds what its notebook calls so: the client is asked once for each name.

        What the call has brought along stays as it was then.
        """
        call = self._channel.running
        module: NotebookModule = getattr(task.main, ORIGIN)
        if call is None or call.context is not task or any(name in module.manifests.get(d, ()) for d in call.digests):
            return module.names
        if os.getpid() != self._pid:  # a worker that the task has forked has the names of then
            return module.names
        if call.task is not None and threading.current_thread() is not threading.main_thread():
            found = self._on_main_thread(functools.partial(self.want, task, name))
            return module.names if found is None else found
        with self.lock:  # a thread of a sync task: the main thread only waits for it, or asks, too
            if name not in call.asked and self._channel.running is call:
                call.asked[name] = module.names  # if making it needs it
                call.asked[name] = self._given(call.number, module, name)
            return call.asked.get(name, module.names)

    def _on_main_thread(self, function: Callable[[], T]) -> T | None:
        """Call it there, and return what it returns; None if that thread has not come to it soon."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def do() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(function())
                except BaseException as error:
                    done.set_exception(error)

        self._loop.call_soon_threadsafe(do, context=contextvars.copy_context())
        try:
            return done.result(WANTED_S)
        except TimeoutError:
            return None if done.cancel() else done.result()

    def _given(self, number: int, module: NotebookModule, name: str) -> Mapping[str, Any]:
        in_use = self._channel.replica.manifests_in_use(module)
        there = module
        while True:
            question = pickle.dumps((name, there.marks()), 5)
            given = self._answer(encode(Kind.WANT, number, question), number, Kind.GIVE, WANTED_S)
            if given is None:
                return module.names
            if not given.body:  # the notebook has no such name, or none that it can send
                if any(name in manifest for manifest in in_use):
                    return {}
                module.let_go(name)
                return module.names
            closure: Closure = pickle.loads(given.body)
            beside = there if there is not module else module.beside([closure], in_use)
            if beside is there:
                there.define(closure)
                return there.names
            there = beside  # what runs here goes on with the names that it began with

    def module_text(self, number: int, name: str) -> str | None:
        """The text that the client has loaded that module from; None if it does not say."""
        if (
            threading.current_thread() is not threading.main_thread()
            or self._channel.closed
            or self._channel.number != number
        ):
            return None
        with self.lock:
            given = self._answer(encode(Kind.WANT, number, pickle.dumps((name, None), 5)), number, Kind.GIVE, WANTED_S)
        return pickle.loads(given.body) if given is not None and given.body else None

    def _answer(self, question: list[Buffer], number: int, kind: Kind, patience: float | None) -> Frame | None:
        """Ask the client and wait, while the loop stands still. A cancel interrupts it as it interrupts anything.

        None if the client is gone, or has not answered within `patience` seconds.
        """
        with self.lock:
            self.answers.clear()
            self._channel.send(question)
            until = None if patience is None else time.monotonic() + patience
            poller = select.poll()
            while not self._channel.closed:
                # The loop stands still meanwhile: what it would read and write is done here.
                poller.register(
                    self._channel.connection, select.POLLIN | (0 if self._channel.out.drain() else select.POLLOUT)
                )
                left = None if until is None else max(0.0, until - time.monotonic())
                if not poller.poll(None if left is None else left * 1000) and left == 0.0:
                    return None
                self._channel.read()
                while self.answers:
                    answer = self.answers.popleft()
                    if answer.call == number and answer.kind == kind:  # else to a question that nobody asks any more
                        return answer
            return None
