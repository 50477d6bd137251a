"""What a task writes reaches its own call, in order; what belongs to no call goes where it always went."""

from __future__ import annotations

import asyncio
import contextvars
import io
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flyte_jupyter.core.context import Action, TaskContext, current
from flyte_jupyter.core.frames import FrameReader, Kind, Output
from flyte_jupyter.kernel import outputs
from flyte_jupyter.kernel.outputs import GATHER_BYTES, OutputSink, Router, TaskDisplayPublisher, TaskStream


class Wire:
    """What a sink has sent, and the timers that it has set. Time stands still unless the test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.timers: list[Callable[[], None]] = []
        self._reader = FrameReader()
        self._seen: list[tuple[int, Output, Any]] = []
        monkeypatch.setattr(outputs, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sink(self, number: int = 1) -> OutputSink:
        return OutputSink(number, self._send, lambda delay, callback: self.timers.append(callback))

    def _send(self, pieces: list[Any]) -> None:
        for piece in pieces:
            self._reader.feed(piece)

    def ring(self) -> None:
        due, self.timers = self.timers, []
        for callback in due:
            callback()

    def calls(self) -> list[tuple[int, Output, Any]]:
        """Call, what kind of output, and what it says; for all that was sent."""
        for frame in iter(self._reader.next_frame, None):
            assert frame.kind == Kind.OUTPUT
            output, body = Output(frame.flags), bytes(frame.body)
            text = body.decode("utf-8", "surrogatepass") if output <= Output.STDERR else body
            self._seen.append((frame.call, output, pickle.loads(body) if output is Output.DISPLAY else text))
        return self._seen

    def sent(self) -> list[tuple[Output, Any]]:
        return [(output, what) for _, output, what in self.calls()]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


def context(sink: OutputSink | None) -> TaskContext:
    return TaskContext(Action("a", "r"), sink=sink)


# --- one call's sink


def test_a_line_after_silence_is_sent_at_once(wire: Wire) -> None:
    sink = wire.sink()
    wire.now = 1
    sink.write(Output.STDOUT, "hello\n")
    assert wire.sent() == [(Output.STDOUT, "hello\n")]


def test_lines_in_quick_succession_are_gathered(wire: Wire) -> None:
    sink = wire.sink()
    wire.now = 1
    for number in range(5):
        sink.write(Output.STDOUT, f"{number}\n")
    assert wire.sent() == [(Output.STDOUT, "0\n")]
    assert len(wire.timers) == 1
    wire.ring()
    assert wire.sent()[1:] == [(Output.STDOUT, "1\n2\n3\n4\n")]


def test_an_unfinished_line_is_shown_after_a_moment(wire: Wire) -> None:
    sink = wire.sink()
    wire.now = 1
    sink.write(Output.STDOUT, "50 %")
    assert wire.sent() == []
    wire.ring()
    assert wire.sent() == [(Output.STDOUT, "50 %")]
    sink.write(Output.STDOUT, "more")
    assert len(wire.timers) == 1  # set again


def test_a_flood_is_sent_in_pieces(wire: Wire) -> None:
    sink = wire.sink()
    for _ in range(3):
        sink.write(Output.STDOUT, "x" * GATHER_BYTES)
    assert [len(text) for _, text in wire.sent()] == [GATHER_BYTES] * 3


def test_the_order_of_both_streams_displays_and_clears_is_kept(wire: Wire) -> None:
    sink = wire.sink()
    sink.write(Output.STDOUT, "a")
    sink.write(Output.STDERR, "b")
    sink.write(Output.STDOUT, "c")
    sink.display({"data": {"text/plain": "d"}})
    sink.write(Output.STDOUT, "e")
    sink.clear(wait=True)
    sink.clear(wait=False)
    assert wire.sent() == [
        (Output.STDOUT, "a"),
        (Output.STDERR, "b"),
        (Output.STDOUT, "c"),
        (Output.DISPLAY, {"data": {"text/plain": "d"}}),
        (Output.STDOUT, "e"),
        (Output.CLEAR, b"\x01"),
        (Output.CLEAR, b"\x00"),
    ]


def test_nothing_follows_the_end_of_a_call(wire: Wire) -> None:
    sink = wire.sink()
    sink.write(Output.STDOUT, "last words")
    sink.close()
    sink.write(Output.STDOUT, "too late\n")
    sink.display({})
    sink.clear(wait=False)
    wire.ring()
    assert wire.sent() == [(Output.STDOUT, "last words")]


def test_text_that_is_no_text_travels(wire: Wire) -> None:
    sink = wire.sink()
    sink.write(Output.STDOUT, "\udcff ü\n")
    sink.close()
    assert wire.sent() == [(Output.STDOUT, "\udcff ü\n")]


def test_threads_that_write_at_once_lose_nothing(wire: Wire) -> None:
    sink = wire.sink()

    def write(name: str) -> None:
        for _ in range(200):
            sink.write(Output.STDOUT, f"{name * 10}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    lines = "".join(text for _, text in wire.sent()).splitlines()
    assert sorted(lines) == sorted(name * 10 for name in "abcd" for _ in range(200))


# --- whose it is


def test_concurrent_tasks_do_not_mix(wire: Wire) -> None:
    router = Router()
    stream = TaskStream(Output.STDOUT, io.StringIO(), router)

    async def task(number: int) -> None:
        sink = wire.sink(number)
        current.set(context(sink))
        router.running[number] = context(sink)
        for _ in range(20):
            stream.write(f"{number}")
            await asyncio.sleep(0)
        await asyncio.to_thread(stream.write, f"{number}")
        sink.close()

    async def main() -> None:
        await asyncio.gather(*(task(number) for number in range(1, 11)))

    asyncio.run(main())
    assert len(wire.calls()) >= 10
    for call, _, text in wire.calls():
        assert set(text) <= set(str(call))
    assert sum(len(text) for _, _, text in wire.calls()) == 21 * (9 + 2)


def in_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=contextvars.Context().run, args=(function,))
    thread.start()
    thread.join()


def test_a_plain_thread_writes_for_the_only_call_there_is(wire: Wire) -> None:
    router, log = Router(), io.StringIO()
    stream = TaskStream(Output.STDOUT, log, router)
    sink = wire.sink()
    router.running[1] = context(sink)
    in_thread(lambda: print("from a thread", file=stream))
    sink.close()
    assert "".join(text for _, text in wire.sent()) == "from a thread\n"
    stream.write("the main thread between two calls")
    assert log.getvalue() == "the main thread between two calls"


def test_with_two_calls_nobody_guesses_whose_a_thread_is(wire: Wire) -> None:
    router, log = Router(), io.StringIO()
    stream = TaskStream(Output.STDOUT, log, router)
    router.running.update({1: context(wire.sink(1)), 2: context(wire.sink(2))})
    in_thread(lambda: print("whose?", file=stream))
    assert (wire.sent(), log.getvalue()) == ([], "whose?\n")


def test_what_a_finished_call_still_writes_goes_to_the_log(wire: Wire) -> None:
    router, log = Router(), io.StringIO()
    stream = TaskStream(Output.STDERR, log, router)
    sink = wire.sink()
    sink.close()

    def late() -> None:
        current.set(context(sink))
        print("late", file=stream)
        current.set(context(None))
        print("later", file=stream)

    contextvars.Context().run(late)
    assert (wire.sent(), log.getvalue()) == ([], "late\nlater\n")


# --- as a stream


def test_a_task_stream_is_a_text_stream(wire: Wire) -> None:
    router, log = Router(), io.StringIO()
    stream, sink = TaskStream(Output.STDOUT, log, router), wire.sink()

    def task() -> None:
        current.set(context(sink))
        assert stream.write("abc") == 3
        stream.write("")
        stream.writelines(["d", "e"])
        stream.flush()

    contextvars.Context().run(task)
    assert wire.sent() == [(Output.STDOUT, "abcde")]
    assert (stream.encoding, stream.name, stream.isatty(), stream.writable()) == ("utf-8", "<stdout>", False, True)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stream.write(b"x")  # type: ignore[arg-type]
    assert stream.getvalue() == ""  # whatever else it is asked goes to the stream below


def test_carriage_returns_of_a_progress_bar_arrive_as_they_are(wire: Wire) -> None:
    stream, sink = TaskStream(Output.STDERR, io.StringIO(), Router()), wire.sink()

    def task() -> None:
        current.set(context(sink))
        for percent in (0, 50, 100):
            print(f"\r{percent} %", end="", file=stream, flush=True)

    contextvars.Context().run(task)
    assert "".join(text for _, text in wire.sent()) == "\r0 %\r50 %\r100 %"


# --- displays


class Upstream:
    """In place of ipykernel's publisher, which needs a kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.got: list[Any] = []
        base = TaskDisplayPublisher.__mro__[1]
        monkeypatch.setattr(base, "publish", lambda _, data, *args, **kwargs: self.got.append(data))
        monkeypatch.setattr(base, "clear_output", lambda _, wait=False: self.got.append(wait))


def publisher(router: Router) -> Any:
    made = TaskDisplayPublisher()
    made.router = router
    return made


def test_a_display_in_a_task_reaches_its_call(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, sink, made = Upstream(monkeypatch), wire.sink(), publisher(Router())

    def task() -> None:
        current.set(context(sink))
        made.publish({"image/png": "iVBORw0KGgo="}, transient={"display_id": "p"}, update=True)
        made.clear_output(wait=True)

    contextvars.Context().run(task)
    (_, shown), cleared = wire.sent()
    assert shown["data"] == {"image/png": "iVBORw0KGgo="}
    assert (shown["metadata"], shown["transient"], shown["update"]) == ({}, {"display_id": "p"}, True)
    assert cleared == (Output.CLEAR, b"\x01")
    assert upstream.got == []


def test_a_display_outside_tasks_goes_where_it_always_went(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream(monkeypatch)
    publisher(Router()).publish({"text/plain": "x"})
    publisher(Router()).clear_output()
    assert upstream.got == [{"text/plain": "x"}, False]


def test_figures_are_shown_only_where_they_can_have_been_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    outputs.show_open_figures()
    assert "matplotlib.pyplot" not in sys.modules
