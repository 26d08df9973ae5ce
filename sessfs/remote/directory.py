"""An object store in a plain directory (file:///dir): for one machine, a network mount, or tests.

An object is one file with exactly its bytes, at the path of its key. Three things differ from the key: in each part
`%`, `+` and a leading `.` are written as %XX; parts of PIECE_BYTES and more are cut into directories whose names end
in `+`, because an escaped part may be longer than the 255 bytes of a file name. `.lock` serialises replacements
between processes and hosts (flock); `.new/` holds what is being written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote_to_bytes

import trio

from sessfs.errors import RemoteConflict, RemoteCorrupt, RemoteDenied, RemoteError, RemoteMissing, RemoteUnavailable
from sessfs.remote.objectstore import (
    LIST_PAGE,
    Blob,
    Capabilities,
    Entry,
    Meter,
    ObjectStore,
    StoreStatistics,
    check_key,
    check_range,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

PIECE_BYTES = 80  # three times that, the worst case of escaping, still fits a file name of 255
ABANDONED_S = 86_400.0  # a file in .new/ older than this belongs to a writer that died

_ESCAPED = re.compile(rb"[%+]|^\.")
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE)


def _escape(piece: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: b"%%%02X" % match[0][0], piece) or b"%"


def _unescape(name: bytes) -> bytes:
    return b"" if name == b"%" else unquote_to_bytes(name)


def key_to_path(key: str) -> bytes:
    """The path of *key* below the store's directory."""
    names: list[bytes] = []
    for part in check_key(key).encode().split(b"/"):
        rest = part
        while len(rest) >= PIECE_BYTES:
            names.append(_escape(rest[:PIECE_BYTES]) + b"+")
            rest = rest[PIECE_BYTES:]
        names.append(_escape(rest))
    return b"/".join(names)


class DirectoryStore(ObjectStore):
    """Objects as files below one directory, which has to exist.

    Replacing is atomic and durable (temporary file, fsync, rename, fsync of the directory); conditional writes hold
    between all processes that lock the same `.lock`, so also between hosts on a filesystem with working flock (NFSv4).
    A directory that goes away (an unmounted disk) is RemoteDenied, never an empty store.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, workers: int = 8, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Raises RemoteDenied if *directory* is missing or may not be written. Blocks for a few system calls."""
        self._root = os.fsencode(os.path.abspath(directory))
        self._name = os.fsdecode(self._root)
        self._now_ns = now_ns
        self._threads = trio.CapacityLimiter(workers)
        self._meter = Meter()
        self._replacing = threading.Lock()
        self._unfinished: set[bytes] = set()
        """What this store is writing into .new/."""
        with self._errors("open", ""):
            if not os.path.isdir(self._path(b".new")):
                os.mkdir(self._path(b".new"))
            os.close(os.open(self._path(b".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._identity = self._identify()
            self._drop_abandoned()

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """As ObjectStore; reads the one file."""
        check_range(start, length)
        with self._meter.request("get"):
            blob = await self._run("get", key, lambda: self._get(key, start or 0, length))
        self._meter.received(len(blob.body))
        return blob

    async def delete_old_versions(self, wanted: Callable[[str], bool]) -> int:
        """As ObjectStore; there are no old versions."""
        return await self._run("delete", ".new", self._drop_unfinished)

    async def put(self, key: str, body: bytes) -> str:
        """As ObjectStore; on return the file and its directory entry are on the disk."""
        with self._meter.request("put"):
            etag = await self._run("put", key, lambda: self._put(key, body, lambda current: None))
        self._meter.sent(len(body))
        return etag

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        """As ObjectStore; compared and replaced under the store's lock."""

        def check(current: str | None) -> None:
            if current != etag:
                raise RemoteConflict(
                    f"{self._name}/{key} is not as expected: "
                    f"it {'is absent' if current is None else f'has etag {current}'}, "
                    f"expected {'absent' if etag is None else f'etag {etag}'}; read it again"
                )

        with self._meter.request("put_if"):
            new = await self._run("conditional put", key, lambda: self._put(key, body, check))
        self._meter.sent(len(body))
        return new

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        """As ObjectStore; reads the directories that can hold such keys, sorted one by one."""
        if limit < 1:
            raise ValueError(f"a page of {limit} entries can't be asked for")
        with self._meter.request("list"):
            return await self._run("list", prefix, lambda: self._list(prefix.encode(), start_after.encode(), limit))

    async def delete(self, keys: Sequence[str]) -> None:
        """As ObjectStore; also removes directories that become empty."""
        for key in keys:
            check_key(key)
        with self._meter.request("delete"):
            await self._run("delete", keys[0] if keys else "", lambda: self._delete(keys))

    def capabilities(self) -> Capabilities:
        """What a directory is, without trying."""
        return Capabilities(
            endpoint="directory",
            location=f"file://{self._name}",
            addressing="none",
            checksum="none",
            conditional_writes=None,
            delete_batch=None,
        )

    def statistics(self) -> StoreStatistics:
        """Counts since it was opened."""
        return self._meter.statistics()

    async def aclose(self) -> None:
        """Nothing is held open."""
        await trio.lowlevel.checkpoint()

    async def _run(self, op: str, key: str, work: Callable[[], T]) -> T:
        def checked() -> T:
            with self._errors(op, key):
                if self._identify() != self._identity:
                    raise self._gone(op)
                return work()

        return await trio.to_thread.run_sync(checked, limiter=self._threads, abandon_on_cancel=True)

    @contextmanager
    def _errors(self, op: str, key: str) -> Iterator[None]:
        """Turn an OSError of *op* into ours."""
        try:
            yield
        except OSError as exc:
            raise self._translate(op, key, exc) from exc

    def _translate(self, op: str, key: str, exc: OSError) -> RemoteError:
        what = f"{op} of {key or 'everything'} in {self._name}"
        if exc.errno in _NOT_THERE:
            if op != "get" or self._root_changed():
                return self._gone(op)
            return RemoteMissing(f"{self._name} has no {key}")
        if exc.errno in _DENIED:
            return RemoteDenied(f"{what} was refused: {exc.strerror}; give this user read and write access to it")
        return RemoteUnavailable(f"{what} failed: {exc.strerror}; check that disk")

    def _gone(self, op: str) -> RemoteDenied:
        return RemoteDenied(
            f"{op} failed: the directory {self._name} is missing or is not the one that was opened; "
            "create it, or mount its disk again"
        )

    def _identify(self) -> tuple[int, int]:
        """The directory and its filesystem: another one at the same path is not this store."""
        there = os.stat(self._path(b".lock"))
        return (there.st_dev, there.st_ino)

    def _root_changed(self) -> bool:
        try:
            return self._identify() != self._identity
        except OSError:
            return True

    def _path(self, relative: bytes) -> bytes:
        return os.path.join(self._root, relative) if relative else self._root

    def _drop_abandoned(self) -> None:
        before_s = self._now_ns() / 1e9 - ABANDONED_S
        for item in os.scandir(self._path(b".new")):
            if item.stat(follow_symlinks=False).st_mtime < before_s:
                os.unlink(item.path)

    def _drop_unfinished(self) -> int:
        """Remove what nobody is writing any more, however young; returns how many that were."""
        dropped = 0
        for item in os.scandir(self._path(b".new")):
            if item.path not in self._unfinished and _is_unlocked(item.path):
                _unlink_if_there(item.path)
                dropped += 1
        if dropped:
            _fsync_directory(self._path(b".new"))
        return dropped

    def _get(self, key: str, start: int, length: int | None) -> Blob:
        fd = os.open(self._path(key_to_path(key)), os.O_RDONLY | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            about = os.fstat(fd)
            if stat.S_ISDIR(about.st_mode):
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            end = about.st_size if length is None else start + length
            if end > about.st_size or (start and start >= about.st_size):
                raise RemoteCorrupt(
                    f"{self._name}/{key} has {about.st_size} bytes, but those from {start} to {max(start + 1, end)} "
                    "were asked for: it is cut short; run `sessfs fsck --remote`"
                )
            file.seek(start)
            body = file.read(end - start) if end > start else b""
        if len(body) != end - start:
            raise RemoteUnavailable(f"reading {self._name}/{key} gave {len(body)} of {end - start} bytes")
        return Blob(body, _etag(about))

    def _put(self, key: str, body: bytes, check: Callable[[str | None], None]) -> str:
        """Write *body* at *key* if *check*, given the present etag, does not raise."""
        path = self._path(key_to_path(key))
        temporary = self._path(b".new/" + secrets.token_hex(16).encode())
        self._unfinished.add(temporary)
        try:
            with open(temporary, "xb", buffering=0) as file:
                # Until this process ends: tells whether somebody is still writing.
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
                _write_all(file.fileno(), body)
                with self._exclusive():
                    before = _lstat_or_none(path)
                    check(_etag(before) if before else None)
                    # Strictly later than what it replaces, so that no etag comes twice, however coarse the clock.
                    mtime_ns = max(self._now_ns(), before.st_mtime_ns + 1 if before else 0)
                    os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
                    os.fsync(file.fileno())
                    self._make_parents(os.path.dirname(path))
                    os.rename(temporary, path)
                    _fsync_directory(os.path.dirname(path))
                return _etag(os.fstat(file.fileno()))
        except BaseException:
            _unlink_if_there(temporary)
            raise
        finally:
            self._unfinished.discard(temporary)

    def _make_parents(self, directory: bytes) -> None:
        missing: list[bytes] = []
        while directory != self._root and not os.path.isdir(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        for path in reversed(missing):
            os.mkdir(path)
            _fsync_directory(os.path.dirname(path))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock of the store against threads and processes; released by the kernel if this process dies."""
        # NFS makes flock a lock of the whole process, hence the thread lock as well.
        with self._replacing:
            fd = os.open(self._path(b".lock"), os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def _delete(self, keys: Sequence[str]) -> None:
        with self._exclusive():
            for key in keys:
                path = self._path(key_to_path(key))
                try:
                    os.unlink(path)
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    continue
                self._drop_empty_parents(os.path.dirname(path))

    def _drop_empty_parents(self, directory: bytes) -> None:
        """Remove directories that became empty and make the last removal durable; the caller holds the lock."""
        while directory != self._root:
            try:
                os.rmdir(directory)
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                break
            directory = os.path.dirname(directory)
        _fsync_directory(directory)

    def _list(self, prefix: bytes, start_after: bytes, limit: int) -> list[Entry]:
        found: list[Entry] = []
        for key, path in self._walk(self._root, b"", prefix, start_after):
            about = _lstat_or_none(path)
            if about is None:
                continue  # deleted since
            found.append(Entry(key.decode(), about.st_size, _etag(about), about.st_mtime_ns / 1e9))
            if len(found) == limit:
                break
        if self._root_changed():
            raise self._gone("list")
        return found

    def _walk(self, directory: bytes, base: bytes, prefix: bytes, start_after: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, path) below *directory*, whose keys all begin with *base*, in the order of the keys.

        A directory sorts as its name and `/`, except one that continues a long part, which sorts as its name alone;
        that is the order of the keys because a continued piece is longer than any other name beside it.
        """
        try:
            with os.scandir(directory) as items:
                children = sorted(
                    (_child_key(item.name, item.is_dir(follow_symlinks=False)), item.name, item.is_dir())
                    for item in items
                    if not item.name.startswith(b".")
                )
        except FileNotFoundError:
            return  # removed since it became empty; if it was the root, the caller finds out
        for name, on_disk, is_directory in children:
            key = base + name
            path = os.path.join(directory, on_disk)
            if not is_directory:
                if key.startswith(prefix) and key > start_after:
                    yield key, path
            elif (key.startswith(prefix) or prefix.startswith(key)) and not _all_before(key, start_after):
                yield from self._walk(path, key, prefix, start_after)


def _child_key(name: bytes, is_directory: bool) -> bytes:
    if not is_directory:
        return _unescape(name)
    return _unescape(name[:-1]) if name.endswith(b"+") else _unescape(name) + b"/"


def _all_before(base: bytes, start_after: bytes) -> bool:
    """Whether every key that begins with *base* is less than *start_after*."""
    return base < start_after and not start_after.startswith(base)


def _etag(about: os.stat_result) -> str:
    return f"{about.st_mtime_ns:x}-{about.st_size:x}-{about.st_ino:x}"


def _lstat_or_none(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_all(fd: int, body: bytes) -> None:
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.fsync(fd)


def _fsync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_unlocked(path: bytes) -> bool:
    """Whether the file is there, and whoever made it has let go of it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _unlink_if_there(path: bytes) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
