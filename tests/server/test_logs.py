"""Pieces of a log: whole lines, whole characters, never too much, never another file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flyte_jupyter import runtime
from flyte_jupyter.logs import MOST_BYTES, Piece, read_log


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(runtime.VARIABLE, str(tmp_path))
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "r-1.log"


def read(tail: int = 200, since: int | None = None) -> Piece:
    return read_log("r-1", tail=tail, since=since)


def test_the_last_lines(log: Path) -> None:
    log.write_text("a\nb\nc\n")
    assert read(tail=2) == Piece("b\nc\n", 2, 6)
    assert read(tail=0) == Piece("", 6, 6)
    assert read(tail=9) == Piece("a\nb\nc\n", 0, 6)


def test_what_was_added(log: Path) -> None:
    log.write_text("a\nb\n")
    assert read(since=2) == Piece("b\n", 2, 4)
    assert read(since=4) == Piece("", 4, 4)


def test_a_file_that_became_shorter_is_read_anew(log: Path) -> None:
    log.write_text("new\n")
    assert read(since=100) == Piece("new\n", 0, 4)


def test_half_a_character_waits_for_its_other_half(log: Path) -> None:
    snowman = "☃".encode()
    log.write_bytes(b"a" + snowman[:2])
    first = read(since=0)
    assert first == Piece("a", 0, 1)
    log.write_bytes(b"a" + snowman + b"b")
    assert read(since=first.next) == Piece("☃b", 1, 5)


def test_what_is_no_text_is_still_shown(log: Path) -> None:
    log.write_bytes(b"a\xff\x1b[31mb\n")
    assert read().text == "a\ufffd\x1b[31mb\n"


def test_a_long_log_comes_in_pieces(log: Path) -> None:
    log.write_bytes(b"x" * MOST_BYTES + b"end")
    assert read(since=0).next == MOST_BYTES
    assert read(since=MOST_BYTES).text == "end"
    assert read().offset == 3


def test_a_link_is_not_followed(log: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", log)
    with pytest.raises(OSError, match="symbolic"):
        read()
