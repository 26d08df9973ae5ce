"""The seal process as the daemon sees it: started, and again when it ended; one request at a time goes to it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from sessfs.errors import LocalStoreError, StoreFull
from sessfs.vfs import priority
from sessfs.vfs.children import Child
from sessfs.vfs.sealjobs import LENGTH, DropRequest, Failure, Hello, Reply, Task, decode_reply, encode_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNMOUNT_PATIENCE_S = 2.0
"""How long an unmount may wait for the seal process to end what it is at."""
GIVE_WAY_S = 10.0
"""How long a request to the seal process may take with its small share of the CPUs: a Chrome has started by then."""
STOP_PATIENCE_S = 10.0
"""How long a process that is asked to end may take, with nothing left to do."""


class SealBroke(LocalStoreError):
    """The process broke at a request: it ended, or did what nobody has thought of. The next one is sound."""


_ERRORS = {Failure.FULL: StoreFull, Failure.STORE: LocalStoreError, Failure.BUG: SealBroke}


class SealProcessClient:
    """Starts the seal process, and again when it ended; sends it one request at a time."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._process: Child | None = None
        self._is_greeted = False
        self._buffer = bytearray()
        self._is_sent = False
        self.lost_count = False
        """True once a request failed, or the process ended in one: it may have stored what nobody asks for."""
        self._lock = trio.Lock()
        self._hurries = 0
        self._is_urgent = True

    async def start(self) -> None:
        """Start the process if it isn't running. Raises LocalStoreError. Whether it may write is known with the answer
        to the first request: it is not waited for here.
        """
        if self._process is not None and self._process.pid is not None:
            return
        # Whole or not at all: one that was not greeted would take the next request for the greeting.
        with trio.CancelScope(shield=True):
            try:
                process = Child("sessfs.vfs.sealworker", leads_session=True)
            except OSError as exc:
                raise LocalStoreError(f"the seal process can't be started: {exc}") from exc
            try:
                await process.stdin.send_all(encode_message(self._hello))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                await process.end()
                raise LocalStoreError("the seal process ended as soon as it was started") from exc
        self._process = process
        self._is_greeted = False
        self._buffer.clear()
        self._is_urgent = True
        self._give_share()

    async def call(self, request: Task, on_late: Callable[[Reply], None] = lambda reply: None) -> Reply:
        """The answer to *request*. Raises LocalStoreError when the process could not do it: StoreFull, or SealBroke
        when it ended. When cancelled, the answer is waited for a little longer, and goes to *on_late*.
        """
        async with self._lock:
            await self.start()
            process = self._process
            assert process is not None
            try:
                self._is_sent = False
                await process.stdin.send_all(encode_message(request))
                self._is_sent = True
                reply = await self._receive_soon(process)
            except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError) as exc:
                await self._abandon(process, request)
                raise SealBroke("the seal process ended unexpectedly") from exc
            except trio.Cancelled:
                await self._finish(process, request, on_late)
                raise
            if reply.error:
                # It ends by itself, having stored who knows what; the next request must not go to it.
                await self._abandon(process, request)
                raise _ERRORS[reply.failure](reply.error)
        return reply

    async def _finish(self, process: Child, request: Task, on_late: Callable[[Reply], None]) -> None:
        """Cancelled: let the process come to an end with what it was asked, so that it is known what it did."""
        if self._is_sent:
            with (
                trio.move_on_after(UNMOUNT_PATIENCE_S, shield=True),
                contextlib.suppress(trio.BrokenResourceError, EOFError),
            ):
                reply = await self._receive(process)
                if not reply.error:
                    on_late(reply)
                    return
        await self._abandon(process, request)

    async def _abandon(self, process: Child, request: Task) -> None:
        """Kill the process: its answer would be taken for that of the next request, which another one gets."""
        self.lost_count |= self._is_sent and not isinstance(request, DropRequest)
        self._process = None
        await process.end()

    async def _receive_soon(self, process: Child) -> Reply:
        """As `_receive`; where it takes long, since others keep the machine busy, the process gets its full share."""
        with trio.move_on_after(GIVE_WAY_S):
            return await self._receive(process)
        with self.hurrying():
            return await self._receive(process)

    @contextlib.contextmanager
    def hurrying(self) -> Iterator[None]:
        """The process has its full share of the CPUs meanwhile, whatever it is at."""
        self._hurries += 1
        self._give_share()
        try:
            yield
        finally:
            self._hurries -= 1
            self._give_share()

    def _give_share(self) -> None:
        is_urgent, pid = self._hurries > 0, self.pid
        if pid is not None and is_urgent != self._is_urgent and priority.set_share(pid, is_urgent=is_urgent):
            self._is_urgent = is_urgent

    async def _receive(self, process: Child) -> Reply:
        """The answer to the request; to the greeting, if that is an error. May be cancelled, and called again."""
        if not self._is_greeted:
            greeting = await self._receive_one(process.stdout)
            if greeting.error:
                return greeting
            self._is_greeted = True
        return await self._receive_one(process.stdout)

    async def _receive_one(self, stream: trio.abc.ReceiveStream) -> Reply:
        buf = self._buffer
        while len(buf) < LENGTH.size or len(buf) < LENGTH.size + LENGTH.unpack_from(buf)[0]:
            got = await stream.receive_some()
            if not got:
                raise EOFError
            buf += got
        end = LENGTH.size + LENGTH.unpack_from(buf)[0]
        body = bytes(buf[LENGTH.size : end])
        del buf[:end]
        return decode_reply(body)

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def stop(self, patience_s: float = STOP_PATIENCE_S) -> None:
        """End the process, by ending its input, or after *patience_s* by force. On return it is gone; not to be
        cancelled.
        """
        if self._process is not None:
            await self._process.end(patience_s)
