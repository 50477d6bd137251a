"""CPython's own tests of `concurrent.futures`, of the interpreter that runs this, with a pool's executor."""

from __future__ import annotations

import importlib
import os
import pkgutil
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import standard_executor
from standard_executor import WORKERS, StandardExecutor, environment

import flyte_jupyter as flyte

pytestmark = pytest.mark.kernel

PACKAGE: Final = "test.test_concurrent_futures"

PROCESSES: Final = "looks at the executor's processes; a pool's replicas are children of the broker"
THREADS: Final = "looks at the executor's threads; a pool has none"
SHARED: Final = "shares an object of this process with threads; a replica is another process"
INHERITED: Final = "needs workers that are this process's children: they inherit semaphores, queues, a manager's key"
WORKER_LIVES: Final = "expects a worker to die of it; here the call fails with that very error, and the pool goes on"
EXITS: Final = "expects SystemExit, which would end the caller; here a call that exits is a RuntimeUserError"
CONSTRUCTOR: Final = "is about an argument that no pool has"

NOT_OURS: Final[dict[str, str]] = {
    "test_processes_terminate": PROCESSES,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": PROCESSES,
    "ProcessPoolShutdownTest.test_del_shutdown": PROCESSES,
    "ProcessPoolShutdownTest.test_shutdown_no_wait": PROCESSES,
    "test_killed_child": PROCESSES,
    "test_idle_process_reuse_one": PROCESSES,
    "test_idle_process_reuse_multiple": PROCESSES,
    "test_shutdown_deadlock_pickle": PROCESSES,
    "test_python_finalization_error": PROCESSES,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": PROCESSES,
    "test_traceback": "wants the text of the remote traceback as a cause; here the error has it as its own traceback",
    "test_threads_terminate": THREADS,
    "ThreadPoolShutdownTest.test_context_manager_shutdown": THREADS,
    "ThreadPoolShutdownTest.test_del_shutdown": THREADS,
    "ThreadPoolShutdownTest.test_shutdown_no_wait": THREADS,
    "test_thread_names_assigned": THREADS,
    "test_thread_names_default": THREADS,
    "test_idle_thread_reuse": THREADS,
    "test_cancel_futures_wait_false": THREADS,
    "test_hang_global_shutdown_lock": THREADS,
    "test_map_submits_without_iteration": SHARED,
    "test_executor_map_current_future_cancel": SHARED,
    "test_pending_calls_race": SHARED,
    "ThreadPoolExecutorTest.test_saturation": SHARED,
    "ProcessPoolExecutorTest.test_saturation": INHERITED,
    "test_ressources_gced_in_workers": INHERITED,
    "FailingInitializerMixin.test_initializer": INHERITED,
    "test_error_at_task_unpickle": WORKER_LIVES,
    "test_exit_at_task_unpickle": WORKER_LIVES,
    "test_error_during_result_unpickle_in_result_handler": WORKER_LIVES,
    "test_exit_during_result_unpickle_in_result_handler": EXITS,
    "test_exit_during_func_exec_on_worker": EXITS,
    "test_exit_during_result_pickle_on_worker": EXITS,
    "test_default_workers": CONSTRUCTOR,
    "test_max_tasks_per_child": CONSTRUCTOR,
    "test_max_tasks_per_child_defaults_to_spawn_context": CONSTRUCTOR,
    "test_max_tasks_early_shutdown": CONSTRUCTOR,
}
"""Tests, by their name or with their class, and why they are not run. All others have to pass."""

SCRIPT: Final = "import concurrent.futures, standard_executor as s; concurrent.futures.{0} = s.{0}\n".format


def modules() -> list[ModuleType]:
    """One up to 3.11, a package of several since; none where the interpreter was installed without its tests."""
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        return []
    names = [each.name for each in pkgutil.iter_modules(getattr(package, "__path__", ())) if each.name[:5] == "test_"]
    return [importlib.import_module(f"{PACKAGE}.{name}") for name in names] or [package]


def is_about_executors(cls: object) -> bool:
    """Of the three ways in which the standard library starts processes, one is enough here."""
    return (
        isinstance(cls, type)
        and issubclass(cls, unittest.TestCase)
        and hasattr(cls, "executor_type")
        and getattr(cls, "ctx", "spawn") == "spawn"
    )


def cases() -> list[Any]:
    """Each test once, though two classes may share it; those with threads first, whose scripts are simpler."""
    found: dict[Callable[..., None], Any] = {}
    classes = [cls for module in modules() for cls in vars(module).values() if is_about_executors(cls)]
    for cls in sorted(classes, key=lambda cls: hasattr(cls, "ctx")):
        for name in unittest.defaultTestLoader.getTestCaseNames(cls):
            function = getattr(cls, name)
            if function not in found:
                reason = NOT_OURS.get(function.__qualname__) or NOT_OURS.get(name)
                marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
                found[function] = pytest.param(cls, name, id=function.__qualname__, marks=marks)
    return [*found.values()]


@pytest.fixture(scope="module")
def _pools(shared_broker: Path) -> Iterator[None]:
    flyte.pool(environment(WORKERS)).warm()
    yield
    for workers in range(1, WORKERS + 1):
        flyte.pool(environment(workers)).stop(force=True)


@pytest.fixture
def _in_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts that those tests start know the class above, too."""
    from test.support import script_helper

    folders = [Path(flyte.__file__).parents[1], Path(standard_executor.__file__).parent, os.environ.get("PYTHONPATH")]

    def run(*args: str) -> object:
        code = SCRIPT(StandardExecutor.__name__) + args[-1]
        return script_helper.assert_python_ok(
            *args[:-1], code, PYTHONPATH=":".join(str(each) for each in folders if each)
        )

    for module in modules():
        if hasattr(module, "assert_python_ok"):
            monkeypatch.setattr(module, "assert_python_ok", run)


@pytest.mark.skipif(not modules(), reason=f"this interpreter was installed without {PACKAGE}")
@pytest.mark.usefixtures("_pools", "_in_scripts")
@pytest.mark.parametrize(("cls", "name"), cases())
def test_of_cpython(cls: type[unittest.TestCase], name: str) -> None:
    case = type(cls.__name__, (cls,), {"executor_type": StandardExecutor})(name)
    result = unittest.TestResult()
    case.run(result)
    for _, text in [*result.errors, *result.failures]:
        pytest.fail(text, pytrace=False)
    for _, reason in result.skipped:
        pytest.skip(reason)
