"""Processes that a task starts: joblib's, multiprocessing's and a DataLoader's workers run the notebook's code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seen import cell, clean, opened, value
from test_notebook import Notebook

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    yield from opened(tmp_path_factory.mktemp("nb"))


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    cell(kernel, HELPERS)
    yield kernel
    clean(kernel)


HELPERS = """
SCALE = 2
class Item:
    def __init__(self, n): self.n = n
    def twice(self): return Item(self.n * SCALE)
    def __eq__(self, other): return type(other) is Item and other.n == self.n
class Bad(Exception): pass
Pt = collections.namedtuple("Pt", "x")
class Color(enum.Enum):
    RED = 1
def scaled(x): return x * SCALE
def helper(x): return scaled(x)
def of_item(item): return item.twice(), isinstance(item, Item)
def of_point(point): return Pt(point.x + 1), isinstance(point, Pt)
def of_color(color): return color is Color.RED
def fails(x): raise Bad(x)
def gives(x): return Item, helper, Color.RED
@functools.lru_cache
def cached(x): return helper(x)
def call(function): return function(10)
class Numbers:
    def __len__(self): return 4
    def __getitem__(self, n): return helper(n)
def together(batch): return sum(batch)
model, count = None, 0
def load(n):
    global model, fresh
    model, fresh = Item(n), n
def use(x): return model.n + x, fresh
def bump(x):
    global count
    count += 1
    return count
made = []
for n in range(3):
    def g(x, n=n): return x * n
    made.append(g)
def workers(how, **options): return multiprocessing.get_context(how).Pool(1, **options)
"""
JOBS = [
    "[helper], range(4), [0, 2, 4, 6]",
    "[lambda x: helper(x)], range(3), [0, 2, 4]",
    "[cached], range(3), [0, 2, 4]",
    "[of_item], [Item(0), Item(1)], [(Item(0), True), (Item(2), True)]",
    "[Item(1).twice, Item(2).twice], [], [Item(2), Item(4)]",
    "[of_point], [Pt(0), Pt(1)], [(Pt(1), True), (Pt(2), True)]",
]
"""Functions, what each is called with one by one, and what comes back."""
WORK = [
    "pool.map(helper, range(3)) == [0, 2, 4]",
    "pool.apply(cached, (4,)) == 8",
    "pool.map(of_item, [Item(1)]) == [(Item(2), True)]",
    "pool.map(of_point, [Pt(1)]) == [(Pt(2), True)]",
    "pool.map(of_color, [Color.RED]) == [True]",
    "pool.map(call, [lambda x: x * 1, lambda x: x * SCALE]) == [10, 20]",
    "pool.map(call, made) == [0, 10, 20]",
    "[(c is Item, f(2), r is Color.RED) for c, f, r in pool.map(gives, [1])] == [(True, 4, True)]",
]
CONTEXTS = ["fork", "spawn", "forkserver"]


def assert_task_gives(notebook: Notebook, text: str, expected: Any) -> None:
    """Also when it is called once more, by an async task."""
    cell(notebook, f"def look():\n    {text}\n@many.task\nasync def async_look(): return look()")
    for call in ("env.task(look)()", "await async_look()"):
        assert value(notebook, call) == expected, call


def test_joblib(notebook: Notebook) -> None:
    pytest.importorskip("joblib")
    cell(
        notebook,
        "import joblib\ndef jobs(functions, inputs, expected):\n"
        "    calls = [joblib.delayed(f)(x) for f in functions for x in inputs] or map(joblib.delayed, functions)\n"
        "    calls = calls if inputs else [each() for each in calls]\n"
        "    return joblib.Parallel(n_jobs=2)(calls) == expected",
    )
    assert_task_gives(notebook, f"return [{', '.join(f'jobs({job})' for job in JOBS)}]", [True] * len(JOBS))


def test_an_error_of_a_joblib_worker_is_of_the_notebooks_class(notebook: Notebook) -> None:
    pytest.importorskip("joblib")
    cell(
        notebook,
        "import joblib\ndef look(): return joblib.Parallel(n_jobs=2)(joblib.delayed(fails)(n) for n in (1, 2))",
    )
    assert notebook.run("env.task(look)()").error == "Bad"


@pytest.mark.parametrize("how", CONTEXTS)
def test_workers_of_multiprocessing(notebook: Notebook, how: str) -> None:
    text = f"with workers({how!r}) as pool: return [{', '.join(WORK)}]"
    assert_task_gives(notebook, text, [True] * len(WORK))


@pytest.mark.parametrize("how", CONTEXTS)
def test_what_an_initializer_has_set_is_there(notebook: Notebook, how: str) -> None:
    text = f"with workers({how!r}, initializer=load, initargs=(7,)) as pool: return pool.map(use, [1, 2], chunksize=1)"
    assert_task_gives(notebook, text, [(8, 7), (9, 7)])


@pytest.mark.parametrize("how", CONTEXTS)
def test_a_worker_counts_for_itself(notebook: Notebook, how: str) -> None:
    text = f"with workers({how!r}) as pool: return pool.map(bump, range(3), chunksize=1), pool.map(bump, [1]), count"
    assert_task_gives(notebook, text, ([1, 2, 3], [4], 0))


@pytest.mark.parametrize("how", CONTEXTS)
def test_a_worker_sees_what_the_task_has_set_before(notebook: Notebook, how: str) -> None:
    text = f"global SCALE\n    SCALE = 5\n    with workers({how!r}) as pool: return pool.map(helper, [1])"
    assert_task_gives(notebook, text, [5])


@pytest.mark.parametrize("how", CONTEXTS)
def test_workers_of_an_executor(notebook: Notebook, how: str) -> None:
    cell(
        notebook,
        "def look():\n"
        f"    with ProcessPoolExecutor(1, multiprocessing.get_context({how!r}), load, (7,)) as workers:\n"
        "        error = workers.submit(fails, 3).exception()\n"
        "        return list(workers.map(use, [1])), type(error) is Bad, workers.submit(call, helper).result()",
    )
    assert value(notebook, "env.task(look)()") == ([(8, 7)], True, 20)


@pytest.mark.parametrize("how", CONTEXTS)
def test_a_process_and_its_queue(notebook: Notebook, how: str) -> None:
    cell(
        notebook,
        "def work(queue, item): queue.put((item.twice(), helper(5)))\n"
        "def look():\n"
        f"    context = multiprocessing.get_context({how!r})\n"
        "    queue = context.Queue()\n"
        "    process = context.Process(target=work, args=(queue, Item(1)))\n"
        "    process.start()\n"
        "    item, number = queue.get()\n"
        "    process.join()\n"
        "    return item == Item(2), number, process.exitcode",
    )
    assert value(notebook, "env.task(look)()") == (True, 10, 0)


def test_a_worker_that_was_forked_leaves_the_tasks_connection_alone(notebook: Notebook) -> None:
    cell(
        notebook,
        "class Unmentioned: n = 3\ndata = pickle.dumps(Unmentioned())\n"
        "def loads(data):\n    try: return pickle.loads(data).n\n    except AttributeError: return 'not here'\n"
        "def look(data):\n    with workers('fork') as pool: return pool.map(loads, [data]), loads(data)",
    )
    assert value(notebook, "env.task(look)(data), env.task(lambda: 1)()") == ((["not here"], 3), 1)


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_a_data_loader(notebook: Notebook, how: str) -> None:
    pytest.importorskip("torch")
    cell(
        notebook,
        "import torch.utils.data\n"
        "def look(): return list(torch.utils.data.DataLoader(Numbers(), batch_size=2, num_workers=1, "
        f"collate_fn=together, multiprocessing_context={how!r}))",
    )
    assert value(notebook, "env.task(look)()") == [2, 10]
