"""What is put back, what is not, and when: without a kernel."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from flyte_jupyter.kernel.surroundings import Surroundings, put, take


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = take()
    yield
    put(before)


@pytest.fixture
def noted() -> Surroundings:
    surroundings = Surroundings()
    surroundings.note()
    return surroundings


def test_what_was_set_before_the_beginning_stays() -> None:
    sys.setrecursionlimit(2345)
    surroundings = Surroundings()
    surroundings.note()
    sys.setrecursionlimit(3456)
    surroundings.put_back()
    assert sys.getrecursionlimit() == 2345


def test_filters_that_are_put_back_take_effect(noted: Surroundings) -> None:
    warnings.simplefilter("ignore")
    warnings.warn("unheard", stacklevel=1)
    noted.put_back()
    with pytest.raises(UserWarning, match="heard"):  # as in all tests here
        warnings.warn("heard", stacklevel=1)


def test_what_is_set_by_hand_meanwhile_stays(noted: Surroundings) -> None:
    with noted.by_hand():
        sys.setrecursionlimit(2345)
        noted.put_back()
        sys.setrecursionlimit(3456)
    noted.put_back()
    assert sys.getrecursionlimit() == 3456
    assert not noted.known


def test_what_is_set_beside_is_put_back_to_what_was_there_beside(noted: Surroundings) -> None:
    plain = sys.stdout
    redirected = sys.stdout = io.StringIO()  # by an async task that waits
    begun = noted.begin_beside()
    sys.stdout = io.StringIO()
    noted.end_beside(begun)
    assert sys.stdout is redirected
    noted.put_back()
    assert sys.stdout is plain


class OldNumPy(ModuleType):
    """NumPy before 2.0: its error handling is the thread's, and the list that it hands out is its own."""

    errors = [8192, 521, None]

    def geterrobj(self) -> list[Any]:
        return self.errors

    def seterrobj(self, errors: list[Any]) -> None:
        self.errors = errors

    def seterr(self, mask: int) -> None:
        errors = self.geterrobj()
        errors[1] = mask
        self.seterrobj(errors)


def test_the_error_handling_of_an_old_numpy_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = OldNumPy("numpy")
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    numpy.seterr(1170)
    surroundings = Surroundings()
    surroundings.note()
    for mask in (0, 521):
        numpy.seterr(mask)
        surroundings.put_back()
        assert numpy.geterrobj() == [8192, 1170, None]
    del sys.modules["numpy"]  # before the fixture looks for it
