"""The seal process: cuts hot files into chunks and writes them to `chunks/`, away from the request loop.

It is its own process because a busy Python thread starves CPU-bound work in other threads. It reads requests from its
standard input, answers on its standard output, and ends when its input does. Its one argument is its daemon's process
id: with the daemon it ends, at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from sessfs.errors import LocalStoreError, SessfsError, StoreFull
from sessfs.local.chunkstore import CHUNK_TABLES
from sessfs.local.chunkwriter import ChunkWriter
from sessfs.local.db import Database
from sessfs.local.memory import bound_heap
from sessfs.local.parent import end_with_parent
from sessfs.local.writelock import WriteLock
from sessfs.types import ChunkId
from sessfs.vfs.cutting import RangeCutter, Unreadable, reading
from sessfs.vfs.ingestwork import IngestWork
from sessfs.vfs.priority import NICE
from sessfs.vfs.sealjobs import (
    CompareRequest,
    DropRequest,
    Failure,
    FinishRequest,
    Hello,
    IngestRequest,
    Reply,
    ScrubRequest,
    SealedFile,
    SealFile,
    StoreRequest,
    Task,
    decode_request,
    encode_message,
    read_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from sessfs.vfs.sealjobs import Span

T = TypeVar("T")
SWITCH_INTERVAL_S = 0.0005
"""A thread that has compressed a frame gets the interpreter for the next this soon; 5 ms would be twice that work."""


class SealProcess:
    """The process's state: the right to write, the writer and the cutter."""

    def __init__(self, hello: Hello, has_daemon: Callable[[], bool]) -> None:
        """Raises StateInUse when another process writes there, LocalStoreError. It writes while it *has_daemon*."""
        chunks = Path(hello.chunks_path)
        self._has_daemon = has_daemon
        self._lock = WriteLock(chunks, create=False)
        self._db = Database(chunks, CHUNK_TABLES, hello.map_size_bytes, create=False)
        self._writer = ChunkWriter(self._db, hello.key, hello.level, may_write=self._check_right)
        self._cutter = RangeCutter()
        self._ingest = IngestWork(self._db, self._writer, self._cutter, hello.key)

    def _check_right(self) -> None:
        """Raises LocalStoreError when nothing may be written any more."""
        if not self._has_daemon():
            raise LocalStoreError("the daemon has ended: what it asked for is not written any more")
        self._lock.check()

    def handle(self, request: Task) -> Reply:
        """Do it, and, but for an ingest, make it durable."""
        self._writer.damaged.clear()
        reply = self._do(request)
        return msgspec.structs.replace(reply, set_aside=list(dict.fromkeys(self._writer.damaged)))

    def _do(self, request: Task) -> Reply:
        if isinstance(request, IngestRequest):
            self._distrust(request.damaged)
            return self._ingest.ingest(request)
        if isinstance(request, FinishRequest):
            return self._ingest.finish(discard=request.discard)
        if isinstance(request, CompareRequest):
            return self._ingest.compare(request)
        if isinstance(request, StoreRequest):
            self._writer.drop(ChunkId(cid) for cid in request.damaged)
            for frame in request.frames:
                self._writer.add_record(frame.record, {ChunkId(cid) for cid in frame.wanted})
            self._writer.commit()
            return Reply()
        if isinstance(request, DropRequest):
            self._writer.drop(ChunkId(cid) for cid in request.ids)
            self._writer.commit()
            return Reply()
        if isinstance(request, ScrubRequest):
            return self._scrub(request)
        self._writer.added.clear()
        self._distrust(request.damaged)
        files = [self._seal(file) for file in request.files]
        self._writer.commit()
        return Reply(
            files=files,
            added=[bytes(cid) for cid in self._writer.added],
            replaced=[bytes(cid) for cid in self._writer.take_replaced()],
        )

    def _distrust(self, damaged: Sequence[bytes]) -> None:
        self._writer.distrusted = {ChunkId(cid) for cid in damaged}

    def _scrub(self, request: ScrubRequest) -> Reply:
        """With a target, nothing may be written from here on until this process has ended: the target would lack it."""
        damaged = self._writer.rewrite_mixed() if request.rewrites else 0
        self._writer.commit()
        if request.target:
            self._check_right()
            self._db.rewrite_into(Path(request.target))
        return Reply(damaged=damaged)

    def _seal(self, file: SealFile) -> SealedFile:
        """Its recipe; none where the file itself is why not. Raises LocalStoreError when the store is."""
        try:
            with reading():
                fd = os.open(file.hot_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                recipe = self._cut_spans(fd, file)
            finally:
                os.close(fd)
        except EOFError:
            return SealedFile(file.ino, file.version, None, "it is shorter than it should be")
        except Unreadable as exc:
            return SealedFile(file.ino, file.version, None, f"it can't be read: {exc.strerror}")
        return SealedFile(file.ino, file.version, recipe)

    def _cut_spans(self, fd: int, file: SealFile) -> bytes:
        with reading():
            length = os.fstat(fd).st_size
        if length < file.spans[-1].end:
            raise EOFError
        parts: list[bytes] = []
        for span in file.spans:
            parts.extend([span.keep] if span.keep is not None else self._cut(fd, span))
        return b"".join(parts)

    def _cut(self, fd: int, span: Span) -> Iterator[bytes]:
        return self._cutter.cut(fd, span.start, span.end, self._writer.add)

    def close(self) -> None:
        """Close the environment, and let others write."""
        self._db.close()
        self._lock.close()


def attempt(act: Callable[[], T], done: Callable[[T], Reply]) -> tuple[T | None, Reply]:
    """What *act* gives, and the answer to that; None, and an answer with the error, when it fails."""
    try:
        result = act()
        return result, done(result)
    except SessfsError as exc:
        failure = Failure.FULL if isinstance(exc, StoreFull) else Failure.STORE
        return None, Reply(error=str(exc), failure=failure)
    except OSError as exc:
        failure = Failure.FULL if exc.errno in (errno.ENOSPC, errno.EDQUOT) else Failure.STORE
        return None, Reply(error=str(exc), failure=failure)
    except Exception as exc:
        traceback.print_exc()
        return None, Reply(error=f"bug in the seal process: {exc!r}; see the log", failure=Failure.BUG)


def main() -> None:
    """Serve requests until the input ends. An error of the store is answered, then the process ends: what it has in
    memory can't be trusted to match the disk.
    """
    has_daemon = end_with_parent(int(sys.argv[1]))
    os.nice(NICE)
    bound_heap()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer, has_daemon)
    except BrokenPipeError:
        # Nobody waits for the answer.
        os._exit(1)


def serve(source: BinaryIO, target: BinaryIO, has_daemon: Callable[[], bool]) -> None:
    """Answer all that comes from *source*. Raises BrokenPipeError when nobody listens."""

    def answer(reply: Reply) -> bool:
        target.write(encode_message(reply))
        target.flush()
        return not reply.error

    body = read_message(source)
    if body is None:
        return
    hello = decode_request(body)
    if not isinstance(hello, Hello):
        raise TypeError("the first message must be Hello")
    process, greeting = attempt(lambda: SealProcess(hello, has_daemon), lambda process: Reply())
    if not answer(greeting) or process is None:
        return
    while (body := read_message(source)) is not None:
        request = decode_request(body)
        if isinstance(request, Hello):
            raise TypeError("Hello came twice")
        _, reply = attempt(partial(process.handle, request), lambda reply: reply)
        if not answer(reply):
            break
    process.close()


if __name__ == "__main__":
    main()
