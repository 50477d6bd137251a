"""Where an interrupt may be raised."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from flyte_jupyter.kernel.interrupts import may_raise_in, waits, whole


def here() -> FrameType:
    return sys._getframe(1)


def users() -> FrameType:
    return here()


@whole
def sends(inner: Callable[[], FrameType]) -> FrameType:
    return inner()


@waits
def waits_for_the_client(inner: Callable[[], FrameType]) -> FrameType:
    return inner()


def test_an_interrupt_is_raised_in_a_users_code() -> None:
    assert may_raise_in(users())
    assert may_raise_in(None)


def test_no_interrupt_is_raised_in_code_that_sends_nor_in_what_that_calls() -> None:
    assert not may_raise_in(sends(here))
    assert not may_raise_in(sends(users))


def test_an_interrupt_is_raised_where_code_that_sends_waits() -> None:
    assert may_raise_in(sends(lambda: waits_for_the_client(users)))
    assert not may_raise_in(waits_for_the_client(lambda: sends(users)))
