"""Hot files: plain sparse files `STATE/hot/<ino>.<number>` (both hexadecimal) with the bytes of files being modified.

A hot file's number is never reused, so a new hot content of an inode is always a new file and a crash can't mix two.
Open descriptors are kept, the least recently used closed first.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from sessfs.errors import LocalStoreError, PosixError, SessfsError, StoreFull
from sessfs.types import Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from sessfs.format.chunk import Buffer

MAX_OPEN = 512
SCRATCH_BYTES = 1 << 20
"""What the kernel asks for at once at most. A new block of this size costs ten times what reading into this one does,
since the system clears its pages first.
"""
SCRATCH_MIN_BYTES = 64 << 10


class HotFlush:
    """A file or directory that is to be flushed to the disk, by one thread. It is closed by that, or by `close`."""

    __slots__ = ("_data_only", "_failed", "_fd", "_number", "_open")

    def __init__(
        self,
        open_it: Callable[[], int],
        failed: set[int],
        number: int = 0,
        *,
        now: bool = True,
        data_only: bool = True,
    ) -> None:
        """*open_it* gives the descriptor, *now* or when it is run, of the hot file of that number, or of the directory.
        *failed* is that of HotFiles. Unless *data_only*, its mtime is flushed, too. Raises OSError.
        """
        self._data_only = data_only
        self._open = open_it
        self._failed = failed
        self._number = number
        self._fd = open_it() if now else None

    def run(self) -> None:
        """Flush the data and close. Raises LocalStoreError, which is StoreFull where the disk is."""
        fd, self._fd = self._fd, None
        try:
            self._check()
            if fd is None:
                fd = self._open()
            self._flush(fd)
            # The system may have told of an error only the one who flushed the file at the same time.
            self._check()
        except OSError as exc:
            kind = StoreFull if exc.errno in (errno.ENOSPC, errno.EDQUOT) else LocalStoreError
            raise kind(f"a hot file could not be flushed: {exc.strerror}") from exc
        finally:
            if fd is not None:
                os.close(fd)

    def _flush(self, fd: int) -> None:
        try:
            if self._data_only:
                os.fdatasync(fd)
            else:
                os.fsync(fd)
        except OSError:
            if self._number:
                self._failed.add(self._number)
            raise

    def _check(self) -> None:
        if self._number in self._failed:
            raise LocalStoreError("a hot file could not be flushed, and was not written anew since")

    def close(self) -> None:
        """Give it up, if it was not run."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class HotFiles:
    """The directory of hot files. The request loop uses all of it; a `HotFlush` alone may be run by other threads."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fds: dict[int, int] = {}
        self._names_made = self._names_synced = 0
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._allocated: dict[int, int] = {}
        """What `allocated_bytes` found, of hot files that were not written since."""
        self.failed: set[int] = set()
        """Numbers of hot files whose flush failed. The system then takes their pages for written, and says so to
        whoever flushes next, so no later flush of one is worth anything. Any thread adds to it.
        """

    def path(self, ino: Ino, number: int) -> Path:
        """Where the hot file lies."""
        return self._directory / f"{ino:x}.{number:x}"

    def create(self, ino: Ino, number: int, size_bytes: int) -> None:
        """Make an empty (sparse) hot file that reads as *size_bytes* zeros. Raises StoreFull: then there is none."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(f"{ino:x}.{number:x}", flags, 0o600, dir_fd=self._dir_fd)
        except FileExistsError:
            raise
        except OSError as exc:
            raise self._refused(exc) from exc
        self._names_made += 1
        self._keep(number, fd)
        try:
            os.ftruncate(fd, size_bytes)
        except OSError as exc:
            self.delete(ino, number)
            raise self._refused(exc) from exc

    def copy(self, ino: Ino, number: int, new_number: int) -> None:
        """Make hot file *new_number* with the content of *number*, sharing or copying it in the kernel, holes kept."""
        if number in self.failed:
            for _ in self.rewrite(ino, number, new_number):
                pass
            return
        source = os.dup(self.fd(ino, number))
        try:
            size = os.fstat(source).st_size
            self.create(ino, new_number, size)
            target = self.fd(ino, new_number)
            at = 0
            while at < size:
                try:
                    at = os.lseek(source, at, os.SEEK_DATA)
                except OSError as exc:
                    if exc.errno != errno.ENXIO:
                        raise
                    # There is no more data.
                    break
                end = os.lseek(source, at, os.SEEK_HOLE)
                while at < end:
                    at += os.copy_file_range(source, target, end - at, at, at)
        except OSError as exc:
            self.delete(ino, new_number)
            raise self._refused(exc) from exc
        finally:
            os.close(source)

    def rewrite(self, ino: Ino, number: int, new_number: int) -> Generator[None]:
        """As `copy`, by reading and writing, which is what one whose flush failed needs: its content may be in memory
        alone, and the kernel shares, or copies, what is on the disk. A slice at each step; until the last nothing may
        change the hot file. One that is not gone through to its end leaves nothing.
        """
        try:
            self.create(ino, new_number, os.fstat(self.fd(ino, number)).st_size)
            for start, end in self._iter_data(ino, number):
                self.pwrite(ino, new_number, self.view(ino, number, end - start, start), start)
                yield
        except BaseException:
            self.delete(ino, new_number)
            raise

    def _iter_data(self, ino: Ino, number: int) -> Iterator[tuple[int, int]]:
        """What is not a hole, in slices."""
        end = 0
        while True:
            fd = self.fd(ino, number)
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    return
                raise
            end = min(os.lseek(fd, start, os.SEEK_HOLE), start + SCRATCH_BYTES)
            yield start, end

    def fd(self, ino: Ino, number: int) -> int:
        """A descriptor for reading and writing, valid until the next call of any method."""
        fd = self._fds.pop(number, None)
        if fd is None:
            fd = os.open(f"{ino:x}.{number:x}", os.O_RDWR | os.O_CLOEXEC, dir_fd=self._dir_fd)
            self._keep(number, fd)
        else:
            self._fds[number] = fd
        return fd

    def _keep(self, number: int, fd: int) -> None:
        self._fds[number] = fd
        if len(self._fds) > MAX_OPEN:
            oldest = next(iter(self._fds))
            os.close(self._fds.pop(oldest))

    def pread(self, ino: Ino, number: int, length: int, offset: int) -> bytes:
        """Exactly *length* bytes at *offset*; past the end of the hot file they are zeros."""
        got = os.pread(self.fd(ino, number), length, offset)
        if len(got) < length:
            got += bytes(length - len(got))
        return got

    def view(self, ino: Ino, number: int, length: int, offset: int) -> Buffer:
        """As `pread`; what it returns is valid until the next call of this method."""
        if not SCRATCH_MIN_BYTES <= length <= len(self._scratch):
            return self.pread(ino, number, length, offset)
        scratch = self._scratch[:length]
        got = os.preadv(self.fd(ino, number), [scratch], offset)
        if got < length:
            scratch[got:] = bytes(length - got)
        return scratch

    def pwrite(self, ino: Ino, number: int, content: Buffer, offset: int) -> None:
        """Write all of *content* at *offset*; raises StoreFull when the disk is full."""
        fd = self.fd(ino, number)
        self._allocated.pop(number, None)
        view = memoryview(content)
        try:
            while view:
                written = os.pwrite(fd, view, offset)
                view = view[written:]
                offset += written
        except OSError as exc:
            raise self._refused(exc) from exc

    def truncate(self, ino: Ino, number: int, size_bytes: int) -> None:
        """Cut or extend with zeros."""
        self._allocated.pop(number, None)
        try:
            os.ftruncate(self.fd(ino, number), size_bytes)
        except OSError as exc:
            raise self._refused(exc) from exc

    def _refused(self, exc: OSError) -> SessfsError:
        if exc.errno in (errno.EFBIG, errno.EINVAL):
            # The filesystem below has a largest file, and so has this one.
            return PosixError(errno.EFBIG, "the file would be larger than the state directory's filesystem allows")
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(f"the disk of {self._directory} takes no more: {exc.strerror}")
        return LocalStoreError(f"can't write to {self._directory}: {exc.strerror}")

    def is_filled(self, ino: Ino, number: int, start: int, end: int) -> bool:
        """True when no byte of [start, end) lies in a hole, as far as the filesystem below says."""
        try:
            return os.lseek(self.fd(ino, number), start, os.SEEK_HOLE) >= end
        except OSError:
            return False

    def allocated_bytes(self, ino: Ino, number: int) -> int:
        """Bytes of disk that the hot file takes; does not open it, since this is asked of all of them at once."""
        fd = self._fds.get(number)
        found = os.stat(f"{ino:x}.{number:x}", dir_fd=self._dir_fd) if fd is None else os.fstat(fd)
        self._allocated[number] = allocated = found.st_blocks * 512
        return allocated

    def last_allocated_bytes(self, ino: Ino, number: int) -> int:
        """As `allocated_bytes`, looked at again only when the hot file was written since: the filesystem below may have
        come to another figure by itself. Every answer with attributes has this.
        """
        found = self._allocated.get(number)
        return self.allocated_bytes(ino, number) if found is None else found

    def set_mtime(self, ino: Ino, number: int, mtime_ns: int) -> bool:
        """Give the hot file this mtime, or the nearest that the filesystem below knows; False where it can't be set."""
        fd, times = self._fds.get(number), (mtime_ns, mtime_ns)
        try:
            if fd is None:
                os.utime(f"{ino:x}.{number:x}", ns=times, dir_fd=self._dir_fd)
            else:
                os.utime(fd, ns=times)
        except OSError:
            return False
        return True

    def mtime_ns(self, ino: Ino, number: int) -> int:
        """The hot file's own mtime: of its last write, or what `set_mtime` gave it after that."""
        return os.stat(f"{ino:x}.{number:x}", dir_fd=self._dir_fd).st_mtime_ns

    def flush(self, ino: Ino, number: int, *, now: bool = True, data_only: bool = True) -> HotFlush:
        """The flush of the hot file, to be run by any thread, or closed; *data_only*: its mtime may stay behind. Unless
        it is opened *now*, the hot file must be there until it is run. Raises OSError.
        """
        name = f"{ino:x}.{number:x}"

        def open_it() -> int:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dir_fd)

        return HotFlush(open_it, self.failed, number, now=now, data_only=data_only)

    def flush_names(self) -> tuple[HotFlush, int] | None:
        """When hot files were created whose names were not flushed: the flush of the directory, and what to give
        `names_synced` once that is done. Else None. Raises OSError.
        """
        if self._names_made == self._names_synced:
            return None
        return HotFlush(lambda: os.dup(self._dir_fd), self.failed), self._names_made

    def names_synced(self, mark: int) -> None:
        """The directory was flushed after `flush_names` gave *mark*."""
        self._names_synced = max(self._names_synced, mark)

    def delete(self, ino: Ino, number: int) -> None:
        """Remove the hot file; one that is not there is fine."""
        self._allocated.pop(number, None)
        fd = self._fds.pop(number, None)
        if fd is not None:
            os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{ino:x}.{number:x}", dir_fd=self._dir_fd)

    def iter_files(self) -> Iterator[tuple[Ino, int, int]]:
        """(inode, number, length in bytes) of every hot file in the directory."""
        for entry in os.scandir(self._directory):
            ino, _, number = entry.name.partition(".")
            try:
                yield Ino(int(ino, 16)), int(number, 16), entry.stat().st_size
            except ValueError:
                continue

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        os.close(self._dir_fd)
