"""A cell in the background: its handle, and its output in the cell that started it, also when that cell is over."""

from __future__ import annotations

import html
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import Context, copy_context
from typing import Any, Final

from .. import errors
from ..client import outputs, text
from ..client.cells.lines import footer
from ..client.cells.target import CellTarget
from ..client.running import RunningPool
from ..core.cells import CellReply
from .crossing import Crossing
from .present import is_terminal, presentable

REDRAW_S: Final = 0.2
SHOWN_BYTES: Final = 256 * 1024
"""Its display is drawn as a whole each time, so it shows less than a cell does."""


class JobScreen(outputs.Screen):
    """One display that is drawn again as output comes. In a terminal it only collects: nothing can be drawn above."""

    interactive = False

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._id = uuid.uuid4().hex
        self._context: Context = copy_context()  # of the cell that starts it
        self._display_pub = shell.display_pub  # of that cell, too: in another one it may be that of %%capture
        self._lock = threading.RLock()
        self._parts: list[tuple[str, str]] = []  # plain text and HTML, in order
        self._places: dict[str, int] = {}  # of a display that may be updated
        self._clear = False
        self._timer = False
        self.head: Callable[[], str] = str
        self.value: outputs.RemoteValue | None = None

    def begin(self) -> None:
        """Make the display."""
        self._publish(update=False)

    def text(self, stream: str, text: str) -> None:
        with self._lock:
            self._start_anew()
            if self._parts and self._parts[-1][1] == "":  # text goes on
                text = self._parts.pop()[0] + text
            self._parts.append((_overwritten(text), ""))
        self.draw_soon()

    def display(self, content: dict[str, Any]) -> None:
        part = _part(content["data"])
        name = content["transient"].get("display_id", "")
        with self._lock:
            self._start_anew()
            if content["update"]:
                if name in self._places:
                    self._parts[self._places[name]] = part
            else:
                self._parts.append(part)
                self._places[name] = len(self._parts) - 1
        self.draw_soon()

    def result(self, content: dict[str, Any]) -> None:
        self.value = outputs.RemoteValue(content["data"], content["metadata"])
        with self._lock:
            self._start_anew()
            self._parts.append(_part(content["data"]))
        self.draw_soon()

    def clear(self, *, wait: bool) -> None:
        with self._lock:
            self._clear = True
            if not wait:
                self._start_anew()

    def draw(self, *, here: bool = False) -> None:
        """Bring the display up to date; `here` for who looks only at what the cell that runs now says, as nbclient."""
        with self._lock:
            self._timer = False
            self._publish(update=True, here=here)

    def plain(self) -> str:
        """What it has shown, as text."""
        with self._lock:
            return "".join(part if part.endswith("\n") else f"{part}\n" for part, _ in self._parts)

    def _start_anew(self) -> None:
        if self._clear:
            self._clear = False
            self._parts.clear()
            self._places.clear()

    def draw_soon(self) -> None:
        """Bring it up to date in a moment, together with what comes until then."""
        with self._lock:
            if self._timer or is_terminal(self._shell):
                return
            self._timer = True
        timer = threading.Timer(REDRAW_S, self.draw)
        timer.daemon = True
        timer.start()

    def _publish(self, *, update: bool, here: bool = False) -> None:
        """As the cell that started it, whichever runs now; or as the one that runs `here`."""
        if is_terminal(self._shell):
            return
        head = self.head()
        plain = f"{head}\n{self.plain()}".rstrip("\n")
        styled = [f'<span style="opacity: 0.6; font-size: smaller">{html.escape(head)}</span>']
        styled += [part or f"<pre>{html.escape(_COLOURS.sub('', written))}</pre>" for written, part in self._parts]
        context = copy_context() if here else self._context.copy()  # two threads may not be in one context
        display_pub = self._shell.display_pub if here else self._display_pub
        context.run(
            display_pub.publish,
            {"text/plain": plain, "text/html": "".join(styled)},
            {},
            transient={"display_id": self._id},
            update=update,
        )


_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


def _part(data: dict[str, Any]) -> tuple[str, str]:
    plain = str(data.get("text/plain", ""))
    for kind in ("image/png", "image/jpeg", "image/gif"):
        if kind in data:
            return plain, f'<img src="data:{kind};base64,{str(data[kind]).strip()}">'
    styled = data.get("text/html") or data.get("image/svg+xml") or f"<pre>{html.escape(plain)}</pre>"
    return plain, str(styled)


def _overwritten(text: str) -> str:
    """What a terminal would show of it: a carriage return begins the line anew, as progress bars do."""
    if "\r" not in text:
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] + "\r" * line.endswith("\r") for line in lines)


class Job:
    """A task cell in the background. `result()` waits for it, as does `%flyte_wait`.

    Attributes:
        name: "cell #12"; magics take the number or the job's variable.
        pool: Where it runs.
    """

    def __init__(
        self,
        notebook: Crossing,
        target: CellTarget,
        screen: JobScreen,
        future: Future[CellReply],
        pulls: list[tuple[str, str]],
    ) -> None:
        self.name = target.name
        self.pool: RunningPool = target.pool
        self._notebook = notebook
        self._shell = notebook.shell
        self._target = target
        self._screen = screen
        self._future = future
        self._pulls = pulls
        self._began = time.monotonic()
        self._ended: float | None = None
        screen.head = self._head
        target.times.on_begin = screen.draw_soon  # it says "waiting" until then
        future.add_done_callback(self._over)

    def done(self) -> bool:
        """Whether it is over, in whichever way."""
        return self._future.done()

    def cancel(self) -> bool:
        """Stop it; False if it was over already."""
        return not self._future.done() and self._future.cancel()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for its end, assign what `-o` names here, and return it: a value, or a dict of several.

        Without `-o`, what its last expression looks like.

        Raises:
            TimeoutError: It is not over after `timeout` seconds; it goes on.
            TaskCancelled: It was cancelled.
            NameError: The cell has not made a name of `-o`.
            BaseException: What the cell raised.
        """
        pulled = self._notebook.assign(self.reply(timeout), self._pulls)
        return pulled if self._pulls else self._screen.value

    def reply(self, timeout: float | None = None) -> CellReply:
        """Wait for its end; nothing is assigned. Raises as `result` does."""
        try:
            wait([self._future], timeout)
        except KeyboardInterrupt as stop:  # of the waiting: the job goes on
            raise presentable(self._shell, stop, None) from None
        if not self._future.done():
            raise TimeoutError(f"{self.name} is not over after {timeout:g} s; it goes on")
        self._screen.draw(here=True)
        try:
            return self._future.result()
        except BaseException as error:
            shown = error
            if self._future.cancelled():  # a cell may raise a CancelledError itself
                shown = errors.TaskCancelled(self.name, replica=self._target.times.replica or None)
            raise self._notebook.explained(shown, self._target) from None

    def output(self) -> str:
        """What it has written so far, as text."""
        return self._screen.plain()

    def state(self) -> str:
        """One of waiting, running, done, failed, cancelled."""
        if self._future.cancelled():
            return "cancelled"
        if not self._future.done():
            return "waiting" if self._target.times.began_at is None else "running"
        return "failed" if self._future.exception() is not None else "done"

    def __repr__(self) -> str:
        return f"<job {self._head()}>"

    def _head(self) -> str:
        state = self.state()
        if state == "done":
            return f"{self.name} · done · {footer(self.pool, self._target.times)}"
        now = time.monotonic() if self._ended is None else self._ended
        words = [self.name, state, self.pool.name, text.countdown(now - self._began)]
        error = None if state != "failed" else self._future.exception()
        if error is not None:
            words.append(text.visible(f"{type(error).__name__}: {error}".partition("\n")[0]))
        return " · ".join(words)

    def _over(self, future: Future[CellReply]) -> None:
        self._ended = time.monotonic()
        if self._target.times.ended_at is None:
            self._target.times.ended_at = self._ended
        # Not here: this may be the loop that all background calls share.
        threading.Thread(target=self._screen.draw, daemon=True).start()
