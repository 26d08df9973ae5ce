"""The request loop: reads requests from /dev/fuse, has the handlers serve them, and writes the answers.

It stands in for pyfuse3's own, which needs five system calls and a hand-over between tasks for each request: here a
request that needs no waiting is read, served and answered at once, which is three. While requests come one after
another the loop waits for the next one in the kernel, a millisecond at most, without going back to trio, and where they
come fast for a few microseconds without even sleeping; other tasks get their turn after that, and after every BURST
requests.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import trio

from sessfs.mount.boundary import NeedsTask, errno_of, is_changing
from sessfs.mount.calls import CALLS, INTERRUPT, interrupted_unique
from sessfs.mount.flushers import Flush, Flushers
from sessfs.mount.fusewire import IN_HEADER, OUT_HEADER
from sessfs.mount.loopwatch import watch_from_environment
from sessfs.mount.waiting import Waiter, Waiters

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from sessfs.format.chunk import Buffer
    from sessfs.mount.calls import Call, Header
    from sessfs.mount.fuseops import SessionOperations

log = logging.getLogger(__name__)
BUFFER_BYTES: Final = (1 << 20) + 65536
"""The largest request is a write of max_write bytes, 1 MiB, with its headers."""
BURST: Final = 64
"""So many requests are served before other tasks get their turn, which takes as long as one or two requests,"""
BURST_AWAITED: Final = 16
"""and so many where a request waits for one of those tasks."""
LARGE_WEIGHT: Final = 4
"""As many requests a large one counts for, each time that it is taken up."""
LARGE_BYTES: Final = 128 << 10
LARGE_MAX: Final = 4
"""So many large requests are put off at most, each in a buffer of its own."""
LINGER_MS: Final = 1
SPIN_S: Final = 80e-6
DENSE_S: Final = 150e-6
"""A request that comes this soon after the last answer is seen by who looks for it without sleeping."""
CREDIT: Final = 4
"""So many more requests than not must have come soon before the loop looks for one without sleeping; and what a look in
vain takes off. A look costs a core that a starting Chrome could have used, so four of five must be worth it.
"""
CREDIT_MAX: Final = 12
ERRNO: Final = "errno"
"""What an answer is called that is an error number alone."""
GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)
IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
"""As many pieces go to the kernel by one writev, which an answer must."""
NOBODY_WAITS: Final = (errno.ENOENT, errno.EINTR)
"""Reading: the request was taken back. Answering: whoever asked was killed meanwhile."""


class RequestLoop:
    """Serves one mounted device until it is unmounted."""

    def __init__(self, device: int, operations: SessionOperations) -> None:
        """*device* is a descriptor of /dev/fuse on which FUSE_INIT was answered; it stays the caller's."""
        self._device = device
        self._operations = operations
        self._changing = {c.name for c in CALLS.values() if is_changing(getattr(type(operations), c.name))}
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._large: deque[tuple[memoryview, int]] = deque()
        """Requests that were put off, with their sizes."""
        self._spare: list[memoryview] = []
        self._waiters: Waiters
        self._ended = False
        self._credit = 0
        self._watch = watch_from_environment()
        self._flushers: Flushers
        self._scope = trio.CancelScope()
        self._poller = select.poll()
        self._poller.register(device, select.POLLIN)

    def _more(self) -> bool:
        """Wait for the next request: at first without sleeping, where requests have been coming so fast that falling
        asleep and being woken would take longer than it takes them to come. Not while a file is being flushed: who
        waits for that asks for nothing, and the flusher needs the interpreter.
        """
        if self._waiters.are_eager:
            return bool(self._poller.poll(0))
        start = time.perf_counter()
        if self._credit >= CREDIT and not self._flushers.is_busy:
            while time.perf_counter() - start < SPIN_S:
                if self._poller.poll(0):
                    self._credit = min(self._credit + 1, CREDIT_MAX)
                    return True
            self._credit -= CREDIT
        came = bool(self._poller.poll(LINGER_MS))
        if came and time.perf_counter() - start < DENSE_S:
            self._credit = min(self._credit + 1, CREDIT_MAX)
        return came

    async def run(self) -> None:
        """Serve; returns when the kernel has let go of the mount, or after `stop`."""
        os.set_blocking(self._device, False)
        self._flushers = flushers = Flushers()
        with contextlib.closing(flushers), self._watching(), self._scope:
            async with trio.open_nursery() as nursery:
                self._waiters = Waiters(nursery, self._finished)
                while not self._ended:
                    if self._large:
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.lowlevel.wait_readable(self._device)
                    self._serve_burst()
                # Nobody waits for what is still under way.
                self._waiters.close()
                nursery.cancel_scope.cancel()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        if self._watch is None:
            yield
            return
        self._watch.start()
        try:
            yield
        finally:
            self._watch.stop()

    def stop(self) -> None:
        """Have `run` return although the kernel still holds the mount."""
        self._scope.cancel()

    def _serve_burst(self) -> None:
        """Serve what has come and what comes right after it, up to BURST requests. Large ones, which are writes, come
        last: a page that is written back can wait, and who looks at a file should not wait for a dozen of them.
        """
        self._flushers.settle()
        served = 0
        while served < (BURST_AWAITED if self._waiters.are_eager else BURST):
            size = self._read()
            if self._ended or (size == 0 and not self._large):
                return
            served += 1 if 0 < size < LARGE_BYTES else LARGE_WEIGHT
            if size == 0:
                self._serve_large()
            elif size < LARGE_BYTES:
                self._serve(size)
            else:
                self._put_off(size)
            if self._watch is not None:
                self._watch.turn("a request")
            if not self._large and not self._more():
                return
        if self._large:
            self._serve_large()

    def _read(self) -> int:
        """Bytes of the next request, in the buffer; 0 when none is there. Notes when no more will come."""
        while True:
            try:
                return os.readv(self._device, [self._buffer])
            except BlockingIOError:
                return 0
            except OSError as exc:
                if exc.errno in NOBODY_WAITS:
                    continue
                if exc.errno not in GONE:
                    log.error("reading from /dev/fuse failed: %s", exc)
                self._ended = True
                return 0

    def _put_off(self, size: int) -> None:
        """Serve the request in the buffer when nothing else is there, or when too many wait."""
        self._large.append((self._buffer, size))
        self._buffer = self._spare.pop() if self._spare else memoryview(bytearray(BUFFER_BYTES))
        if len(self._large) > LARGE_MAX:
            self._serve_large()

    def _serve_large(self) -> None:
        """Serve the large request that has waited longest."""
        kept = self._buffer
        self._buffer, size = self._large.popleft()
        self._serve(size)
        # The same, or another one if its handler still needs it.
        self._spare.append(self._buffer)
        self._buffer = kept

    def _serve(self, size: int) -> None:
        header: Header = IN_HEADER.unpack_from(self._buffer)
        call = CALLS.get(header[1])
        if call is None:
            self._serve_other(header, size)
            return
        operations = self._operations
        operations.requests[call.name] += 1
        started: Coroutine[Any, Any, Any] | None = None
        try:
            if operations.faults is not None:
                operations.faults.hit(call.name)
            if call.name in self._changing and operations.read_only_reason() is not None:
                if call.name == "write":
                    operations.note_read_only(header[3])
                self._refuse(header[2], errno.EROFS)
                return
            started = call.start(operations, header, self._buffer[IN_HEADER.size : size])
            trapped = started.send(None)
        except StopIteration as done:
            result = done.value
        except Exception as exc:
            self._fail(call, header, exc)
            return
        else:
            self._hand_over(call, header, started, trapped)
            return
        self._answer(call, header, result)

    def _serve_other(self, header: Header, size: int) -> None:
        """What has no handler."""
        if header[1] != INTERRUPT:
            self._refuse(header[2], errno.ENOSYS)
            return
        unique = interrupted_unique(self._buffer[IN_HEADER.size : size])
        while self._large:
            # The request may be one of those.
            self._serve_large()
        self._waiters.interrupt(unique)

    def _hand_over(self, call: Call, header: Header, started: Coroutine[Any, Any, Any], trapped: object) -> None:
        """Give the handler, which must wait, a task of its own."""
        if not isinstance(trapped, NeedsTask):
            started.close()
            self._fail(call, header, RuntimeError("it waits without having asked for a task"))
            return
        if call.keeps_body:
            self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._waiters.add(Waiter(call, header, started, trapped.lane))

    def _finished(self, waiter: Waiter, result: Any, error: Exception | None) -> None:
        """A handler that had to wait has come to its end, by a signal without an error or a result."""
        if error is not None:
            self._fail(waiter.call, waiter.header, error)
        elif waiter.was_interrupted:
            self._refuse(waiter.header[2], errno.EINTR)
        else:
            self._answer(waiter.call, waiter.header, result)

    def _answer(self, call: Call, header: Header, result: Any) -> None:
        """Raises nothing: an answer that can't be made becomes EIO, as what a handler raises does."""
        if not call.answered:
            return
        try:
            self._make_answer(call, header, result)
        except Exception as exc:
            self._fail(call, header, exc)

    def _make_answer(self, call: Call, header: Header, result: Any) -> None:
        if type(result) is Flush:
            self._flushers.submit(result, functools.partial(self._flushed, call, header))
            return
        if type(result) is list:
            # What was read goes to the kernel from where it is.
            pieces = result if len(result) < IOV_MAX else [b"".join(result)]
            head = OUT_HEADER.pack(OUT_HEADER.size + sum(map(len, pieces)), 0, header[2])
            self._write([head, *pieces], call.name, header[2])
            return
        payload: bytes = b"" if result is None else result if call.pack is None else call.pack(result)
        head = OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, header[2])
        self._write([head, payload] if len(payload) > 4096 else [head + payload], call.name, header[2])

    def _fail(self, call: Call, header: Header, exc: Exception) -> None:
        number = errno_of(exc, f"{call.name} of inode {header[3]}")
        if call.answered:
            self._refuse(header[2], number)

    def _flushed(self, call: Call, header: Header, error: Exception | None) -> None:
        """Answer from a flusher's thread."""
        if error is None:
            self._answer(call, header, None)
        else:
            self._fail(call, header, error)

    def _refuse(self, unique: int, number: int) -> None:
        self._write([OUT_HEADER.pack(OUT_HEADER.size, -number, unique)], ERRNO, unique)

    def _write(self, parts: Sequence[Buffer], what: str, unique: int) -> None:
        """Write an answer. One that the kernel does not take becomes EIO: whoever asked must not wait for ever."""
        try:
            os.writev(self._device, parts)
        except OSError as exc:
            if exc.errno in GONE:
                self._ended = True
            elif exc.errno not in NOBODY_WAITS:
                log.error("the kernel refuses an answer (%s, %d bytes): %s", what, sum(map(len, parts)), exc)
                if what != ERRNO:
                    self._refuse(unique, errno.EIO)
