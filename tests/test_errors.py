"""Every error survives pickling and copying, has Flyte's constructor, or tells what, why and what to do."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from flyte_jupyter import errors

FLYTE = [
    errors.BaseRuntimeError("C", "user", "m", "w"),
    errors.RuntimeUserError("C", "m", "w"),
    errors.RuntimeSystemError("C", "m"),
    errors.RuntimeUnknownError("C", "m"),
    errors.InitializationError("C", "user", "m"),
    errors.OOMError("OOMKilled", "m"),
    errors.TaskInterruptedError("C", "m"),
    errors.PrimaryContainerNotFoundError("C", "m"),
    errors.RetriesExhaustedError("C", "m"),
    errors.InvalidImageNameError("C", "m"),
    errors.ImagePullBackOffError("C", "m"),
    errors.NotInTaskContextError("C", "m"),
    errors.NonRecoverableError("m"),
    errors.CustomError("mine", "m"),
    errors.CustomError.from_exception(KeyError("k")),
    errors.TaskTimeoutError("m"),
    errors.MaxRuntimeExceededError("m"),
    errors.MaxQueuedTimeExceededError("m"),
    errors.DeadlineExceededError("m"),
    errors.ActionAbortedError("m"),
    errors.SyncTaskCallInAsyncContextError("m"),
    errors.RuntimeDataValidationError("v", ValueError("x"), "t"),
    errors.InlineIOMaxBytesBreached("m"),
    errors.TraceDoesNotAllowNestedTasksError("m"),
    errors.GPUFaultError("C", "system", "m", fault_kind="xid", fault_code=79),
    errors.GPUFaultSystemError("C", "m", fault_kind="sxid", fault_code=3),
    errors.GPUFaultUserError("C", "m", gpu_index=0),
]

# Each with the whole text: what, then the notes: why, what to do.
OURS = [
    (
        errors.BrokerGone(cause="exit 137: out of memory", replicas=(0, 1)),
        [
            "FJ101 The broker is not running.",
            "It stopped (exit 137: out of memory). Your replicas 0 and 1 are still alive.",
            "Call the task again: that starts it; they will be adopted, nothing has to be loaded again."
            " `flyte-jupyter doctor` checks the rest.",
        ],
    ),
    (
        errors.BrokerSilent(4711, 10),
        [
            "FJ107 The broker (pid 4711) does not answer.",
            "It runs, but it has been silent for 10 s. Either it was paused (by Ctrl-Z or a debugger),"
            " or this machine is out of memory or much too busy.",
            "Try again: calls that already run go on meanwhile. If that does not help, run `flyte-jupyter stop`,"
            " which ends the broker and its replicas; the next call starts another.",
        ],
    ),
    (
        errors.NoSuchPool("gpu2", {"gpu": "2 ready", "embed": "napping"}),
        [
            'FJ102 There is no pool named "gpu2".',
            "Existing pools: gpu (2 ready), embed (napping).",
            "Did you mean `gpu`? Create one with `env = flyte_jupyter.TaskEnvironment('gpu2',"
            " resources=flyte_jupyter.Resources(gpu=1), reusable=flyte_jupyter.ReusePolicy(1))` and"
            " `flyte_jupyter.pool(env).warm()`.",
        ],
    ),
    (
        errors.NoSuchReplica("gpu[1]", {"gpu": "1 ready"}),
        [
            "FJ106 There is no replica gpu[1].",
            "Existing pools: gpu (1 ready).",
            "Call one of its tasks, or run `flyte-jupyter warm gpu`, then try again.",
        ],
    ),
    (
        errors.NoSuchReplica("gpu[3]", existing=(0, 1)),
        [
            'FJ106 The pool "gpu" has no replica 3 (existing: 0, 1).',
            "`flyte-jupyter status gpu` shows them.",
        ],
    ),
    (
        errors.NoSuchReplica("gpu[3]", {"gpu": "stopped"}, existing=()),
        [
            'FJ106 The pool "gpu" has no replica 3 (existing: none).',
            "Existing pools: gpu (stopped).",
            "Call one of its tasks, or run `flyte-jupyter warm gpu`, then try again.",
        ],
    ),
    (
        errors.ReplicaSilent("gpu[0]", 2),
        [
            "FJ505 gpu[0] does not answer within 2 s.",
            "Something in it holds Python's global lock, as C code can that runs for long.",
            "Try again, or look from outside: `py-spy dump --pid` with its process number from `flyte-jupyter status`.",
        ],
    ),
    (
        errors.VersionMismatch("1.2", "1.0", "server"),
        [
            "FJ103 This notebook and the Jupyter server use different flyte_jupyter versions (kernel 1.2, server 1.0).",
            "They live in two environments, so the side panel cannot show this pool.",
            "Calls work. To fix the panel, install 1.2 in the environment that runs Jupyter, then reload the page.",
        ],
    ),
    (
        errors.NoUsableGPU("the NVIDIA driver did not answer (library not found)"),
        [
            "FJ202 No GPU can be used by this pool.",
            "1 GPU was requested, but the NVIDIA driver did not answer (library not found).",
            "Check that the driver tool lists a GPU in a terminal. `flyte-jupyter doctor` shows what was found."
            " To continue on the CPU, leave `gpu` out of the environment's resources.",
        ],
    ),
    (
        errors.PoolFailed("gpu", 'ImportError: no module named "transformers"', 2, "Traceback ...", serving=(0, 1)),
        [
            "FJ301 Preload failed on replica 2, so it will not be used.",
            "ImportError: no module named \"transformers\", in the pool's Python (not in the notebook's).",
            "Install it there: `python -m pip install transformers`, then start the pool again:"
            " `flyte-jupyter warm gpu`. Replicas 0 and 1 still serve.",
            "Traceback ...",
        ],
    ),
    (
        errors.NameNotOnReplica("tokenizer", "gpu[1]", ("model", "pipe"), 12_000_000),
        [
            'FJ401 The name "tokenizer" is not defined on replica gpu[1].',
            "It exists in your notebook; task cells run elsewhere and see only the preload names: model, pipe.",
            "Pass it to the task as an argument (12 MB), or create it in a function under"
            " `@flyte_jupyter.pool(env).preload`, where env is 'gpu'.",
        ],
    ),
    (
        errors.ArgumentNotSerializable("conn", "sqlite3.Connection", 3),
        [
            'FJ402 "conn" cannot be sent to the pool.',
            "sqlite3.Connection objects cannot be copied to another process (line 3 uses it).",
            "Open the connection inside the task, or put it into the preload code.",
        ],
    ),
    (
        errors.ResultNotSerializable("__main__.Batch", "out"),
        [
            'FJ403 The result "out" cannot be brought back.',
            "Its class `Batch` was defined in the task cell and does not exist in this notebook.",
            "Return plain data, or define `Batch` in a module or in a notebook cell that the task uses.",
        ],
    ),
    (
        errors.ReplicaDied("gpu.infer", "gpu[0]", signal=9, hint="likely the OOM killer"),
        [
            "FJ502 Replica gpu[0] died while running gpu.infer (signal 9, likely the OOM killer).",
            "Output up to that moment is above. A replacement is loading. The task was not"
            " repeated, because it may have had side effects.",
            "Run it again when ready, or add `retries=1` to the task.",
        ],
    ),
    (
        errors.StarvationError("parent", "child", "gpu"),
        [
            'FJ601 This would wait for ever: task "parent" holds the only replica of "gpu" and waits for'
            ' "child", which needs the same pool.',
            "replicas max 1 \N{MULTIPLICATION SIGN} concurrency 1.",
            "Run `flyte-jupyter scale gpu 1:2`, or make the parent use no replica:"
            ' `parent.override(reusable="off")`. Nothing was started.',
        ],
    ),
    (
        errors.StarvationError("attached console, shared", "gpu.embed", "gpu", cell="shared"),
        [
            'FJ601 This would wait for ever: a cell in a replica of "gpu" waits for "gpu.embed",'
            " and keeps that replica from serving it.",
            "replicas max 1 \N{MULTIPLICATION SIGN} concurrency 1.",
            "Run `flyte-jupyter scale gpu 1:2`, or await the call: `await embed.aio(...)`. Nothing was started.",
        ],
    ),
    (
        errors.StarvationError("attached console", "gpu.embed", "gpu", max_replicas=4, possible=1, cell="alone"),
        [
            'FJ601 This would wait for ever: a cell in a replica of "gpu" waits for "gpu.embed",'
            " and keeps that replica from serving it.",
            "replicas max 4 (this machine has room for 1) \N{MULTIPLICATION SIGN} concurrency 1.",
            "Await it in a kernel that shares its replica: `flyte-jupyter attach gpu --shared`. Nothing was started.",
        ],
    ),
    (
        errors.StarvationError("cold.rec", "cold.rec", "cold", max_replicas=64, memory=True),
        [
            'FJ601 This would wait for ever: task "cold.rec" waits for "cold.rec", and no memory is left for another'
            ' fresh kernel of "cold".',
            "Each of its calls has a kernel of its own, which is there until the calls that it waits for have ended.",
            'Free some memory, or let its calls share kernels: `TaskEnvironment("cold", reusable=...)`.'
            " Nothing was started.",
        ],
    ),
]

OTHERS = [
    errors.BrokerGone(),
    errors.BrokerUnavailable("it ended with exit code 1", "/run/broker.log", "boom"),
    errors.BrokerUnavailable("the path is too long", do="Set X."),
    errors.ProtocolError("closed"),
    errors.NoSuchPool("gpu"),
    errors.VersionMismatch("1.2", "1.0"),
    errors.NoRoom.gpus("gpu", 4, 2),
    errors.NoUsableGPU("pools use NVIDIA GPUs only", device="TPU V5E"),
    errors.PoolFailed("gpu", "RuntimeError: no weights"),
    errors.PoolStopped("gpu", "train.ipynb"),
    errors.NameNotOnReplica("x", "gpu[0]", in_notebook=False),
    errors.ArgumentNotSerializable.for_value(path="config['db']", type_name="lock", problem="TypeError: no"),
    errors.ResultNotSerializable.for_value(path="result.lock", type_name="lock", problem="TypeError: no"),
    errors.ReplicaDied("t", "gpu[0]", exit_code=3, attempt=1, log_tail="last words"),
    errors.TaskCancelled("gpu.infer", forced=True, replica="gpu[0]"),
    errors.TaskCancelled("gpu.infer"),
    errors.TaskCancelled("gpu.infer", queued=True),
    errors.StarvationError("a", "b", "gpu", max_replicas=4, concurrency=1, possible=1),
]
EVERY = [*FLYTE, *(error for error, _ in OURS), *OTHERS]


def facts(error: BaseException) -> tuple[object, ...]:
    return type(error), str(error), error.args, dict(error.__dict__)


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling_and_copying(error: BaseException) -> None:
    error = copy.copy(error)
    error.add_note("seen in cell 3")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert facts(pickle.loads(pickle.dumps(error, protocol))) == facts(error)
    assert facts(copy.copy(error)) == facts(error)
    assert facts(copy.deepcopy(error)) == facts(error)


def test_a_copy_does_not_get_the_notes_of_the_original() -> None:
    error = errors.PoolStopped("gpu")
    twin = copy.copy(error)
    error.add_note("later")
    assert twin.__notes__ == error.__notes__[:-1]


@pytest.mark.parametrize(("error", "texts"), OURS, ids=lambda value: type(value).__name__)
def test_ours_say_what_happened_why_and_what_to_do(error: errors.PoolError, texts: list[str]) -> None:
    assert [str(error), *error.__notes__] == texts


def test_every_class_is_listed_and_tried() -> None:
    classes = {each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, BaseException)}
    assert {each.__name__ for each in classes} <= set(errors.__all__)
    assert classes - {errors.PoolError} == {type(error) for error in EVERY}
    codes = [each.fj_code for each in classes if issubclass(each, errors.PoolError)]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("error", "caught_as"),
    [
        (errors.BrokerGone(), errors.RuntimeSystemError),
        (errors.ReplicaDied("t", "gpu[0]"), errors.RuntimeSystemError),
        (errors.NameNotOnReplica("x", "gpu[0]"), NameError),
        (errors.ArgumentNotSerializable("x", "T"), TypeError),
        (errors.ArgumentNotSerializable("x", "T"), pickle.PicklingError),
        (errors.ResultNotSerializable("T"), TypeError),
        (errors.ResultNotSerializable("T"), pickle.PicklingError),
        (errors.TaskCancelled("t"), errors.ActionAbortedError),
        (errors.MaxRuntimeExceededError("m"), errors.TaskTimeoutError),
        (errors.TaskTimeoutError("m"), errors.RuntimeUserError),
        (errors.OOMError("c", "m"), errors.RuntimeUserError),
        (errors.NonRecoverableError("m"), errors.RuntimeUserError),
        (errors.TaskInterruptedError("c", "m"), errors.RuntimeUserError),
    ],
)
def test_an_error_is_caught_as(error: BaseException, caught_as: type[BaseException]) -> None:
    assert isinstance(error, caught_as)
    assert isinstance(error, errors.BaseRuntimeError)


def test_a_replica_that_died_is_known_by_its_code() -> None:
    error = errors.ReplicaDied("t", "gpu[0]", signal=11, attempt=2, log_tail="x")
    assert (error.code, error.kind, error.worker) == ("ReplicaDied", "system", "gpu[0]")
    assert (error.task, error.replica, error.signal, error.exit_code) == ("t", "gpu[0]", 11, None)
    assert (error.attempt, error.log_tail) == (2, "x")


def test_adding_up_results_raises_the_error_among_them() -> None:
    with pytest.raises(errors.OOMError):
        sum([1, errors.OOMError("OOMKilled", "m")])  # type: ignore[list-item]


def test_an_error_is_rebuilt_from_its_fields_whatever_its_constructor() -> None:
    error = errors.MaxRuntimeExceededError.from_fields("C", "user", "too long", "user")
    assert (type(error), str(error), error.code) == (errors.MaxRuntimeExceededError, "too long", "C")


def test_flyte_has_the_same_classes() -> None:
    theirs = pytest.importorskip("flyte.errors")
    for error in FLYTE:
        name = type(error).__name__
        twin = getattr(theirs, name)
        assert inspect.signature(type(error).__init__).parameters.keys() == (
            inspect.signature(twin.__init__).parameters.keys()
        ), name
        assert [base.__name__ for base in type(error).__bases__] == [base.__name__ for base in twin.__bases__]


def test_a_failed_preload_names_its_replica_once() -> None:
    for replica in (0, "gpu[0]"):
        error = errors.PoolFailed("gpu", "RuntimeError: no weights", replica)
        assert error.worker == "gpu[0]"
        assert error.__notes__[1].endswith("Its log: `flyte-jupyter logs gpu[0]`.")


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_advice_names_only_what_exists(error: BaseException) -> None:
    said = "\n".join((str(error), *getattr(error, "__notes__", ())))
    assert not any(word in said for word in ("%flyte", "--vram", "--cpu", "`-i "))
