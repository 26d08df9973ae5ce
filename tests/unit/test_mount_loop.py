"""The request loop, over a socket pair in place of /dev/fuse: one answer to each request, whatever its handler does."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.mount.boundary import changing, handler, in_task
from sessfs.mount.calls import CALLS
from sessfs.mount.flushers import THREADS, Flush
from sessfs.mount.fusewire import FSYNC_IN, GETATTR_IN, IN_HEADER, OUT_HEADER, RW_IN
from sessfs.mount.loop import BURST, LARGE_BYTES, LARGE_MAX, RequestLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GETATTR, READ, WRITE, FORGET, FLUSH, RMDIR, FSYNC = 3, 15, 16, 2, 25, 11, 20
SO_SNDBUFFORCE = 32  # socket(7); the module has no name for it
TOO_LARGE = 1 << 22
"""More than the socket takes as one message."""


class Handlers:
    """Stands in for SessionOperations: *getattr* answers, as its inode number says, at once, late, or never well."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.faults = None
        self.read_only: str | None = None
        self.go = trio.Event()
        self.written: list[bytes] = []
        self.flushing = threading.Event()
        self.flushed: list[BaseException | None] = []
        self._any_flushed = trio.Event()
        self.forgotten: list[tuple[int, int]] = []

    def read_only_reason(self) -> str | None:
        return self.read_only

    @handler
    async def getattr(self, inode: int, *, of_open: bool) -> bytes:
        if inode == 2:
            await in_task()
            await self.go.wait()
            await in_task()
            await trio.lowlevel.checkpoint()
        if inode == 3:
            await self.go.wait()
        if inode == 4:
            await in_task()
            raise KeyError("late bug")
        if inode == 5:
            return 7  # type: ignore[return-value]
        return b"attributes of %d" % inode

    @handler
    async def forget(self, inodes: list[tuple[int, int]]) -> None:
        self.forgotten += inodes
        raise KeyError("nobody hears of it")

    @changing
    async def write(self, fh: int, off: int, buf: memoryview, pid: int, *, cached: bool, kills_set_id: bool) -> int:
        if fh == 2:
            await in_task()
            await self.go.wait()
        self.written.append(bytes(buf))
        return len(buf)

    @handler
    async def read(self, fh: int, off: int, size: int) -> list[bytes]:
        return [b"ab"] * fh

    @handler
    async def fsync(self, fh: int, *, data_only: bool) -> Flush:
        def work() -> None:
            if fh == 2:
                raise OSError(errno.ENOSPC, "full")
            assert self.flushing.wait(5)

        return Flush(work, self._note)

    def _note(self, error: BaseException | None) -> None:
        self.flushed.append(error)
        self._any_flushed.set()

    async def next_flushed(self) -> BaseException | None:
        await self._any_flushed.wait()
        return self.flushed[-1]

    @changing
    async def rmdir(self, inode: int, name: bytes) -> None:
        pass

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"{name} was not asked for")


for _call in CALLS.values():
    if not hasattr(Handlers, _call.name):
        setattr(Handlers, _call.name, None)


class Kernel:
    """The other end."""

    def __init__(self, sock: socket.socket, handlers: Handlers) -> None:
        self._sock = sock
        self.handlers = handlers

    def ask(self, opcode: int, unique: int, inode: int = 1, body: bytes = b"") -> None:
        if opcode == GETATTR:
            body = GETATTR_IN.pack(0, 0, 0)
        self._sock.send(IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, inode, 0, 0, 0, 0, 0) + body)

    async def hear(self) -> tuple[int, int, bytes]:
        """(unique, errno, payload) of the next answer."""
        await trio.lowlevel.wait_readable(self._sock)
        answer = self._sock.recv(1 << 16)
        length, error, unique = OUT_HEADER.unpack_from(answer)
        assert length == len(answer)
        return unique, -error, answer[OUT_HEADER.size :]


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Kernel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # A buffer that takes what all tests send, or `ask` would wait for a loop that has no turn.
    ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 32 << 20)
    handlers = Handlers()
    loop = RequestLoop(theirs.fileno(), handlers)  # type: ignore[arg-type]
    with ours, theirs, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            yield Kernel(ours, handlers)
            loop.stop()


def write_body(fh: int, content: bytes) -> bytes:
    return RW_IN.pack(fh, 0, len(content), 0, 0, 0, 0) + content


async def test_what_needs_no_waiting_is_answered_while_others_wait() -> None:
    async with served() as kernel:
        kernel.ask(GETATTR, 10, inode=2)
        kernel.ask(GETATTR, 11, inode=1)
        assert await kernel.hear() == (11, 0, b"attributes of 1")
        kernel.handlers.go.set()
        assert await kernel.hear() == (10, 0, b"attributes of 2")
        assert kernel.handlers.requests["getattr"] == 2


async def test_bytes_of_a_write_that_waits_stay_its_own() -> None:
    async with served() as kernel:
        kernel.ask(WRITE, 1, body=write_body(2, b"first"))
        kernel.ask(WRITE, 2, body=write_body(1, b"other"))
        assert await kernel.hear() == (2, 0, b"\x05\0\0\0\0\0\0\0")
        kernel.handlers.go.set()
        assert (await kernel.hear())[0] == 1
        assert kernel.handlers.written == [b"other", b"first"]


LARGE = bytes(LARGE_BYTES)


async def test_large_writes_let_small_requests_go_first() -> None:
    async with served() as kernel:
        for unique in (1, 2):
            kernel.ask(WRITE, unique, body=write_body(1, LARGE + b"%d" % unique))
        kernel.ask(GETATTR, 3, inode=1)
        assert [(await kernel.hear())[0] for _ in range(3)] == [3, 1, 2]
        assert [written[-1:] for written in kernel.handlers.written] == [b"1", b"2"]


async def test_a_large_write_waits_for_one_burst_at_most() -> None:
    async with served() as kernel:
        kernel.ask(WRITE, 1, body=write_body(1, LARGE))
        for unique in range(2, 3 * BURST):
            kernel.ask(GETATTR, unique, inode=1)
        heard = [(await kernel.hear())[0] for _ in range(1, 3 * BURST)]
        assert heard.index(1) < BURST
        heard.remove(1)
        assert heard == list(range(2, 3 * BURST))


async def test_many_large_writes_are_served_in_turn_each_with_its_own_bytes() -> None:
    async with served() as kernel:
        uniques = range(1, 3 * LARGE_MAX)
        kernel.ask(WRITE, 100, body=write_body(2, LARGE + b"100"))
        for unique in uniques:
            kernel.ask(WRITE, unique, body=write_body(1, LARGE + b"%03d" % unique))
        assert [(await kernel.hear())[0] for _ in uniques] == [*uniques]
        kernel.handlers.go.set()
        assert (await kernel.hear())[0] == 100
        assert [int(written[-3:]) for written in kernel.handlers.written] == [*uniques, 100]


async def test_no_more_large_writes_wait_than_there_is_room_for() -> None:
    async with served() as kernel:
        for unique in range(1, LARGE_MAX + 2):
            kernel.ask(WRITE, unique, body=write_body(1, LARGE))
        kernel.ask(GETATTR, 50, inode=1)
        assert [(await kernel.hear())[0] for _ in range(3)] == [1, 50, 2]


@pytest.mark.parametrize("inode", [3, 4, 5])
async def test_a_handler_that_waits_by_itself_fails_late_or_answers_nonsense_gets_eio(inode: int) -> None:
    async with served() as kernel:
        kernel.ask(GETATTR, 5, inode=inode)
        assert await kernel.hear() == (5, errno.EIO, b"")
        kernel.ask(GETATTR, 6)
        assert await kernel.hear() == (6, 0, b"attributes of 1")


@pytest.mark.parametrize("pieces", [0, 1, 1023, 1024, 5000])
async def test_a_read_in_any_number_of_pieces_is_answered(pieces: int) -> None:
    """writev takes 1,024 at a time."""
    async with served() as kernel:
        kernel.ask(READ, 1, body=RW_IN.pack(pieces, 0, 2 * pieces, 0, 0, 0, 0))
        assert await kernel.hear() == (1, 0, b"ab" * pieces)


async def test_an_answer_that_the_kernel_refuses_becomes_eio() -> None:
    async with served() as kernel:
        kernel.ask(READ, 1, body=RW_IN.pack(TOO_LARGE, 0, 1, 0, 0, 0, 0))
        assert await kernel.hear() == (1, errno.EIO, b"")
        kernel.ask(GETATTR, 2)
        assert (await kernel.hear())[1] == 0


async def test_forget_is_never_answered_and_unknown_requests_are_refused() -> None:
    async with served() as kernel:
        kernel.ask(FORGET, 1, inode=7, body=(3).to_bytes(8, "little"))
        kernel.ask(FLUSH, 2)
        assert await kernel.hear() == (2, errno.ENOSYS, b"")
        assert kernel.handlers.forgotten == [(7, 3)]


async def test_a_request_that_is_too_short_is_eio() -> None:
    async with served() as kernel:
        kernel.ask(WRITE, 1, body=b"short")
        assert await kernel.hear() == (1, errno.EIO, b"")


async def test_changes_are_refused_while_read_only() -> None:
    async with served() as kernel:
        kernel.handlers.read_only = "fenced"
        kernel.ask(RMDIR, 1, body=b"d\0")
        assert await kernel.hear() == (1, errno.EROFS, b"")
        kernel.ask(GETATTR, 2)
        assert (await kernel.hear())[1] == 0


async def test_fsyncs_are_answered_by_threads_while_others_are_served() -> None:
    async with served() as kernel:
        for unique in (1, 2, 3):
            kernel.ask(FSYNC, unique, body=FSYNC_IN.pack(1, 0, 0))
        kernel.ask(FSYNC, 4, body=FSYNC_IN.pack(2, 0, 0))
        kernel.ask(GETATTR, 5)
        answers = {await kernel.hear() for _ in range(2)}
        assert answers == {(4, errno.ENOSPC, b""), (5, 0, b"attributes of 1")}
        # A failure is taken in without another request.
        assert isinstance(await kernel.handlers.next_flushed(), OSError)
        kernel.handlers.flushing.set()
        assert {await kernel.hear() for _ in range(3)} == {(unique, 0, b"") for unique in (1, 2, 3)}
    assert [type(error) for error in kernel.handlers.flushed].count(type(None)) == 3


async def test_more_fsyncs_than_threads_are_each_answered_once() -> None:
    n = 3 * THREADS
    async with served() as kernel:
        for _ in range(2):
            for unique in range(n):
                kernel.ask(FSYNC, unique, body=FSYNC_IN.pack(1, 0, 0))
            kernel.ask(GETATTR, n)
            assert (await kernel.hear())[0] == n
            assert sum(thread.name.startswith("flush ") for thread in threading.enumerate()) <= THREADS
            kernel.handlers.flushing.set()
            assert {(await kernel.hear())[:2] for _ in range(n)} == {(unique, 0) for unique in range(n)}
            kernel.handlers.flushing.clear()
    assert kernel.handlers.flushed == [None] * 2 * n


@pytest.mark.parametrize("n_threads", [0, 1])
async def test_fsyncs_are_answered_where_there_are_not_enough_threads(
    monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    start, left = threading.Thread.start, n_threads

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name.startswith("flush "):
            left -= 1
            if left < 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    async with served() as kernel:
        kernel.handlers.flushing.set()
        for unique in range(5):
            kernel.ask(FSYNC, unique, body=FSYNC_IN.pack(1, 0, 0))
        kernel.ask(FSYNC, 5, body=FSYNC_IN.pack(2, 0, 0))
        answers = dict([(await kernel.hear())[:2] for _ in range(6)])
        assert answers == {**dict.fromkeys(range(5), 0), 5: errno.ENOSPC}
        kernel.ask(GETATTR, 6)
        assert await kernel.hear() == (6, 0, b"attributes of 1")
    assert len(kernel.handlers.flushed) == 6


async def test_at_the_end_what_waits_for_a_thread_is_flushed() -> None:
    n = 2 * THREADS
    async with served() as kernel:
        for unique in range(n):
            kernel.ask(FSYNC, unique, body=FSYNC_IN.pack(1, 0, 0))
        kernel.ask(GETATTR, n)
        assert (await kernel.hear())[0] == n
        kernel.handlers.flushing.set()
    assert kernel.handlers.flushed == [None] * n
