"""Arguments and results on their way between two processes; here both ends are this one."""

from __future__ import annotations

import enum
import sys
import threading
import types
import typing
from typing import Any

import numpy as np
import pytest

from flyte_jupyter.core import payload
from flyte_jupyter.core.definitions import ORIGIN, Mark
from flyte_jupyter.core.payload import OUT_OF_BAND_BYTES, plain_find


def arrive(pickled: payload.Pickled) -> Any:
    """What the other side makes of it; buffers come as the frames' own memory."""
    buffers: list[payload.Buffer] = [bytearray(buffer) for buffer in pickled.buffers]
    return payload.load(pickled.data, buffers)


# --- arguments and results


@pytest.mark.parametrize(
    ("array", "beside"),
    [
        (np.arange(OUT_OF_BAND_BYTES // 8, dtype=np.int64), 1),
        (np.asfortranarray(np.ones((300, 300))), 1),
        (np.arange(OUT_OF_BAND_BYTES // 8 - 1, dtype=np.int64), 0),
        (np.zeros((0, 3)), 0),
        (np.ones((400, 400))[::2, ::3], 0),  # not contiguous: numpy copies it into the pickle
        (np.array(3.5), 0),
    ],
)
def test_large_arrays_travel_beside_the_pickle(array: np.ndarray, beside: int) -> None:
    for pickled in (payload.dump_result({"a": array}), payload.dump_arguments(((array,), {}))):
        assert len(pickled.buffers) == beside
        loaded = arrive(pickled)
        (found,) = loaded[0] if isinstance(loaded, tuple) else loaded.values()
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


@pytest.mark.parametrize("size", [10, 100_000])
def test_an_array_that_arrived_can_be_written_to(size: int) -> None:
    found = arrive(payload.dump_result(np.zeros(size)))
    found += 1
    assert found.sum() == size


def test_more_buffers_than_a_frame_carries_stay_in_the_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "LIMIT_BUFFERS", 3)
    arrays = [np.full(OUT_OF_BAND_BYTES, n, np.uint8) for n in range(5)]
    pickled = payload.dump_result(arrays)
    assert len(pickled.buffers) == 2
    assert [int(found[0]) for found in arrive(pickled)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["Config", "Outer.Inner", "double", "model"])
def test_what_a_notebook_defined_goes_by_name(home: types.ModuleType, name: str) -> None:
    sent = plain_find("__main__", name)
    pickled = payload.dump_arguments(([sent], lambda: 1))
    assert pickled.names == {name.partition(".")[0]}
    [found], _ = arrive(pickled)
    assert found is sent


def test_an_inner_function_goes_by_the_name_that_the_notebook_gave_it(home: types.ModuleType) -> None:
    pickled = payload.dump_arguments(home.triple)
    assert pickled.names == {"triple"}
    assert arrive(pickled) is home.triple


def test_a_cached_function_goes_back_by_its_name(home: types.ModuleType) -> None:
    assert arrive(payload.dump_result([home.model, lambda: 1]))[0] is home.model


@pytest.mark.parametrize("dump", [payload.dump_arguments, payload.dump_result])
@pytest.mark.parametrize("made", [object(), typing.TypeVar("T"), typing.ParamSpec("P"), typing.NewType("Id", int)])
def test_what_code_compares_by_identity_goes_by_name(home: types.ModuleType, dump: Any, made: Any) -> None:
    if type(made) is not object:
        made.__module__ = "__main__"
    home._OWN = made  # type: ignore[attr-defined]
    pickled = dump([made, {"b": made}])
    assert pickled.names == {"_OWN"}
    assert arrive(pickled) == [made, {"b": made}]


@pytest.mark.parametrize("dump", [payload.dump_arguments, payload.dump_result])
def test_a_function_of_no_module_is_not_looked_for_in_the_main_module_of_multiprocessing(
    home: types.ModuleType, dump: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exec("def f(): return 1", made := {})  # type: ignore[var-annotated]
    home.f = made["f"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__mp_main__", home)  # as torch does
    pickled = dump(home.f)
    home.f = None  # type: ignore[attr-defined]
    assert arrive(pickled)() == 1


def test_a_bare_object_without_a_name_or_under_one_of_ipythons_is_copied(home: types.ModuleType) -> None:
    made = home._1 = home._ = object()  # type: ignore[attr-defined]
    for pickled in (payload.dump_arguments([made]), payload.dump_result([made])):
        assert pickled.names == frozenset()
        [found] = arrive(pickled)
        assert type(found) is object
        assert found is not made


@pytest.mark.parametrize("epoch", ["", "of a notebook"])
def test_a_bare_object_goes_back_by_name_only_if_the_caller_has_sent_it(home: types.ModuleType, epoch: str) -> None:
    class Origin:
        def received(self, name: str, obj: object) -> tuple[Mark, str] | None:
            return Mark("content", epoch), ""

    home.NOTHING = object()  # type: ignore[attr-defined]
    vars(home)[ORIGIN] = Origin()
    assert payload.dump_result(home.NOTHING).names == ({"NOTHING"} if epoch else frozenset())


def test_a_member_whose_value_is_a_function_goes_by_its_name(home: types.ModuleType) -> None:
    class Op(enum.Enum):
        ADD = enum.member(lambda a, b: a + b)

    Op.__module__, Op.__qualname__, home.Op = "__main__", "Op", Op  # type: ignore[attr-defined]
    for pickled in (payload.dump_arguments([Op.ADD]), payload.dump_result([Op.ADD])):
        assert arrive(pickled) == [Op.ADD]


def test_standard_streams_are_those_of_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __reduce__(self) -> Any:
            raise TypeError("it cannot be pickled")

    monkeypatch.setattr(sys, "stderr", Stream())
    pickled = [payload.dump_arguments([sys.stdout, sys.stderr]), payload.dump_result([sys.stdout, sys.stderr])]
    monkeypatch.setattr(sys, "stderr", Stream())
    assert [arrive(each) for each in pickled] == [[sys.stdout, sys.stderr]] * 2


def test_an_instance_of_a_notebooks_class_names_its_class(home: types.ModuleType) -> None:
    pickled = payload.dump_arguments(home.Config(0.5))
    assert pickled.names == {"Config"}
    found = arrive(pickled)
    assert type(found) is home.Config
    assert found.rate == 0.5


def test_a_class_that_lost_its_name_goes_by_value(home: types.ModuleType) -> None:
    old = home.Config
    home.Config = None  # the cell was run again with another meaning
    pickled = payload.dump_arguments(old(1))
    assert pickled.names == frozenset()
    assert arrive(pickled).rate == 1


@pytest.mark.parametrize("dump", [payload.dump_arguments, payload.dump_result])
def test_a_name_means_what_the_other_sides_main_calls_so(
    home: types.ModuleType, dump: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_plain_pickle, by_cloudpickle = dump(home.Config(1)), dump((home.Config(1), lambda: 1))
    there = types.ModuleType("__main__")
    there.Config = type("Config", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", there)
    assert type(arrive(by_plain_pickle)) is there.Config
    assert type(arrive(by_cloudpickle)[0]) is there.Config


def test_a_name_that_the_other_side_has_not_is_an_error_that_names_it(
    home: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = payload.dump_arguments(home.Config(1))
    monkeypatch.delattr(home, "Config")
    with pytest.raises(AttributeError, match="Config"):
        arrive(pickled)


def test_text_that_mentions_main_needs_no_names() -> None:
    pickled = payload.dump_arguments(["__main__", {"module": "__main__.Config"}])
    assert pickled.names == frozenset()
    assert arrive(pickled) == ["__main__", {"module": "__main__.Config"}]


def test_lambdas_and_local_classes_travel_by_value() -> None:
    class Local:
        pass

    offset = 3
    pickled = payload.dump_arguments(((lambda x: x + offset, Local()), {}))
    (function, local), _ = arrive(pickled)
    assert function(4) == 7
    assert type(local).__name__ == "Local"
    assert arrive(payload.dump_result(lambda: offset))() == 3


class Holder:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


LOCK = threading.Lock()
ITSELF: list[Any] = []
ITSELF.extend([ITSELF, {"lock": LOCK}])


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "result"),
        ({"a": [1, LOCK]}, "result['a'][1]"),
        (Holder(model=Holder(lock=LOCK)), "result.model.lock"),
        (([0], (LOCK,)), "result[1][0]"),
        (ITSELF, "result[1]['lock']"),
    ],
)
def test_the_part_that_cannot_be_pickled_is_found(value: object, path: str) -> None:
    assert payload.find_unpicklable(value, "result") == (path, LOCK)


def test_a_value_that_is_too_deep_is_given_up_on() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    path, _part = payload.find_unpicklable(deep, "result")
    assert path == "result" + "[0]" * payload.MAX_DEPTH


# --- tensors


def test_plain_tensors_travel_beside_the_pickle_and_can_be_written_to() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool, torch.complex64):
        tensor = torch.arange(OUT_OF_BAND_BYTES).reshape(2, -1).to(dtype)
        for pickled in (payload.dump_result(tensor), payload.dump_arguments(tensor)):
            assert [memoryview(buffer).nbytes for buffer in pickled.buffers] == [tensor.nbytes]
            found = arrive(pickled)
            assert type(found) is torch.Tensor
            assert found.dtype == dtype
            assert torch.equal(found, tensor)
            found.zero_()


def test_tensors_of_every_other_kind_arrive_too() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    leaf = torch.ones(3, requires_grad=True)
    marked = torch.ones(3)
    marked.note = "mine"
    for tensor in (base, base.t(), base[1], base[:, ::2], torch.tensor(3.5), torch.zeros(0, 3), leaf, leaf * 2, marked):
        found = arrive(payload.dump_result({"x": tensor}))["x"]
        assert torch.equal(found, tensor)
        assert found.requires_grad == tensor.requires_grad
        assert getattr(found, "note", None) == getattr(tensor, "note", None)
    sparse = arrive(payload.dump_result(base.to_sparse()))
    assert torch.equal(sparse.to_dense(), base)
    conjugate = torch.tensor([1 + 2j]).conj()
    assert torch.equal(arrive(payload.dump_result(conjugate)), conjugate)
    parameter = arrive(payload.dump_result(torch.nn.Parameter(torch.ones(OUT_OF_BAND_BYTES))))
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.requires_grad


def test_tensors_beside_what_only_cloudpickle_knows() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(OUT_OF_BAND_BYTES)
    both = (tensor, lambda x: x + 1)
    for pickled in (payload.dump_result(both), payload.dump_arguments(both)):
        assert len(pickled.buffers) == 1
        found, function = arrive(pickled)
        assert torch.equal(found, tensor)
        assert function(1) == 2


def test_one_tensor_sent_twice_is_one_tensor_there() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(OUT_OF_BAND_BYTES)
    one, other = arrive(payload.dump_result([tensor, tensor]))
    assert one is other


# --- tables


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_the_columns_of_a_table_travel_beside_the_pickle(library: str) -> None:
    module: Any = pytest.importorskip(library)
    columns = {"a": np.arange(OUT_OF_BAND_BYTES), "b": np.arange(OUT_OF_BAND_BYTES, dtype=np.float64)}
    table = module.DataFrame(columns) if library == "pandas" else module.table(columns)
    pickled = payload.dump_result(table)
    assert sum(memoryview(buffer).nbytes for buffer in pickled.buffers) >= 16 * OUT_OF_BAND_BYTES
    assert len(pickled.data) < OUT_OF_BAND_BYTES
    assert arrive(pickled).equals(table)
