"""The runtime folder is ours alone, or refused with a sentence that names it and says what to do."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flyte_jupyter import runtime
from flyte_jupyter.errors import BrokerUnavailable


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path, at which the runtime folder is to be; nothing is there yet."""
    with TemporaryDirectory(dir="/tmp", prefix="fj") as name:
        folder = Path(name) / "run"
        monkeypatch.setenv(runtime.VARIABLE, str(folder))
        yield folder


def refusal() -> str:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        runtime.private_folder()
    assert time.monotonic() - began < 2
    return "\n".join([str(caught.value), *caught.value.__notes__])


def test_it_is_made_private_whatever_the_umask(place: Path) -> None:
    old = os.umask(0)
    try:
        assert runtime.private_folder() == place
    finally:
        os.umask(old)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert runtime.private_folder() == place


def test_without_the_variable_it_is_the_platforms_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.VARIABLE, raising=False)
    assert runtime.runtime_folder().is_absolute()
    assert "flyte_jupyter" in str(runtime.runtime_folder())


def test_a_stated_path_may_be_relative_or_begin_with_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.VARIABLE, "~/fj")
    assert runtime.runtime_folder() == Path.home() / "fj"
    monkeypatch.setenv(runtime.VARIABLE, "fj")
    assert runtime.runtime_folder() == Path.cwd() / "fj"


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o770, 0o777, 0o1777])
def test_a_folder_that_is_open_to_others_is_refused(place: Path, mode: int) -> None:
    place.mkdir()
    place.chmod(mode)
    text = refusal()
    assert f"{place} is open to others (mode {mode:04o}, must be 0700)" in text
    assert runtime.VARIABLE in text


def test_a_symbolic_link_is_refused_even_to_a_private_folder(place: Path) -> None:
    real = place.with_name("real")
    real.mkdir(mode=0o700)
    place.symlink_to(real)
    assert f"{place} is a symbolic link" in refusal()


def test_a_folder_below_one_that_others_may_write_to_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(mode=0o700)
    inner = place / "a" / "b"
    inner.mkdir(parents=True, mode=0o700)
    (place / "a").chmod(0o777)
    monkeypatch.setenv(runtime.VARIABLE, str(inner))
    assert f"others may write to {place / 'a'} above it (mode 0777, not sticky)" in refusal()
    (place / "a").chmod(0o1777)
    assert runtime.private_folder() == inner


def test_a_folder_of_another_user_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)
    assert f"{place} belongs to user" in refusal()


def test_a_file_in_its_place_is_refused(place: Path) -> None:
    place.touch()
    assert f"the runtime folder cannot be used: {place}" in refusal()


def test_a_place_that_cannot_be_made_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.VARIABLE, "/proc/fj")
    assert "the runtime folder cannot be used: /proc/fj" in refusal()


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(
    place: Path, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    long = place / (letter * (80 // len(letter.encode())))
    monkeypatch.setenv(runtime.VARIABLE, str(long))
    text = refusal()
    assert "too long for Unix sockets" in text
    assert str(long) in text
    assert not place.exists()


def test_the_longest_path_that_is_allowed_takes_a_replicas_socket(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = runtime.MAX_SOCKET_PATH - runtime.LONGEST_NAME - len(os.fsencode(place)) - 1
    monkeypatch.setenv(runtime.VARIABLE, str(place / ("x" * room)))
    folder = runtime.private_folder()
    path = Path(f"{folder}{'/fj012345/01234567-99999/task.sock'}")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def test_everything_lies_below_the_folder(place: Path) -> None:
    for path in (runtime.broker_socket, runtime.broker_lock, runtime.broker_log, runtime.log_folder):
        assert path(place).is_relative_to(place)
