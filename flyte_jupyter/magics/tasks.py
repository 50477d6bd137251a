"""`%%flyte_task` and what goes with it: cells that run on warm kernels as if they ran here."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from .. import _version, errors
from ..client import outputs, text
from ..client.cells.lines import footer
from ..client.cells.names import forget_names
from ..client.cells.pinned import PinnedGroup, slots_on
from ..client.cells.request import PRIORITIES, RETRY_REASONS, Cell
from ..client.cells.target import CellTarget
from ..client.cells.work import run, start
from ..client.handle import fresh_pool
from ..client.remote import says_all
from ..client.running import RunningPool
from ..core.cells import CellReply, Scope
from .jobs import SHOWN_BYTES, Job, JobScreen
from .local import run_here
from .notebook import Notebook, Ran
from .options import (
    argument,
    magic_arguments,
    parse,
    parse_count,
    parse_duration,
    parse_names,
    parse_pulls,
    parse_size,
    parse_words,
    split_expression,
)
from .pools import VERBS
from .preload import make_loader
from .present import WaitingLine, presentable, say, tidy
from .settings import parse_scope

VALUE: Final = "_flyte_value"
"""What the line form calls its expression's value there."""
_PARSE: Final = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def parse_reasons(value: str) -> list[str]:
    """What a cell is repeated for."""
    reasons = parse_words(value)
    for reason in reasons:
        if reason not in RETRY_REASONS:
            raise argparse.ArgumentTypeError(f"{reason!r} is not one of {', '.join(RETRY_REASONS)}")
    return reasons


@magics_class
class TaskMagics(Magics):
    """Task cells, preloads, and the defaults of both."""

    shell: Any

    def __init__(self, notebook: Notebook) -> None:
        super().__init__(notebook.shell)
        self.notebook = notebook
        self.settings = notebook.settings

    @no_var_expand
    @line_cell_magic
    @magic_arguments()
    @argument("pool", nargs="?", metavar="NAME", help="a pool, or the variable of its environment; default: the last")
    @argument(
        "-i",
        "--in",
        dest="push",
        type=parse_names,
        action="extend",
        default=[],
        metavar="A,B",
        help="send these variables, functions, classes or modules of the notebook",
    )
    @argument(
        "-o",
        "--out",
        dest="pull",
        type=parse_pulls,
        action="extend",
        default=[],
        metavar="Y[=LOCAL]",
        help="bring these variables back",
    )
    @argument(
        "--scope",
        type=parse_scope,
        metavar="SCOPE",
        help="fresh (default): the preload names and those of this cell; session: names stay, for this notebook; "
        "replica: the replica's own globals",
    )
    @argument("--session", metavar="NAME", help="a session with a name: one replica, whose names stay")
    @argument(
        "--bg", action="store_true", help="return a job at once; output goes to a display of its own in this cell"
    )
    @argument("--as", dest="handle", metavar="JOB", help="with --bg: the variable of the job")
    @argument("--all", dest="everywhere", action="store_true", help="on every replica that is there; -o gives lists")
    @argument("--replica", type=parse_count(0), metavar="N", help="on the replica of that number")
    @argument("--fresh", action="store_true", help="in a kernel of its own, which ends after the cell")
    @argument("--local", action="store_true", help="here, as a local cell")
    @argument("--timeout", type=parse_duration, metavar="T", help="stop it after 90, 5m or 1h30m")
    @argument("--retries", type=parse_count(0), default=0, metavar="N", help="run it again, that often, if it fails")
    @argument(
        "--retry-on",
        type=parse_reasons,
        action="extend",
        default=[],
        metavar="WHY",
        help="only for these: oom, crash, timeout",
    )
    @argument(
        "--priority",
        choices=tuple(PRIORITIES),
        default="normal",
        help="which of this notebook's own waiting cells goes first",
    )
    @argument("--progress-after", type=parse_duration, metavar="T", help="say what it waits for after that long (2)")
    @argument("--quiet", action="store_true", help="show nothing but what a local cell would")
    @argument(
        "--on-interrupt",
        choices=("int", "term", "kill"),
        default="int",
        help="Stop raises KeyboardInterrupt there (int), also replaces the replica (term), or ends it at once (kill)",
    )
    @argument("--dry-run", action="store_true", help="only show what would be sent, and where to")
    def flyte_task(self, line: str, cell: str | None = None) -> Any:
        """Run a cell on a warm kernel: `%%flyte_task NAME`, or an expression: `%flyte_task NAME -- expression`.

        Example: %%flyte_task gpu -i prompts -o answers --timeout 2m
        """
        given, expression = (line, None) if cell is not None else split_expression(line)
        options = parse(self.shell, self.flyte_task, given)
        _check(options)
        if cell is None:
            if not expression:
                raise UsageError("%flyte_task NAME -- expression; or %%flyte_task NAME above the lines of a cell")
            return self._run_line(options, line, expression)
        if not cell.strip():
            raise UsageError("%%flyte_task: there is nothing to run below it")
        filename = self._known_as(f"%%flyte_task {line}".rstrip() + f"\n{cell}")
        done = self._run(options, cell, filename, first_line=2)
        return done if isinstance(done, Job) else None

    def _run_line(self, options: argparse.Namespace, line: str, expression: str) -> Any:
        """Show the value as a cell would, unless it can be returned: then whoever calls shows or keeps it."""
        filename = self._known_as(f"%flyte_task {line}")
        seen: list[outputs.RemoteValue] = []
        if _is_expression(expression) and not (options.local or options.everywhere or options.dry_run):
            expression = f"{VALUE} = ({expression})\n{VALUE}"
            options.pull = [*options.pull, (VALUE, "")]
        try:
            done = self._run(options, expression, filename, first_line=1, seen=seen)
        except errors.ResultNotSerializable:
            if not seen:
                raise
            return seen[-1]  # it stays there; this is what it looks like
        return done.pulled.get(VALUE) if isinstance(done, CellReply) else done

    def _run(
        self,
        options: argparse.Namespace,
        code: str,
        filename: str,
        first_line: int,
        seen: list[outputs.RemoteValue] | None = None,
    ) -> CellReply | Job | None:
        values = self.notebook.values(options.push)
        self._check_syntax(code, filename, first_line)
        if options.local:
            run_here(self.shell, code, filename, first_line)
            for there, here in options.pull:
                if there not in self.shell.user_ns:
                    reply = CellReply(missing=(there,))
                    self.notebook.assign(reply, [])
                self.shell.user_ns[here] = self.shell.user_ns[there]
            return None
        with tidy(self.shell):
            pools, name = self.notebook.pools, options.pool or ""
            pool = fresh_pool(pools.find_declared(name)) if options.fresh else pools.find(name)
        limit = self.settings.timeout if options.timeout is None else options.timeout
        scope: Scope = options.scope or ("session" if options.session else self.settings.scope)
        wanted = Cell(
            code=code,
            filename=filename,
            name=f"cell #{self._count()}",
            first_line=first_line,
            scope=scope,
            session=options.session or "",
            push=values,
            pull=tuple(dict.fromkeys(there for there, _ in options.pull)),
            timeout=limit or None,
            retries=options.retries or (1 if options.retry_on else 0),
            retry_on=tuple(options.retry_on),
            on_interrupt=options.on_interrupt,
            priority=options.priority,
        )
        if options.dry_run:
            print(_described(wanted, pool))
            return None
        target = CellTarget(wanted, pool)
        with tidy(self.shell):
            target.check()  # before a slot is held for it, or a display made that nobody may look at
        if options.everywhere:
            self._run_everywhere(wanted, pool, options)
            return None
        if options.bg:
            return self._start(target, options)
        with self._waiting(target, options):
            if options.replica is not None:
                target.pinned = self._slots(pool, target.name, options.replica)[0]
            screen: outputs.Screen = outputs.Screen() if seen is None else _Seen(seen)
            return self._run_here(target, options, screen)

    def _run_here(self, target: CellTarget, options: argparse.Namespace, screen: outputs.Screen) -> CellReply:
        number = self.notebook.number(self._count())
        guard = outputs.Guard(screen, self.settings.output_limit, f"%flyte_result {number} --output")
        self.notebook.remember(number, Ran(target.name, guard))
        failed: BaseException | None = None
        try:
            with outputs.shown_on(guard):
                reply = run(target)
        except BaseException as error:
            if not says_all(error):
                raise
            failed = self.notebook.explained(error, target)
        finally:
            forget_names()
        quiet = options.quiet or self.settings.quiet
        if not quiet and (line := footer(target.pool, target.times)):
            say(self.shell, line)
        if failed is not None:  # here, so that it has no context: IPython looks for groups of exceptions there
            raise failed
        self.notebook.assign(reply, options.pull)
        return reply

    @contextmanager
    def _waiting(self, target: CellTarget, options: argparse.Namespace) -> Iterator[None]:
        if options.quiet or self.settings.quiet:
            yield
            return
        after = self.settings.progress_after if options.progress_after is None else options.progress_after
        alone = self.shell.user_ns["In"][-1].startswith("get_ipython().run_cell_magic('flyte_task'")
        with WaitingLine(self.shell, target.pool, target, after, alone=alone):
            yield

    def _start(self, target: CellTarget, options: argparse.Namespace) -> Job | None:
        """In the background."""
        screen = JobScreen(self.shell)
        number = self.notebook.number(self._count())
        limit = min(self.settings.output_limit or SHOWN_BYTES, SHOWN_BYTES)
        guard = outputs.Guard(screen, limit, f"%flyte_result {number} --output")
        if options.replica is not None:
            target.pinned = self._slots(target.pool, target.name, options.replica)[0]
        job = Job(self.notebook, target, screen, start(target, guard), options.pull)
        self.notebook.remember(number, Ran(target.name, guard, job))
        if options.handle:
            self.shell.user_ns[options.handle] = job
        screen.begin()
        return None if options.handle else job

    def _run_everywhere(self, wanted: Cell, pool: RunningPool, options: argparse.Namespace) -> None:
        """On each replica at once, each with a display of its own."""
        jobs = []
        for slot in self._slots(pool, wanted.name):
            target = CellTarget(wanted, pool)
            target.pinned = slot
            target.name = f"{wanted.name} on {slot.replica}"
            screen = JobScreen(self.shell)
            number = self.notebook.number(self._count())
            guard = outputs.Guard(screen, SHOWN_BYTES, f"%flyte_result {number} --output")
            job = Job(self.notebook, target, screen, start(target, guard), [(n, n) for n in wanted.pull])
            self.notebook.remember(number, Ran(target.name, guard, job))
            screen.begin()
            jobs.append(job)
        try:
            replies = [job.reply() for job in jobs]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        for there, here in options.pull:
            missing = [reply for reply in replies if there not in reply.pulled]
            if missing:
                self.notebook.assign(missing[0], [])
            self.shell.user_ns[here] = [reply.pulled[there] for reply in replies]

    def _slots(self, pool: RunningPool, name: str, number: int | None = None) -> list[PinnedGroup]:
        with tidy(self.shell):
            try:
                return slots_on(pool, name, number)
            except ValueError as problem:
                raise UsageError(f"--replica: {problem}") from None

    def _count(self) -> int:
        """The number of this cell, as in `In[12]`."""
        count: int = self.shell.displayhook.prompt_count
        return count

    def _known_as(self, cell: str) -> str:
        """The name under which IPython knows a cell, with the text that the user wrote, not what it made of it."""
        name: str = self.shell.compile.cache(cell, self._count(), raw_code=cell)
        return name

    def _check_syntax(self, code: str, filename: str, first_line: int) -> None:
        """What no kernel would run need not wait for one."""
        if "\n" not in code.strip():
            return  # what a single line means depends on the names there
        transformed = "\n" * (first_line - 1) + self.shell.transform_cell(code)
        try:
            compile(transformed, filename, "exec", _PARSE, dont_inherit=True)
        except SyntaxError as error:
            raise presentable(self.shell, error, None) from None

    # --- preload

    @no_var_expand
    @line_cell_magic
    @magic_arguments()
    @argument("pool", nargs="?", metavar="NAME", help="a pool, or the variable of its environment; default: the last")
    @argument(
        "--replace",
        choices=("rolling", "now"),
        default="rolling",
        help="what happens to replicas that run: renewed one by one while the old ones answer, or stopped first",
    )
    @argument("--timeout", type=parse_duration, metavar="T", help="how long a replica may take to load (10m)")
    def flyte_preload(self, line: str, cell: str | None = None) -> None:
        """Make the cell below the set-up of a pool: each replica runs it once, and task cells see its names.

        Example: %%flyte_preload gpu
        """
        options = parse(self.shell, self.flyte_preload, line)
        if not cell or not cell.strip():
            raise UsageError("%%flyte_preload: write below it what each replica runs when it starts")
        filename = self._known_as(f"%%flyte_preload {line}".rstrip() + f"\n{cell}")
        self._check_syntax(cell, filename, 2)
        with tidy(self.shell):
            pool = self.notebook.pools.find_declared(options.pool or "")
            if options.replace == "now":
                pool.stop()
            pool.preload(start_timeout=options.timeout)(make_loader(self.shell, cell, filename))
            if options.replace == "now":
                pool.warm(wait=False)
        forget_names()

    # --- settings and help

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("--pool", metavar="NAME", help="where a task cell runs that names no pool")
    @argument("--scope", type=parse_scope, metavar="SCOPE", help="fresh, session or replica")
    @argument("--timeout", type=parse_duration, metavar="T", help="how long a task cell may run; 0 is no limit")
    @argument("--progress-after", type=parse_duration, metavar="T", help="say what a cell waits for after that long")
    @argument("--output-limit", type=parse_size, metavar="SIZE", help="what a cell shows at most; 0 is no limit")
    @argument("--quiet", action="store_true", default=None, help="show nothing but what a local cell would")
    @argument("--no-quiet", dest="quiet", action="store_false", help="show where and how long a cell ran")
    @argument("--save", choices=("user", "project"), help="keep it for all notebooks, or for those of this folder")
    def flyte_config(self, line: str) -> None:
        """Show and set the defaults of this notebook's task cells, with where each comes from."""
        options = parse(self.shell, self.flyte_config, line)
        for name in self.settings.values:
            if getattr(options, name) is not None:
                self.settings.set(name, getattr(options, name))
        print(self.settings.table())
        if options.save:
            print(f"Saved in {self.settings.save(options.save).name} ({options.save}).")

    @no_var_expand
    @line_magic
    def flyte(self, line: str) -> None:
        """One screen about the magics."""
        print(HELP.format(version=_version.__version__, verbs=", ".join(VERBS[1:])), end="")


def _check(options: argparse.Namespace) -> None:
    """Raises UsageError for what makes no sense together."""
    where = [name for name in ("bg", "fresh", "local", "everywhere") if getattr(options, name)]
    where += ["replica"] * (options.replica is not None)
    where += ["session"] * (options.session is not None)
    where += ["retries"] * bool(options.retries or options.retry_on)
    for one, other in (
        ("local", "bg"), ("local", "fresh"), ("local", "everywhere"), ("local", "replica"), ("local", "session"),
        ("fresh", "everywhere"), ("fresh", "replica"), ("fresh", "session"),
        ("everywhere", "bg"), ("everywhere", "replica"), ("everywhere", "session"), ("replica", "session"),
        ("replica", "retries"), ("everywhere", "retries"),
    ):  # fmt: skip
        if one in where and other in where:
            raise UsageError(f"--{_written(one)} and --{_written(other)} do not go together")
    if options.handle and not options.bg:
        raise UsageError("--as names the job of a cell that runs in the background: add --bg")
    if options.handle and not options.handle.isidentifier():
        raise UsageError(f"--as {options.handle}: that is not a name")
    if options.session and options.scope not in (None, "session"):
        raise UsageError(f"--session keeps its names, and --scope {options.scope} does not")


def _written(option: str) -> str:
    return "all" if option == "everywhere" else option


def _is_expression(code: str) -> bool:
    try:
        compile(code, "", "eval", _PARSE, dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Seen(outputs.Screen):
    """Keeps results instead of showing them."""

    def __init__(self, seen: list[outputs.RemoteValue]) -> None:
        self._seen = seen

    def result(self, content: dict[str, Any]) -> None:
        self._seen.append(outputs.RemoteValue(content["data"], content["metadata"]))


def _described(cell: Cell, pool: RunningPool) -> str:
    """What would be sent, for people."""
    target = CellTarget(cell, pool)
    view = pool.status()
    state = "not started" if view is None else text.pool_state(view)
    count = len(cell.code.splitlines())
    where = f"session {cell.session or 'of this notebook'}" if cell.scope == "session" else f"scope {cell.scope}"
    lines = [f"to        {pool.name} ({state}), {where}", f"code      {count} line{'s' * (count > 1)}"]
    for name, (how, size) in target.parcels().items():
        lines.append(f"in        {name}: {how}, {text.size(size) if size >= 2**20 else f'{size} bytes'}")
    if cell.pull:
        lines.append(f"out       {', '.join(cell.pull)}")
    limits = [f"timeout {text.duration(cell.timeout)}"] if cell.timeout else []
    limits += [f"retries {cell.retries}"] if cell.retries else []
    lines += [f"limits    {', '.join(limits)}"] if limits else []
    if view is not None:
        free = sum(view.scaling.concurrency - len(each.calls) for each in view.replicas if each.state == "ready")
        lines.append(f"queue     {f'{view.waiting} before it' if view.waiting or not free else 'starts at once'}")
    return "\n".join(lines)


HELP: Final = """\
flyte_jupyter {version}: task cells on warm kernels; each magic has `?`, as in %flyte_pool?

  %flyte_pool create gpu --gpus 1 --replicas 1:3     {verbs}
  %%flyte_preload gpu                                what each replica runs once: load the model
  %%flyte_task gpu -i prompts -o answers             the cell below runs there; #| flyte_task: gpu is the same
  %flyte_task gpu -- model.config                    one expression
  %%flyte_task gpu --bg --as job                     in the background
  %flyte_wait, %flyte_result job, %flyte_cancel job
  %flyte_peek gpu[0] step, %flyte_attach gpu[0]      look into a busy kernel; open a warm one
  %flyte_status, %flyte_gpu, %flyte_logs gpu[0], %flyte_doctor, %flyte_config
"""
