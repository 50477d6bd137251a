"""Memory files between processes: copied once, private to each, recycled, and never left behind."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
from support import memory_files, wait_until

from flyte_jupyter import memory
from flyte_jupyter.core.frames import FileTicket
from flyte_jupyter.errors import ProtocolError
from flyte_jupyter.memory import LEND_BYTES, Exchange, Shared, exchange_pair, mapping, shared, writing
from flyte_jupyter.memory.mapping import map_file
from flyte_jupyter.memory.writing import MemoryFile, MemoryFiles

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memory files on this platform")

MIB = 1 << 20


@pytest.fixture
def files() -> Iterator[MemoryFiles]:
    memory.close()
    made = MemoryFiles(keep_bytes=64 * MIB)
    yield made
    made.close()
    mapping.mappings.close()
    assert memory_files(os.getpid()) == []


@pytest.fixture
def exchange(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Exchange, Exchange]]:
    monkeypatch.setattr(writing, "files", files)
    pair = exchange_pair()
    assert pair is not None
    ours, theirs = pair[0], Exchange(pair[1])
    yield ours, theirs
    ours.close()
    theirs.close()


def write(files: MemoryFiles, content: bytes) -> MemoryFile:
    file = files.write(content)
    assert file is not None
    return file


def inode(file: MemoryFile) -> int:
    return os.fstat(file.fd).st_ino


def received(file: MemoryFile) -> memoryview:
    """What a receiver has; the sender closes its own descriptor."""
    view = map_file(os.dup(file.fd), file.nbytes)
    file.close()
    return view


def test_the_content_arrives_and_is_the_receivers_own(files: MemoryFiles) -> None:
    content = bytes(range(256)) * 5000
    first, second = write(files, content), write(files, content)
    one, other = received(first), received(second)
    assert one == content
    one[:] = bytes(len(content))
    assert other == content


def test_a_file_is_written_again_once_nobody_reads_it(files: MemoryFiles) -> None:
    file = write(files, b"a" * MIB)
    first = inode(file)
    view = received(file)
    other = write(files, b"b" * MIB)  # while the first is mapped
    second = inode(other)
    assert second != first
    assert view == b"a" * MIB
    other.close()
    del view
    handles = [write(files, b"c" * MIB), write(files, b"d" * MIB)]
    assert {inode(handle) for handle in handles} == {first, second}


def test_a_recycled_file_is_rewritten_in_each_way_of_writing(files: MemoryFiles) -> None:
    seen = set()
    for use in range(8):
        content = bytes([use + 1]) * (2 * MIB if use % 2 else 3 * MIB + 17)
        file = write(files, content)
        seen.add(inode(file))
        assert received(file) == content
    assert len(seen) == 1


def test_a_far_too_large_file_is_not_taken(files: MemoryFiles) -> None:
    large = write(files, bytes(16 * MIB))
    number = inode(large)
    large.close()
    small = write(files, bytes(2 * MIB))
    assert inode(small) != number
    small.close()


def test_the_smallest_that_is_large_enough_is_taken(files: MemoryFiles) -> None:
    sizes = {}
    handles = [write(files, bytes(size * MIB)) for size in (6, 3, 4)]
    for size, handle in zip((6, 3, 4), handles, strict=True):
        sizes[inode(handle)] = size
        handle.close()
    again = write(files, bytes(4 * MIB - 5))
    assert sizes[inode(again)] == 4
    again.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_reader_holds_the_file_until_it_is_killed(files: MemoryFiles) -> None:
    file = write(files, b"a" * MIB)
    number = inode(file)
    view = received(file)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        del view
        other = write(files, b"b" * MIB)
        assert inode(other) != number
        other.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    handles = [write(files, b"c" * MIB) for _ in range(2)]
    assert number in map(inode, handles)
    for handle in handles:
        handle.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_keeps_no_file_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = write(writing.files, b"a" * MIB)  # as between its writing and its sending
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, repr(memory_files(os.getpid())).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"[]"
    os.waitpid(child, 0)
    assert received(handle) == b"a" * MIB
    memory.close()


RECEIVER = """
    import sys, time
    from flyte_jupyter.memory import Exchange
    exchange = Exchange(int(sys.argv[1]))
    view = exchange.map(0, int(sys.argv[2]))
    print(bytes(view[:4]), flush=True)
    time.sleep(60)
"""


def test_a_killed_receiver_holds_nothing(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "files", files)
    pair = exchange_pair()
    assert pair is not None
    ours, theirs = pair
    (ticket,) = ours.lend([b"abcd" * MIB])
    assert ticket == FileTicket(0, 4 * MIB)
    command = [sys.executable, "-c", textwrap.dedent(RECEIVER), str(theirs), str(4 * MIB)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[theirs]) as receiver:
        os.close(theirs)
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == b"b'abcd'\n"
        kept = files._files[0]
        assert not kept.is_free()
        receiver.kill()
    assert kept.is_free()
    ours.close()


# --- what is kept


def test_what_is_kept_is_bounded_and_the_oldest_go_first(files: MemoryFiles) -> None:
    handles = [write(files, bytes(20 * MIB)) for _ in range(4)]
    assert files.kept_bytes() == 60 * MIB
    assert inode(handles[0]) not in {os.fstat(kept.fd).st_ino for kept in files._files}
    views = [received(handle) for handle in handles]  # one whose file is no longer kept, too
    assert all(view.nbytes == 20 * MIB for view in views)


def test_a_file_above_the_bound_is_not_kept(files: MemoryFiles) -> None:
    view = received(write(files, bytes(65 * MIB)))
    assert files.kept_bytes() == 0
    assert view.nbytes == 65 * MIB


def test_what_is_idle_is_given_back_and_the_thread_ends() -> None:
    files = MemoryFiles(keep_s=0.05)
    write(files, bytes(MIB)).close()
    assert files.kept_bytes() == MIB
    wait_until(lambda: files.kept_bytes() == 0 and not files._idle.looking)
    assert memory_files(os.getpid()) == []
    write(files, bytes(MIB)).close()  # and it starts again
    wait_until(lambda: files.kept_bytes() == 0)


def test_closing_leaves_what_was_sent_to_its_receiver(files: MemoryFiles) -> None:
    view = received(write(files, b"a" * MIB))
    files.close()
    assert files.kept_bytes() == 0
    assert view == b"a" * MIB


def test_many_files_that_are_read_do_not_use_up_the_descriptors(files: MemoryFiles) -> None:
    views = [received(write(files, bytes(MIB))) for _ in range(writing.KEEP_FILES + 20)]
    files._keep_bytes = 1 << 40
    views += [received(write(files, bytes(MIB))) for _ in range(writing.KEEP_FILES + 20)]
    assert len(files._files) == writing.KEEP_FILES
    assert all(view.nbytes == MIB for view in views)


def test_content_is_copied_when_descriptors_are_scarce(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 * limit, 2 * limit))
    limit = len(os.listdir("/proc/self/fd")) + 25
    handles = [write(files, bytes([number]) * (MIB + number)) for number in range(9)]
    views = [received(handle) for handle in handles]
    views += [received(write(files, bytes([number]) * (MIB + number))) for number in range(9, 60)]
    assert [isinstance(view.obj, bytearray) for view in views[:1] + views[-1:]] == [False, True]
    for number, view in enumerate(views):
        assert view == bytes([number]) * (MIB + number)
        view[0] = 9
    assert any(kept.is_free() for kept in files._files)


# --- what a receiver keeps


def place(view: memoryview) -> int:
    return shared._place(view)[0]


def test_a_mapping_that_nobody_wrote_into_shows_what_comes_next(files: MemoryFiles) -> None:
    places = []
    for letter in (b"a", b"b", b"c"):
        view = received(write(files, letter * (MIB + 1)))
        assert view == letter * (MIB + 1)
        places.append(place(view))
        del view
    assert len(set(places)) == 1
    assert len(files._files) == 1


def test_a_mapping_that_was_written_into_is_not_used_again(files: MemoryFiles) -> None:
    view = received(write(files, b"a" * MIB))
    view[MIB - 1] = ord("x")
    del view
    view = received(write(files, b"b" * MIB))
    assert view == b"b" * MIB
    assert len(files._files) == 1


def test_the_owner_waits_for_every_view_of_it(files: MemoryFiles) -> None:
    view = received(write(files, b"a" * MIB))
    part = view[5:10]
    del view
    gc.collect()
    other = received(write(files, b"b" * MIB))
    assert (bytes(part), bytes(other[5:10])) == (b"aaaaa", b"bbbbb")
    assert len(files._files) == 2
    del part, other
    assert all(file.is_free() for file in files._files)


def test_two_readers_of_one_file_have_a_mapping_each(files: MemoryFiles) -> None:
    file = write(files, b"a" * MIB)
    one, two = map_file(os.dup(file.fd), MIB), received(file)
    one[0] = ord("x")
    assert two[0] == ord("a")
    del one, two
    gc.collect()
    assert files._files[0].is_free()


def test_a_file_of_another_size_is_mapped_as_large_as_it_is(files: MemoryFiles) -> None:
    assert received(write(files, b"a" * 3 * MIB)) == b"a" * 3 * MIB
    assert received(write(files, b"b" * MIB)) == b"b" * MIB
    assert received(write(files, b"c" * (3 * MIB - 1))) == b"c" * (3 * MIB - 1)
    assert len(files._files) == 1


def test_idle_mappings_are_given_back_and_the_thread_ends(files: MemoryFiles) -> None:
    mappings = mapping.Mappings(keep_s=0.05)
    file = write(files, bytes(MIB))
    view = mappings.map(os.dup(file.fd), MIB)
    file.close()
    files.close()
    assert len(mappings._known) == 1
    del view
    wait_until(lambda: not mappings._known and not mappings._idle.looking)
    assert memory_files(os.getpid()) == []


# --- when it cannot


@pytest.mark.parametrize("problem", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC])
@pytest.mark.parametrize("step", ["memfd_create", "ftruncate", "pwrite", "open"])
def test_no_room_is_no_error(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch, step: str, problem: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(problem, os.strerror(problem))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        assert files.write(bytes(MIB)) is None
    assert memory_files(os.getpid()) == []
    write(files, bytes(MIB)).close()


def test_a_platform_without_memory_files(files: MemoryFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SUPPORTED", False)
    assert files.write(bytes(MIB)) is None
    assert exchange_pair() is None


def test_a_file_cannot_shrink_under_its_reader(files: MemoryFiles) -> None:
    file = write(files, bytes(MIB))
    seals = fcntl.fcntl(file.fd, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    file.close()


# --- between two ends


def test_only_big_pieces_go_in_files(exchange: tuple[Exchange, Exchange]) -> None:
    ours, theirs = exchange
    pieces = [b"small", b"a" * LEND_BYTES, b"b" * (LEND_BYTES - 1), b"c" * (LEND_BYTES + 1)]
    sent = ours.lend(pieces)
    assert sent == [pieces[0], FileTicket(0, LEND_BYTES), pieces[2], FileTicket(1, LEND_BYTES + 1)]
    assert theirs.map(1, LEND_BYTES + 1) == pieces[3]
    assert theirs.map(0, LEND_BYTES) == pieces[1]
    assert ours.lend(pieces[:1]) is not None
    assert theirs.lend(pieces[1:2]) == [FileTicket(0, LEND_BYTES)]  # each direction counts for itself
    assert ours.map(0, LEND_BYTES) == pieces[1]


def test_a_full_socket_and_a_closed_one_leave_the_pieces_as_they_are(exchange: tuple[Exchange, Exchange]) -> None:
    ours, theirs = exchange
    shared = Shared([view := memoryview(b"a" * LEND_BYTES)])
    token = memory.sharing.set(shared)
    try:
        sent = 0
        while ours.lend([view])[0] is not view:
            sent += 1
        assert sent > 10
        for ticket in range(sent):
            assert theirs.map(ticket, view.nbytes).nbytes == view.nbytes
        assert ours.lend([view]) == [FileTicket(sent, view.nbytes)]
        theirs.close()
        assert ours.lend([view])[0] is view
        ours.close()
        assert ours.lend([view])[0] is view
    finally:
        memory.sharing.reset(token)
        shared.close()


def test_a_file_that_did_not_come_is_a_protocol_error(exchange: tuple[Exchange, Exchange]) -> None:
    ours, theirs = exchange
    with pytest.raises(ProtocolError, match="memory file 0 of 1048576 bytes"):
        theirs.map(0, MIB)
    ours.lend([bytes(MIB)])
    with pytest.raises(ProtocolError, match="memory file 0"):
        theirs.map(0, 3 * MIB)  # larger than the file
    ours.close()
    with pytest.raises(ProtocolError, match="memory file 5"):
        theirs.map(5, MIB)


def test_files_that_nobody_took_end_with_the_connection(exchange: tuple[Exchange, Exchange]) -> None:
    ours, theirs = exchange
    for _ in range(3):
        ours.lend([bytes(MIB)])
    theirs.map(1, MIB)
    theirs.close()
    assert all(kept.is_free() for kept in writing.files._files)


# --- shared by many calls


def test_a_shared_buffer_is_written_once_and_kept_as_it_was(
    files: MemoryFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "files", files)
    content = bytearray(b"a" * 2 * MIB)
    shared = Shared([content, b"small"])
    handles = [shared.file_of(memoryview(content)) for _ in range(3)]
    assert all(handles)
    assert len({inode(handle) for handle in handles if handle}) == 1
    assert shared.file_of(bytes(2 * MIB)) is None
    views = [received(handle) for handle in handles if handle]
    del views
    again = shared.file_of(content)
    assert again is not None
    assert not files._files[0].is_free()
    shared.close()
    assert received(again) == content
    assert files._files[0].is_free()
    assert shared.file_of(content) is None
