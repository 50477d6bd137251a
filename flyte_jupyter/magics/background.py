"""The magics about cells that run in the background: wait for them, fetch what they bring back, stop them."""

from __future__ import annotations

import sys
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from ..client.cells.sessions import end_session
from .jobs import Job
from .notebook import Notebook
from .options import argument, magic_arguments, parse, parse_duration
from .present import tidy


@magics_class
class JobMagics(Magics):
    """The handles of background cells, and of sessions."""

    shell: Any

    def __init__(self, notebook: Notebook) -> None:
        super().__init__(notebook.shell)
        self.notebook = notebook

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("tasks", nargs="*", metavar="TASK", help="numbers of cells, or variables of jobs")
    @argument("--mine", action="store_true", help="all background cells of this notebook")
    @argument("--queued", action="store_true", help="those of them that wait for a replica")
    @argument("--session", metavar="NAME", help="end this session: its replica is free for others")
    @argument("--pool", metavar="NAME", help="with --session: of which pool; default: the last")
    def flyte_cancel(self, line: str) -> None:
        """Stop background cells."""
        options = parse(self.shell, self.flyte_cancel, line)
        if options.session is not None:
            with tidy(self.shell):
                pool = self.notebook.pools.find(options.pool or "")
                replica, other = end_session(pool, options.session)
            if not replica:
                print(f"No session {options.session!r} holds a replica.")
            else:
                print(f"{replica} is {f'still held by the session {other}' if other else 'free again'}.")
            return
        jobs = self.notebook.jobs() if options.mine or options.queued else []
        if options.queued:
            jobs = [job for job in jobs if job.state() == "waiting"]
        jobs += self._jobs(options.tasks)
        if not (options.tasks or options.mine or options.queued):
            raise UsageError("%flyte_cancel TASK, --mine or --queued")
        for job in jobs:
            print(f"{job.name} {'is stopped' if job.cancel() else 'was over already'}.")
        if not jobs:
            print("Nothing to stop.")

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("tasks", nargs="*", metavar="TASK", help="numbers of cells, or variables of jobs; default: all that run")
    @argument("--timeout", type=parse_duration, metavar="T", help="wait no longer than that")
    def flyte_wait(self, line: str) -> None:
        """Wait for background cells; what they bring back is assigned here, and the first error is raised."""
        options = parse(self.shell, self.flyte_wait, line)
        for job in self._jobs(options.tasks) if options.tasks else self.notebook.jobs():
            try:
                job.result(options.timeout)
            except TimeoutError as problem:
                print(problem)

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("task", metavar="TASK", help="the number of a cell, or the variable of a job")
    @argument("-o", "--out", metavar="NAME", help="assign it to this variable")
    @argument("--output", action="store_true", help="print what it wrote instead, also what was too much to show")
    @argument("--timeout", type=parse_duration, metavar="T", help="wait no longer than that")
    def flyte_result(self, line: str) -> Any:
        """Wait for a background cell and return what it brings back."""
        options = parse(self.shell, self.flyte_result, line)
        ran = self.notebook.find(options.task)
        if options.output:
            if ran.job is not None:
                sys.stdout.write(ran.job.output())
            elif ran.guard.spool is None:
                print(f"{ran.name} has shown all that it wrote.")
            for piece in () if ran.guard.spool is None else ran.guard.spool.read():
                sys.stdout.write(piece)
            return None
        if ran.job is None:
            raise UsageError(f"{ran.name} did not run in the background: what it brought back is in your variables")
        value = ran.job.result(options.timeout)
        if options.out:
            self.shell.user_ns[options.out] = value
            return None
        return value

    def _jobs(self, tasks: list[str]) -> list[Job]:
        jobs = []
        for task in tasks:
            job = self.notebook.find(task).job
            if job is None:
                raise UsageError(f"{task} did not run in the background, so it is over")
            jobs.append(job)
        return jobs
