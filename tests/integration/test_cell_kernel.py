"""What a cell does in a warm kernel is what it does in a notebook's own: the same outputs, in the same order.

The same code runs in a plain ipykernel and in a replica, whose channel is driven by hand.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import assert_quiet, within

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client import leases
from flyte_jupyter.client.capture import Captured
from flyte_jupyter.client.leases import Lease, LeaseGroup
from flyte_jupyter.core.cells import PARENT, CellReply, CellRequest
from flyte_jupyter.core.definitions import Closure, Definition, Mark, SourceDefinition, Text
from flyte_jupyter.core.failure import Failure
from flyte_jupyter.core.frames import Answer, Frame, FrameReader, Kind, Output, Status, encode

pytestmark = pytest.mark.kernel

pool = flyte.TaskEnvironment("cells", reusable=flyte.ReusePolicy(replicas=1, concurrency=4))

FILE = "/nowhere/cell.py"


class Cell:
    """One cell on its way: what it has shown and looked for so far, and how it ended."""

    def __init__(
        self, slot: Slot, request: CellRequest, answers: tuple[str | None, ...], digests: tuple[str, ...]
    ) -> None:
        self.shown: list[tuple[str, Any]] = []
        self.wanted: list[str] = []
        self.outcome: Frame | None = None
        self._slot = slot
        self._answers = list(answers)
        self.number = slot.call("cell", request, digests=digests)

    def take(self, frame: Frame) -> None:
        if frame.kind == Kind.INPUT:
            self.shown.append(("input", pickle.loads(frame.body)))
            answer = self._answers.pop(0)
            flags = Answer.NOBODY if answer is None else Answer.TEXT
            self._slot.send(Kind.ANSWER, self.number, (answer or "").encode(), flags=flags)
        elif frame.kind == Kind.WANT:
            self.wanted.append(pickle.loads(frame.body)[0])
            self._slot.send(Kind.GIVE, self.number, b"")  # there is no such name
        elif frame.kind == Kind.OUTPUT:
            self.shown.append(output(frame))
        elif frame.kind != Kind.INTERRUPTED:
            self.outcome = frame

    def wait(self) -> Cell:
        while self.outcome is None:
            frame = self._slot.frame()
            assert frame.call == self.number
            self.take(frame)
        return self

    @property
    def status(self) -> Status:
        assert self.outcome is not None
        return Status(self.outcome.flags)

    def reply(self) -> CellReply:
        assert self.outcome is not None
        value = pickle.loads(self.outcome.body, buffers=self.outcome.buffers)
        assert self.status == Status.OK, value
        assert isinstance(value, CellReply)
        return value

    def failure(self) -> Failure:
        assert self.outcome is not None
        assert self.status == Status.ERROR, self.status
        failure = pickle.loads(self.outcome.body)
        assert isinstance(failure, Failure)
        return failure

    def text(self, stream: str = "STDOUT") -> str:
        return "".join(what for kind, what in self.shown if kind == stream)

    def result(self) -> str:
        self.reply()
        (data,) = [what["data"] for kind, what in self.shown if kind == "RESULT"]
        return str(data["text/plain"])


def output(frame: Frame) -> tuple[str, Any]:
    kind, body = Output(frame.flags), bytes(frame.body)
    if kind in (Output.STDOUT, Output.STDERR):
        return kind.name, body.decode()
    return kind.name, {"wait": body == b"\1"} if kind == Output.CLEAR else pickle.loads(body)


class Slot:
    """A lease whose connection is driven by hand."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self._channel = lease.channel()

    def send(self, kind: Kind, call: int, body: bytes, buffers: tuple[bytes, ...] = (), flags: int = 0) -> None:
        self._channel.socket.sendall(b"".join(encode(kind, call, body, buffers, flags)))

    def call(self, verb: str, *args: Any, digests: tuple[str, ...] = ()) -> int:
        self._channel.calls += 1
        reference = json.dumps([digests, "a cell", verb]).encode()
        self.send(Kind.CALL, self._channel.calls, reference, (pickle.dumps((args, {}), 5),))
        return self._channel.calls

    def frame(self, timeout: float = 6.0) -> Frame:
        stream, reader = self._channel.socket, self._channel.reader
        stream.settimeout(timeout)
        while (frame := reader.next_frame()) is None:
            count = stream.recv_into(reader.get_buffer())
            assert count, "the replica is gone"
            reader.buffer_updated(count)
        return frame

    def start(
        self, code: str, *, answers: tuple[str | None, ...] = (), digests: tuple[str, ...] = (), **options: Any
    ) -> Cell:
        return Cell(self, CellRequest(code, FILE, **options), answers, digests)

    def run(self, code: str, **options: Any) -> Cell:
        return self.start(code, **options).wait()

    def names(self, scope: str = "fresh", session: str = "") -> list[str]:
        self.call("names", scope, session)
        names: list[str] = pickle.loads(self.frame().body)
        return names


@contextmanager
def slots_of(environment: flyte.TaskEnvironment, **options: Any) -> Iterator[Callable[[], Slot]]:
    handle = flyte.pool(environment, **options)
    handle.warm(1)
    group = LeaseGroup(handle.connection(), handle.key, None, "local")
    yield lambda: Slot(group.ask("a cell").future.result(20))
    group.close()
    assert_quiet(environment)


@pytest.fixture
def slots(shared_broker: Path) -> Iterator[Callable[[], Slot]]:
    with slots_of(pool) as found:
        yield found


@pytest.fixture
def slot(slots: Callable[[], Slot]) -> Slot:
    return slots()


@pytest.fixture
def kernel() -> Iterator[Any]:
    """A plain kernel, as a notebook has it."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=30)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


ABSENT = [name for name in ("matplotlib", "pandas", "tqdm") if importlib.util.find_spec(name) is None]


def run_locally(client: Any, code: str, answers: list[str]) -> list[tuple[str, Any]]:
    asked = list(answers)

    def answer(message: Any) -> None:
        client.input(asked.pop(0))

    shown: list[tuple[str, Any]] = []
    kinds = {
        "display_data": "DISPLAY",
        "update_display_data": "DISPLAY",
        "execute_result": "RESULT",
        "clear_output": "CLEAR",
        "error": "error",
    }

    def hook(message: Any) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            shown.append((content["name"].upper(), content["text"]))
        elif kind.startswith("comm_"):
            shown.append(("COMM", {"msg_type": kind, "content": content, "buffers": message["buffers"]}))
        elif kind in kinds:
            shown.append((kinds[kind], {**content, "update": kind == "update_display_data"}))

    client.execute_interactive(code, allow_stdin=True, stdin_hook=answer, output_hook=hook, timeout=60)
    return shown


def comparable(shown: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Without what must differ: ids, pixels, times; and streams in one piece."""
    ids: dict[str, int] = {}
    made: list[tuple[str, Any]] = []
    for kind, what in shown:
        if kind in ("STDOUT", "STDERR"):
            before = made.pop()[1] if made and made[-1][0] == kind else ""
            made.append((kind, before + re.sub(r"\S*\.py:\d+", "FILE", what)))
        elif kind in ("DISPLAY", "RESULT"):
            data = {
                mime: "..." if mime.startswith(("image/", "application/")) else text
                for mime, text in what["data"].items()
            }
            name = what.get("transient", {}).get("display_id")
            which = None if name is None else ids.setdefault(name, len(ids))
            made.append((kind, (data, what["metadata"], which, kind == "DISPLAY" and what["update"])))
        elif kind == "CLEAR":
            made.append((kind, what["wait"]))
        elif kind == "COMM":
            content = what["content"]
            which = ids.setdefault(content["comm_id"], len(ids))
            state = content.get("data", {}).get("state", {})
            made.append(
                (kind, (what["msg_type"], which, content.get("target_name"), sorted(state), len(what["buffers"])))
            )
    return made


SAME = {
    "streams": """
import sys
print('out', flush=True)
print('err', file=sys.stderr, flush=True)
print('again', end='')
""",
    "a value": "[1, 'two', {3}]",
    "silenced": "1 + 1;",
    "a statement": "x = 1",
    "a display": "display({'a': 1}, 'two')",
    "updates": """
h = display('a', display_id=True)
h.update('b')
print('c')
h.display('d')
""",
    "cleared": """
from IPython.display import clear_output
print('a')
clear_output(wait=True)
print('b')
clear_output()
""",
    "rich": """
from IPython.display import HTML, Markdown, JSON
display(HTML('<b>x</b>'), Markdown('*y*'), metadata={'a': 1})
JSON({'z': 1})
""",
    "a picture": r"""
from IPython.display import Image
Image(data=b'\x89PNG\r\n\x1a\n', format='png')
""",
    "a mime bundle": """
class A:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {'text/plain': 'p', 'text/html': '<i>'}, {'text/html': {'isolated': True}}
A()
""",
    "shown by itself": """
class A:
    def _ipython_display_(self):
        print('me')
A()
""",
    "broken": """
class A:
    def __repr__(self): return 1/0
print('a')
A()
""",
    "pandas": """
import pandas as pd
pd.DataFrame({'a': [1, 2]})
""",
    "a figure": """
import matplotlib.pyplot as plt
print('a')
plt.plot([1, 2])
print('b')
""",
    "two figures": """
import matplotlib.pyplot as plt
plt.plot([1]); plt.show()
print('between')
plt.figure(); plt.plot([2]);
""",
    "a figure on request": """
%matplotlib inline
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
fig
""",
    "a figure before an error": """
import matplotlib.pyplot as plt
plt.plot([1, 2])
1/0
""",
    "a bar": """
from tqdm import tqdm
for _ in tqdm(range(3), mininterval=0, ncols=40, bar_format='{l_bar}{bar}|'): pass
""",
    "a bar that is a widget": """
from tqdm.notebook import tqdm
for _ in tqdm(range(3)): pass
""",
    "a widget": """
import ipywidgets as w
s = w.IntSlider(3)
display(s)
s.value = 5
s.close()
""",
    "a widget with buffers": """
import ipywidgets as w
w.Image(value=b'abc', format='png')
""",
    "a magic": """
%env FLYTE_X=1
%env FLYTE_X
""",
    "a cell magic": """
%%bash
echo out
echo err >&2
""",
    "captured": """
%%capture c
print(1)
display(2)
3
""",
    "captured and shown": """
from IPython.utils.capture import capture_output
with capture_output() as c:
    print(1)
    display(2)
c()
""",
    "the shell": """
!echo $((1+2))
files = !echo a; echo b
files
""",
    "an await": """
import asyncio
print('a')
await asyncio.sleep(0.01)
print('b')
await asyncio.sleep(0, 7)
""",
    "async code": """
import asyncio
async def f():
    print('x')
    return 3
async with asyncio.TaskGroup() as g:
    t = g.create_task(f())
t.result()
""",
    "a run of its own": """
import asyncio
async def f():
    print('in')
    return 3
import threading
r = []
t = threading.Thread(target=lambda: r.append(asyncio.run(f())))
t.start(); t.join()
r
""",
    "a question": """
name = input('who? ')
print('hello', name)
""",
    "a password": """
import getpass
len(getpass.getpass('secret: '))
""",
    "a warning": """
import warnings
warnings.warn('careful')
""",
    "an error": """
print('a')
1/0
""",
    "the last value": """
5
6
""",
    "a line": "%lsmagic",
    "logging": """
import logging
logging.getLogger('x').warning('careful')
""",
}


def test_outputs_are_those_of_a_notebook(slot: Slot, kernel: Any) -> None:
    different = []
    for name, code in SAME.items():
        if any(module in code for module in ABSENT):
            continue
        here = run_locally(kernel, code, ["Ada"])
        there = slot.run(code, answers=("Ada",))
        shown = comparable([each for each in there.shown if each[0] != "input"])
        failed = any(kind == "error" for kind, _ in here)
        if shown != comparable(here) or failed != (there.status == Status.ERROR):
            different.append(f"{name}: {there.status!r}\n  {shown}\n  {comparable(here)}")
    assert not different, "\n".join(different)


@pytest.mark.skipif("matplotlib" in ABSENT, reason="needs matplotlib")
def test_figures_are_inline_where_matplotlib_was_imported_before(shared_broker: Path) -> None:
    drawing = flyte.TaskEnvironment("drawing", reusable=flyte.ReusePolicy(replicas=1))
    with slots_of(drawing, preimport=["matplotlib.pyplot", "matplotlib.backends.backend_agg"]) as slots:
        cell = slots().run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
        assert [sorted(what["data"]) for kind, what in cell.shown if kind == "DISPLAY"] == [["image/png", "text/plain"]]


# --- names


def test_a_fresh_cell_leaves_nothing_behind(slot: Slot) -> None:
    assert slot.run("x = 1\nx").result() == "1"
    assert slot.run("x").failure().name == "NameError"
    assert slot.run("get_ipython().user_ns is globals(), __name__").result() == "(True, '__main__')"
    assert "x" not in slot.names()


def test_a_session_keeps_its_names_and_another_does_not_see_them(slot: Slot) -> None:
    slot.run("from __future__ import annotations\nkept = 1", scope="session").reply()
    assert slot.run("def f(a: nobody): kept\nf.__annotations__", scope="session").result() == "{'a': 'nobody'}"
    assert slot.run("kept", scope="session", session="other").status == Status.ERROR
    assert {"kept", "f"} <= set(slot.names("session"))
    assert "kept" not in slot.names("session", "other")


def test_a_session_is_over_when_the_last_process_has_left_it(
    slots: Callable[[], Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(process: str) -> Slot:
        monkeypatch.setattr(leases, "process_token", lambda: process)
        return slots()

    first, second, third = of("one"), of("two"), of("one")
    first.run("shared = 1", scope="session", session="both").reply()
    first.run("alone = 1", scope="session", session="alone").reply()
    assert second.run("shared", scope="session", session="both").result() == "1"
    assert third.run("1", scope="session", session="third").result() == "1"
    for name in (b'"both"', b'"alone"', b'"third"'):
        first.send(Kind.LEAVE, 0, name)
    first.run("0").reply()
    assert second.run("shared", scope="session", session="both").result() == "1"
    assert second.run("alone", scope="session", session="alone").status == Status.ERROR
    second.send(Kind.LEAVE, 0, b'"both"')
    second.run("0").reply()
    assert third.run("shared", scope="session", session="both").status == Status.ERROR


def test_a_session_goes_on_over_a_new_connection(slots: Callable[[], Slot]) -> None:
    first = slots()
    first.run("kept = 1", scope="session", session="on").reply()
    first.lease.group.drop(first.lease)
    assert slots().run("kept", scope="session", session="on").result() == "1"


def test_the_replicas_own_names_are_those_of_a_console(slot: Slot) -> None:
    slot.run("mine = 1", scope="replica").reply()
    seen = slot.run("import IPython\nIPython.get_ipython()._user_ns['mine']")
    assert seen.result() == "1"
    slot.run("del mine", scope="replica").reply()


SETS = """
import decimal, io, numpy, sys, warnings
warnings.filterwarnings("error", "set by a cell")
sys.setrecursionlimit(2345)
decimal.getcontext().prec = 5
numpy.seterr(over="call")
"""
FINDS = """
import decimal, numpy, sys, warnings
"set by a cell" in str(warnings.filters), sys.getrecursionlimit() == 2345, decimal.getcontext().prec == 5, \\
    numpy.geterr()["over"] == "call"
"""
IN_TURN = "import asyncio\nawait asyncio.sleep(0)\n"
ALL, NOTHING = "(True, True, True, True)", "(False, False, False, False)"


@pytest.mark.parametrize("first", ["", IN_TURN], ids=["at once", "after an await"])
def test_what_a_fresh_cell_has_set_in_the_process_is_put_back(slot: Slot, first: str) -> None:
    assert slot.run(first + SETS + FINDS).result() == ALL
    assert slot.run(FINDS).result() == NOTHING


@pytest.mark.parametrize("first", ["", IN_TURN], ids=["at once", "after an await"])
def test_what_a_session_has_set_in_the_process_is_there_in_its_cells_alone(slot: Slot, first: str) -> None:
    session = f"sets{len(first)}"
    slot.run(first + SETS, scope="session", session=session).reply()
    for _ in range(2):
        assert slot.run(FINDS).result() == NOTHING
        assert slot.run(FINDS, scope="session", session="another").result() == NOTHING
        assert slot.run(FINDS, scope="session", session=session).result() == ALL
        assert slot.run(IN_TURN + FINDS, scope="session", session=session).result() == ALL
    slot.run("sys.setrecursionlimit(1234); warnings.resetwarnings()", scope="session", session=session).reply()
    assert slot.run(FINDS, scope="session", session=session).result() == "(False, False, True, True)"


def test_a_session_that_has_replaced_stdout_silences_nobody_else(slot: Slot) -> None:
    slot.run("import io, sys\nsys.stdout = mine = io.StringIO()\nprint(1)", scope="session", session="quiet").reply()
    assert slot.run("print(2)").text() == "2\n"
    assert slot.run("print(3); mine.getvalue()", scope="session", session="quiet").result() == r"'1\n3\n'"


def test_what_a_cell_of_the_replicas_own_names_has_set_stays(slot: Slot) -> None:
    before = slot.run("import sys; sys.getrecursionlimit()").result()
    slot.run("import sys; sys.setrecursionlimit(3456)", scope="replica").reply()
    assert slot.run("import sys; sys.getrecursionlimit()").result() == "3456"
    slot.run(f"sys.setrecursionlimit({before})", scope="replica").reply()
    assert slot.run("import sys; sys.getrecursionlimit()").result() == before


def test_a_cell_that_runs_while_another_waits_leaves_what_that_has_set(slots: Callable[[], Slot]) -> None:
    waiting, other = slots(), slots()
    waits = waiting.start("""
import asyncio, contextlib, io, sys
go = asyncio.Event()
sys.go = go
with contextlib.redirect_stdout(io.StringIO()) as caught:
    await go.wait()
    print("caught")
caught.getvalue()
""")
    looks = "import sys; hasattr(sys, 'go'), sys.getrecursionlimit()"
    while not (before := other.run(looks).result()).startswith("(True"):
        pass
    other.run("import io, sys; sys.stdout = io.StringIO(); sys.setrecursionlimit(2345)").reply()
    assert other.run(looks).result() == before
    other.run("import sys; sys.go.set()").reply()
    assert waits.wait().result() == r"'caught\n'"
    assert other.run("print('shown')").text() == "shown\n"
    other.run("import sys; del sys.go").reply()


def test_names_are_pushed_and_pulled(slot: Slot) -> None:
    cell = slot.run("z = [x + 1]\nf = lambda v: v + z[0]", push={"x": 1}, pull=("z", "f", "missing"))
    reply = cell.reply()
    assert (reply.pulled["z"], reply.pulled["f"](1), reply.missing) == ([2], 3, ("missing",))


def test_an_object_of_a_class_of_the_cell_stays_there(slot: Slot) -> None:
    failure = slot.run("class Batch: pass\nout = [Batch()]", pull=("out",)).failure()
    assert failure.name == errors.ResultNotSerializable.__name__
    assert failure.message == 'FJ403 The result "out" cannot be brought back.'
    assert "Its class `Batch` was defined in the task cell" in failure.notes[0]
    assert "generator" in slot.run("out = (i for i in [])", pull=("out",)).failure().notes[0]


def test_classes_of_the_cell_can_be_pickled_within_it(slot: Slot) -> None:
    code = """
    import copy, pickle
    from concurrent.futures import ThreadPoolExecutor
    class A: pass
    def again(): return type(pickle.loads(pickle.dumps(A()))) is A
    with ThreadPoolExecutor(1) as threads: there = threads.submit(again).result()
    again(), there, type(copy.deepcopy(A())) is A
    """
    assert slot.run(code).result() == "(True, True, True)"


def test_the_last_values_are_remembered(slot: Slot) -> None:
    assert slot.run("4", scope="session", session="last").result() == "4"
    assert slot.run("5", scope="session", session="last").result() == "5"
    assert slot.run("_, __", scope="session", session="last").result() == "(5, 4)"


def test_nothing_of_a_cell_stays_in_memory(slot: Slot) -> None:
    watch = """
    import builtins, weakref
    class Tensor: pass
    def f(t): {end}
    tensor = Tensor()
    builtins.watched = weakref.ref(tensor)
    f(tensor)
    """
    for end in ("return", "1/0", "exec('%')", "tensor.t = tensor", "get_ipython().run_cell('1/0')"):
        slot.run(watch.format(end=end))
        assert slot.run("import builtins\nbuiltins.watched()").shown == [], end


def test_only_a_cell_that_leaves_a_cycle_is_followed_by_a_collection(slot: Slot) -> None:
    count = "import gc\ngc.get_stats()[2]['collections']"
    before = int(slot.run(count).result())
    for _ in range(5):
        slot.run("x = [1]\nx")
    assert int(slot.run(count).result()) == before
    slot.run("def f(): pass")
    assert int(slot.run(count).result()) == before + 1


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that stands for the notebook."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


BATCH = "class Batch:\n    def size(self): return 2\n"


def by_source(main: ModuleType) -> Definition:
    return SourceDefinition("Batch", Mark("digest"), Text("/nowhere/other.py", 1, BATCH), "Batch")


def by_value(main: ModuleType) -> Definition:
    (definition,) = Captured.of_names(["Batch"], vars(main)).closure().definitions
    return definition


@pytest.mark.parametrize("made", [by_source, by_value])
def test_what_is_sent_is_there_under_its_name(
    slot: Slot, main: ModuleType, made: Callable[[ModuleType], Definition]
) -> None:
    exec(BATCH, vars(main))
    closure = Closure.of("", [made(main)])
    cell = slot.start("out = Batch()\nout.size()", definitions=("Batch",), pull=("out",), digests=(closure.digest,))
    need = slot.frame()
    assert need.kind == Kind.NEED
    slot.send(Kind.DEFINE, cell.number, pickle.dumps([closure.beyond(pickle.loads(need.body))]))
    (out,) = cell.wait().reply().pulled.values()
    assert type(out) is main.Batch  # the notebook's own class, by its name
    assert [what["data"]["text/plain"] for kind, what in cell.shown if kind == "RESULT"] == ["2"]


def test_what_a_cell_looks_for_in_main_is_asked_of_the_notebook(slot: Slot) -> None:
    cell = slot.run("import pickle\npickle.loads(b'c__main__\\nNowhere\\n.')")
    assert cell.wanted == ["Nowhere"]
    assert cell.failure().name == "AttributeError"


# --- code


@pytest.mark.parametrize(
    ("code", "first_line", "line"),
    [("1/0", 1, 1), ("1/0", 2, 2), ("\n\nx = 1\n1/0", 2, 5), ("  \n  1/0\n", 3, 4), ("%time x = 1\n\n1/0", 2, 4)],
)
def test_an_error_points_to_its_line(slot: Slot, code: str, first_line: int, line: int) -> None:
    failure = slot.run(code, first_line=first_line).failure()
    assert failure.frames[-1] == (FILE, "<module>", 1, line)
    assert f'File "{FILE}", line {line}, in <module>\n    1/0' in failure.text
    assert failure.sources[FILE].split("\n")[line - 1].strip() == "1/0"
    assert len(failure.frames) == 1


def test_a_cell_magic_is_shown_as_it_was_written(slot: Slot) -> None:
    failure = slot.run("%%time\n1/0", first_line=2).failure()
    assert failure.frames[0] == (FILE, "<module>", 1, 2)
    assert failure.sources[FILE].split("\n")[:3] == ["", "%%time", "1/0"]


def test_an_error_in_a_function_points_there(slot: Slot) -> None:
    failure = slot.run("def f():\n    1/0\nawait __import__('asyncio').sleep(0)\nf()", first_line=2).failure()
    assert failure.frames == [(FILE, "<module>", 1, 5), (FILE, "f", 2, 3)]


def test_a_syntax_error_points_to_its_line(slot: Slot) -> None:
    failure = slot.run("a = 1\nb = = 2\n", first_line=2).failure()
    error = pickle.loads(failure.pickled or b"")
    fields = (
        error[2] if isinstance(error, tuple) else vars(type(error)) and {"lineno": error.lineno, "text": error.text}
    )
    assert (fields["lineno"], fields["text"].strip()) == (3, "b = = 2")
    assert failure.frames == []
    assert slot.run("return 1").failure().name == "SyntaxError"


def test_a_warning_names_the_line(slot: Slot) -> None:
    for _ in range(2):
        cell = slot.run("import warnings\nwarnings.warn('careful')", first_line=2)
        assert cell.text("STDERR") == f"{FILE}:3: UserWarning: careful\n  warnings.warn('careful')\n"


def test_a_single_word_may_be_a_magic_or_a_name(slot: Slot) -> None:
    assert slot.run("pwd").result() == slot.run("import os\nos.getcwd()").result()
    assert slot.run("pwd", push={"pwd": 3}).result() == "3"


def test_magics_act_on_the_cells_own_names(slot: Slot) -> None:
    cell = slot.run(
        "x = 3\n%who int\n!echo $x {x + 1}\nget_ipython().run_cell('y = x')\ny;%time z = 2\n".replace(";", "\n")
    )
    assert cell.text().splitlines()[:2] == ["x\t ", "3 4"]
    assert "z" not in slot.names()


def test_what_ends_a_console_does_not_end_the_replica(slot: Slot) -> None:
    assert slot.run("exit()").failure().name == "SystemExit"
    assert slot.run("exit()", scope="replica").failure().name == "SystemExit"
    assert slot.run("1").result() == "1"


def test_hooks_run_around_a_cell(slot: Slot) -> None:
    register = """
    def hook(*args): print("hook", len(args), args[0].success if args and hasattr(args[0], "success") else "")
    for event in ("pre_run_cell", "post_run_cell"): get_ipython().events.{verb}(event, hook)
    """
    slot.run(register.format(verb="register"), scope="replica").reply()
    assert slot.run("print('in')").text() == "hook 1 \nin\nhook 1 True\n"
    assert slot.run("1/0").text() == "hook 1 \nhook 1 False\n"
    slot.run(
        "for event in ('pre_run_cell', 'post_run_cell'): get_ipython().events.unregister(event, hook)", scope="replica"
    )


# --- several at once


def test_cells_at_once_do_not_mix(slots: Callable[[], Slot]) -> None:
    code = """
    import asyncio, threading
    class Own: name = {name!r}
    x = {name!r}
    for _ in range(20):
        print(x)
        await asyncio.sleep(0.001)
        assert get_ipython().user_ns["x"] == x and __import__("__main__").Own.name == x
    async def child():
        await asyncio.sleep(0.01)
        print(x)
    await asyncio.create_task(child())
    thread = threading.Thread(target=lambda: print(x))
    thread.start()
    await asyncio.to_thread(thread.join)
    await asyncio.get_running_loop().run_in_executor(None, print, x)
    x
    """
    cells = [slots().start(code.format(name=name)) for name in "abcd"]
    for name, cell in zip("abcd", cells, strict=True):
        assert cell.wait().result() == repr(name)
        assert cell.text() == f"{name}\n" * 23


def test_a_thread_that_outlives_its_cell_writes_to_nobody_else(slot: Slot) -> None:
    late = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()"
    slot.run(late).reply()
    cell = slot.run("import time\ntime.sleep(0.4)\nprint('mine')")
    assert cell.text() == "mine\n"


def test_a_cell_that_waits_is_cancelled(slot: Slot) -> None:
    for code in ("import asyncio\nprint(1)\nawait asyncio.sleep(60)", "import time\nprint(1)\ntime.sleep(60)"):
        cell = slot.start(code)
        cell.take(slot.frame())
        slot.lease.cancel(cell.number)
        with within(2):
            assert cell.wait().status == Status.CANCELLED
    assert slot.run("1").result() == "1"


# --- questions


def test_questions_are_answered(slot: Slot) -> None:
    cell = slot.run("a = input('name: ')\nimport getpass\na, getpass.getpass('key: ')", answers=("Ada", "s\u00e9same"))
    assert cell.result() == "('Ada', 's\u00e9same')"
    assert cell.shown[:2] == [
        ("input", {"prompt": "name: ", "password": False}),
        ("input", {"prompt": "key: ", "password": True}),
    ]


def test_what_was_printed_comes_before_the_question(slot: Slot) -> None:
    cell = slot.run("print('hello', end='')\nawait __import__('asyncio').sleep(0)\ninput()", answers=("x",))
    assert [kind for kind, _ in cell.shown] == ["STDOUT", "input", "RESULT"]


def test_a_debugger_can_be_used(slot: Slot) -> None:
    cell = slot.run("def f(x):\n    breakpoint()\n    return x\nf(7)", answers=("p x + 1", "c"))
    assert cell.result() == "7"
    assert "8" in cell.text()


def test_where_nobody_can_be_asked_the_cell_fails(slot: Slot) -> None:
    failure = slot.run("input()", answers=(None,)).failure()
    assert (failure.name, failure.message) == (
        "StdinNotImplementedError",
        "stdin is not available in tasks; pass what it asks for as an argument",
    )
    threaded = (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor() as t: t.submit(input).result()"
    )
    assert "not in its threads" in slot.run(threaded).failure().message


def test_a_question_can_be_cancelled(slot: Slot) -> None:
    for code in ("input()", "await __import__('asyncio').sleep(0)\ninput()"):
        cell = slot.start(code)
        assert slot.frame().kind == Kind.INPUT
        slot.lease.cancel(cell.number)
        with within(2):
            assert cell.wait().status == Status.CANCELLED
    assert slot.run("1").result() == "1"


def test_calls_that_come_while_a_question_waits_are_not_lost(slot: Slot) -> None:
    first = slot.start("input()")
    assert slot.frame().kind == Kind.INPUT
    second = slot.start("2")
    slot.send(Kind.ANSWER, first.number, b"one")
    assert first.wait().result() == "'one'"
    assert second.wait().result() == "2"


# --- widgets


class Front:
    """A front end that stays when the call is over: a control connection of the replica."""

    def __init__(self, lease: Lease) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(lease.address)
        self._reader = FrameReader()
        self._socket.sendall(b"".join(encode(Kind.HELLO, 0, b'{"role": "control"}')))

    def say(self, comm_id: str, data: dict[str, Any], kind: str = "comm_msg") -> None:
        message = {"msg_type": kind, "content": {"comm_id": comm_id, "data": data}, "metadata": {}, "buffers": []}
        self._socket.sendall(b"".join(encode(Kind.COMM, 0, pickle.dumps(message))))

    def hear(self) -> tuple[str, Any]:
        while (frame := self._reader.next_frame()) is None:
            self._reader.buffer_updated(self._socket.recv_into(self._reader.get_buffer()))
        return output(frame)

    def close(self) -> None:
        self._socket.close()


def opened(cell: Cell, model: str) -> str:
    messages = [what["content"] for kind, what in cell.shown if kind == "COMM"]
    return next(m["comm_id"] for m in messages if m.get("data", {}).get("state", {}).get("_model_name") == model)


WIDGET = """
import ipywidgets
slider = ipywidgets.IntSlider(3)
def changed(change): print("now", change.new)
slider.observe(changed, "value")
"""


def test_a_widget_lives_on_after_its_cell(slot: Slot) -> None:
    comm_id = opened(slot.run(WIDGET, scope="session", session="widgets"), "IntSliderModel")
    front = Front(slot.lease)
    front.say(comm_id, {"method": "update", "state": {"value": 7}})
    assert ("STDOUT", "now 7\n") in [front.hear(), front.hear()]  # the other is ipywidgets' echo
    assert slot.run("slider.value", scope="session", session="widgets").result() == "7"
    # From now on what the widget says outside calls goes there, too.
    late = "import threading\nthreading.Timer(0.1, lambda: setattr(slider, 'value', 9)).start()"
    slot.run(late, scope="session", session="widgets").reply()
    kind, message = front.hear()
    assert (kind, message["content"]["data"]["state"]) == ("COMM", {"value": 9})
    front.close()


def test_a_widget_hears_its_front_end_while_its_cell_waits(slot: Slot) -> None:
    cell = slot.start(f"{WIDGET}\nimport asyncio\nwhile slider.value == 3: await asyncio.sleep(0.01)\nslider.value")
    while not any(kind == "COMM" and "IntSliderModel" in str(what) for kind, what in cell.shown):
        cell.take(slot.frame())
    comm_id = opened(cell, "IntSliderModel")
    content = {"comm_id": comm_id, "data": {"method": "update", "state": {"value": 4}}}
    message = {"msg_type": "comm_msg", "content": content, "metadata": {}, "buffers": []}
    slot.send(Kind.COMM, cell.number, pickle.dumps(message))
    assert cell.wait().result() == "4"
    assert cell.text() == "now 4\n"


def test_an_output_widget_asks_for_the_clients_message(slot: Slot) -> None:
    cell = slot.run("import ipywidgets\nwith ipywidgets.Output(): print(1)")
    states = [what["content"]["data"].get("state", {}) for kind, what in cell.shown if kind == "COMM"]
    assert [state["msg_id"] for state in states if "msg_id" in state][-2:] == [PARENT, ""]


# --- past Python


def test_what_subprocesses_write_is_shown_in_order(slot: Slot) -> None:
    code = r"""
    import os, subprocess, sys
    print("a")
    os.system("echo b; echo c >&2")
    print("d")
    subprocess.run(["echo", "e"], stdout=sys.stdout)
    display("f")
    os.write(1, "\u00e4\n".encode())
    os.write(2, b"h\n")
    """
    cell = slot.run(code)
    assert "".join(what if isinstance(what, str) else "f\n" for kind, what in cell.shown if kind != "RESULT") == (
        "a\nb\nc\nd\ne\nf\n\u00e4\nh\n"
    )
    assert cell.text("STDERR") == "c\nh\n"


def test_forked_children_are_heard(slot: Slot) -> None:
    code = """
    import multiprocessing, os
    def child():
        print("from the child")
        os.system("echo once")
        print("no end", end="")
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    """
    assert sorted(slot.run(code).text().splitlines()) == ["from the child", "no end", "once"]


def test_a_c_library_is_heard(slot: Slot) -> None:
    assert slot.run("import ctypes\nctypes.PyDLL(None).printf(b'from C\\n');").text() == "from C\n"


def test_it_is_shown_as_it_comes(slot: Slot) -> None:
    cell = slot.start("import os\nos.system('echo now; sleep 5')")
    with within(3):
        cell.take(slot.frame())
    assert cell.text() == "now\n"
    slot.lease.cancel(cell.number)
    cell.wait()


def test_a_library_that_holds_the_lock_and_prints_much_does_not_hang(slot: Slot) -> None:
    code = "import ctypes\nctypes.PyDLL(None).write(1, b'x' * 3_000_000, ctypes.c_size_t(3_000_000));"
    with within(5):
        assert len(slot.run(code).text()) == 3_000_000


@pytest.mark.parametrize(
    "code", ["print(('x' * 99 + '\\n') * 500_000, end='')", "import os\nos.system('head -c 50000000 /dev/zero');"]
)
def test_fifty_megabytes_end(slot: Slot, code: str) -> None:
    with within(10):
        assert len(slot.run(code).text()) == 50_000_000


# --- cost


def test_a_small_cell_takes_well_under_a_millisecond(slot: Slot) -> None:
    slot.run("1+1")

    def once() -> float:
        started = time.perf_counter()
        slot.run("1+1")
        return time.perf_counter() - started

    assert min(once() for _ in range(50)) < 0.001
