"""The seal process: cuts hot files into chunks and writes them to `chunks/`, away from the request loop.

It is its own process because a busy Python thread starves CPU-bound work in other threads. It reads requests from its
standard input, answers on its standard output, and ends when its input does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sessfs.errors import SessfsError
from sessfs.local.chunkstore import CHUNK_TABLES
from sessfs.local.chunkwriter import ChunkWriter
from sessfs.local.db import Database
from sessfs.local.memory import bound_heap
from sessfs.types import ChunkId
from sessfs.vfs.cutting import RangeCutter, Unreadable, reading
from sessfs.vfs.ingestwork import IngestWork
from sessfs.vfs.priority import NICE
from sessfs.vfs.sealjobs import (
    CompareRequest,
    DropRequest,
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
    from collections.abc import Iterator, Sequence

    from sessfs.vfs.sealjobs import Span

SWITCH_INTERVAL_S = 0.0005
"""A thread that has compressed a frame gets the interpreter for the next this soon; 5 ms would be twice that work."""


class SealProcess:
    """The process's state: the writer and the cutter."""

    def __init__(self, hello: Hello) -> None:
        self._db = Database(Path(hello.chunks_path), CHUNK_TABLES, hello.map_size_bytes)
        self._writer = ChunkWriter(self._db, hello.key, hello.level)
        self._cutter = RangeCutter()
        self._ingest = IngestWork(self._db, self._writer, self._cutter, hello.key)

    def handle(self, request: Task) -> Reply:
        """Do it, and, but for an ingest, make it durable."""
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
            return self._scrub(request.target)
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

    def _scrub(self, target: str) -> Reply:
        """With a *target*, nothing may be written from here on until this process has ended: *target* would lack it."""
        damaged = self._writer.rewrite_mixed()
        self._writer.commit()
        if target:
            self._db.rewrite_into(Path(target))
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
        """Close the environment."""
        self._db.close()


def main() -> None:
    """Serve requests until the input ends. An error of the store is answered, then the process ends: what it has in
    memory can't be trusted to match the disk.
    """
    os.nice(NICE)
    bound_heap()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    body = read_message(source)
    if body is None:
        return
    hello = decode_request(body)
    if not isinstance(hello, Hello):
        raise TypeError("the first message must be Hello")
    process = SealProcess(hello)
    while (body := read_message(source)) is not None:
        request = decode_request(body)
        if isinstance(request, Hello):
            raise TypeError("Hello came twice")
        failed = False
        try:
            reply = process.handle(request)
        except (SessfsError, OSError) as exc:
            reply, failed = Reply(error=str(exc)), True
        target.write(encode_message(reply))
        target.flush()
        if failed:
            break
    process.close()


if __name__ == "__main__":
    main()
