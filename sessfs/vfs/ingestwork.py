"""The seal process's side of an import: files outside of the volume become chunks, and are compared with them.

Chunks are gathered over many requests, put in order of likeness, and compressed in threads while the next files are
cut. So requests stay short, and a seal of the mount's own files can be served between any two of them.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sessfs.errors import StoreCorrupt
from sessfs.format.chunk import FRAME_TARGET_BYTES, FrameCodec, chunk_id
from sessfs.format.likeness import Likeness
from sessfs.format.recipe import Recipe
from sessfs.local.chunkstore import FRAME_KEY, FRAMES, find_place, sound_chunks
from sessfs.types import ChunkId, FrameNo
from sessfs.vfs.cutting import WINDOW_BYTES
from sessfs.vfs.sealjobs import Reply, SealedFile, SourceStamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from sessfs.format.chunk import Buffer
    from sessfs.local.chunkwriter import ChunkWriter
    from sessfs.local.db import Database
    from sessfs.vfs.cutting import RangeCutter
    from sessfs.vfs.sealjobs import CompareRequest, IngestRequest, SourceRange

INGEST_LEVEL = 2
"""In order of likeness 9 % smaller than level 6 without, in a third of the time: bench/README.md."""
GATHER_BYTES = 128 << 20
"""New chunks are put in order in lots of this size: about one profile, with tables that a compaction left behind."""
COMPRESSING_BYTES = 128 << 20
"""As much may wait to be compressed; the cutting waits then."""
MAX_THREADS = 4
_Entries = list[tuple[ChunkId, int]]


class SourceChanged(Exception):
    """A source file is not what it was when it was listed; the text says how."""


@contextlib.contextmanager
def open_source(source: SourceRange) -> Iterator[int]:
    """A descriptor of the file, if it is still the one that was listed, as it was: checked again at the end. Its access
    time stays. Raises SourceChanged, also for an OSError of what is done with it.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            fd = os.open(source.path, flags | os.O_NOATIME)
        except PermissionError:
            fd = os.open(source.path, flags)
    except FileNotFoundError as exc:
        raise SourceChanged("it has gone") from exc
    except OSError as exc:
        raise SourceChanged(f"it can't be read: {exc.strerror}") from exc
    try:
        if SourceStamp.of(os.fstat(fd)) != source.stamp:
            raise SourceChanged("it changed since it was listed")
        try:
            yield fd
        except OSError as exc:
            raise SourceChanged(f"it can't be read: {exc.strerror}") from exc
        if SourceStamp.of(os.fstat(fd)) != source.stamp:
            raise SourceChanged("it changed while it was read")
    finally:
        os.close(fd)


class IngestWork:
    """One thread calls; threads of its own compress and hash."""

    def __init__(self, db: Database, writer: ChunkWriter, cutter: RangeCutter, key: bytes) -> None:
        self._db = db
        self._writer = writer
        self._key = key
        self._cutter = cutter
        self._likeness = Likeness()
        self._gathered: dict[ChunkId, bytes] = {}
        self._gathered_bytes = 0
        self._compressing: deque[tuple[_Entries, Future[bytes]]] = deque()
        self._compressing_bytes = 0
        self._unwritten: set[ChunkId] = set()
        """Chunks that are being compressed."""
        self._added: list[ChunkId] = []
        self._threads: ThreadPoolExecutor | None = None
        self._codecs: queue.SimpleQueue[FrameCodec] = queue.SimpleQueue()
        self._buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._sound: set[ChunkId] = set()
        """Chunks that were read back."""

    # -- ingest

    def ingest(self, request: IngestRequest) -> Reply:
        """The recipes of the ranges, none for a file that is not as it was listed. Raises LocalStoreError."""
        self._added = []
        files = [self._each(index, source, self._cut) for index, source in enumerate(request.ranges)]
        self._store_compressed(wait_above=COMPRESSING_BYTES)
        return Reply(files=files, added=[bytes(cid) for cid in self._added], process=os.getpid())

    @staticmethod
    def _each(index: int, source: SourceRange, act: Callable[[SourceRange], bytes]) -> SealedFile:
        try:
            return SealedFile(index, 0, act(source))
        except SourceChanged as exc:
            return SealedFile(index, 0, None, str(exc))
        except EOFError:
            return SealedFile(index, 0, None, "it was cut short while it was read")

    def _cut(self, source: SourceRange) -> bytes:
        with open_source(source) as fd:
            return b"".join(self._cutter.cut(fd, source.start, source.end, self._gather))

    def _gather(self, piece: Buffer) -> ChunkId:
        cid = chunk_id(self._key, piece)
        if cid in self._gathered or cid in self._unwritten or self._writer.has(cid):
            return cid
        self._gathered[cid] = bytes(piece)
        self._gathered_bytes += len(piece)
        self._added.append(cid)
        if self._gathered_bytes >= GATHER_BYTES:
            self._compress()
        return cid

    def _compress(self) -> None:
        """Hand what is gathered to the threads, in frames of what is alike."""
        ids, chunks = list(self._gathered), list(self._gathered.values())
        self._gathered, self._gathered_bytes = {}, 0
        frame: list[bytes] = []
        entries: _Entries = []
        size = 0
        for index in self._likeness.order(chunks):
            frame.append(chunks[index])
            entries.append((ids[index], len(chunks[index])))
            size += len(chunks[index])
            if size >= FRAME_TARGET_BYTES:
                self._submit(entries, frame)
                frame, entries, size = [], [], 0
        if frame:
            self._submit(entries, frame)

    def _submit(self, entries: _Entries, frame: list[bytes]) -> None:
        self._unwritten.update(cid for cid, _ in entries)
        self._compressing.append((entries, self._pool().submit(self._encode, frame)))
        self._compressing_bytes += sum(length for _, length in entries)

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            number = min(len(os.sched_getaffinity(0)), MAX_THREADS)
            self._threads = ThreadPoolExecutor(number)
            for _ in range(number):
                self._codecs.put(FrameCodec(INGEST_LEVEL))
                self._buffers.put(memoryview(bytearray(WINDOW_BYTES)))
        return self._threads

    def _encode(self, frame: list[bytes]) -> bytes:
        codec = self._codecs.get()
        try:
            return codec.encode(frame)
        finally:
            self._codecs.put(codec)

    def _store_compressed(self, *, wait_above: int) -> None:
        """Store the frames that are ready, in order, and wait for them while more than *wait_above* bytes are not."""
        while self._compressing and (self._compressing_bytes > wait_above or self._compressing[0][1].done()):
            entries, payload = self._compressing.popleft()
            self._writer.add_frame(entries, payload.result())
            self._compressing_bytes -= sum(length for _, length in entries)
            self._unwritten.difference_update(cid for cid, _ in entries)

    def finish(self, *, discard: bool) -> Reply:
        """Store what was gathered, durably. Raises LocalStoreError."""
        if discard:
            for _, payload in self._compressing:
                payload.cancel()
            self._gathered, self._gathered_bytes = {}, 0
            self._compressing.clear()
            self._unwritten.clear()
            self._compressing_bytes = 0
        else:
            self._compress()
            self._store_compressed(wait_above=-1)
        self._writer.commit()
        replaced = self._writer.take_replaced()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
            self._codecs, self._buffers = queue.SimpleQueue(), queue.SimpleQueue()
        return Reply(process=os.getpid(), replaced=[bytes(cid) for cid in replaced])

    # -- compare

    def compare(self, request: CompareRequest) -> Reply:
        """The ranges that are what their recipes say, and with *read_back* all of whose chunks are sound in the store,
        have a recipe, an empty one; the others say what differs.
        """
        if request.first:
            self._sound.clear()
        self._db.refresh()
        pool = self._pool()
        checks = list(pool.map(self._differs, range(len(request.ranges)), request.ranges))
        if not request.read_back:
            return Reply(files=checks)
        wanted = {cid for source in request.ranges for cid in Recipe(source.recipe).iter_chunks()} - self._sound
        problem = self._read_back(wanted)
        if problem:
            return Reply(files=[SealedFile(check.ino, 0, None, check.error or problem) for check in checks])
        return Reply(files=checks)

    def _differs(self, index: int, source: SourceRange) -> SealedFile:
        def check(source: SourceRange) -> bytes:
            with open_source(source) as fd:
                self._check_source(fd, source)
            return b""

        return self._each(index, source, check)

    def _check_source(self, fd: int, source: SourceRange) -> None:
        buffer = self._buffers.get()
        try:
            start = held = 0
            for extent in Recipe(source.recipe):
                at, end = source.start + extent.start, source.start + extent.end
                if extent.is_hole:
                    self._check_zeros(fd, at, end, buffer)
                    continue
                if end > start + held:
                    start, held = at, os.preadv(fd, [buffer], at)
                if chunk_id(self._key, buffer[at - start : end - start]) != extent.chunk:
                    raise SourceChanged(f"bytes {at} to {end} are not what was stored")
        finally:
            self._buffers.put(buffer)

    @staticmethod
    def _check_zeros(fd: int, start: int, end: int, buffer: memoryview) -> None:
        at = start
        while at < end:
            got = os.preadv(fd, [buffer[: end - at]], at)
            if not got or bytes(buffer[:got]) != bytes(got):
                raise SourceChanged(f"bytes {start} to {end} are not what was stored")
            at += got

    def _read_back(self, wanted: set[ChunkId]) -> str:
        """What is wrong with the chunks in the store, if anything is. Frames are opened in threads, each once."""
        frames: dict[FrameNo, None] = {}
        for cid in wanted:
            try:
                place = find_place(self._db, cid)
            except StoreCorrupt as exc:
                return f"{exc}: run `sessfs fsck`"
            if place is None:
                return f"chunk {cid.hex()} is not in the store"
            frames[place.frame] = None
        self._sound.update(*self._pool().map(self._sound_chunks, self._records(sorted(frames))))
        for cid in wanted - self._sound:
            return f"chunk {cid.hex()} can't be read back from the store: run `sessfs fsck`"
        return ""

    def _records(self, frames: Iterable[FrameNo]) -> Iterator[bytes]:
        for frame in frames:
            yield self._db.get(FRAMES, FRAME_KEY.pack(frame)) or b""

    def _sound_chunks(self, record: bytes) -> list[ChunkId]:
        """The chunks of a frame record that match their names."""
        codec = self._codecs.get()
        try:
            return sound_chunks(self._key, codec, record)
        finally:
            self._codecs.put(codec)
