"""The state directory: who holds it, which version wrote it, whether it was closed cleanly, and its hash key."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from pathlib import Path

from sessfs.config import STATE_VERSION
from sessfs.errors import StateInUse, StateTooNew, StoreCorrupt
from sessfs.format.chunk import HASH_KEY_BYTES

HASH_KEY_FILE = "hash-key"
CLEAN_MARK = "clean"
OWES_SWEEP = b"sweep\n"
UNSENT = "unsent"
LOCK_TRIES = 11
LOCK_PAUSE_S = 0.02


class StateDirectory:
    """An open, locked state directory. Held for the life of the daemon; the lock goes with the process."""

    def __init__(self, path: Path) -> None:
        """Raises StateInUse with the holder's pid, or StateTooNew. `was_clean` tells whether the last daemon closed it,
        `owes_sweep` whether chunks may be there that nothing names.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._open()
        except BaseException:
            os.close(self._directory)
            raise

    def _open(self) -> None:
        path = self.path
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock()
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)
            self._check_version()
            self.was_clean, self.owes_sweep = self._take_clean_mark()
        except BaseException:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        """Whoever only looks whether the state is in use holds the lock for an instant: that is waited for."""
        for attempt in range(LOCK_TRIES):
            if attempt:
                time.sleep(LOCK_PAUSE_S)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return
        pid = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
        raise StateInUse(f"the state {self.path} is in use by process {pid}: unmount it there first (sessfs umount)")

    def _check_version(self) -> None:
        file = self.path / "format"
        if not file.exists():
            write_durably(file, json.dumps({"version": STATE_VERSION}).encode() + b"\n")
            return
        try:
            version = int(json.loads(file.read_bytes())["version"])
        except (ValueError, KeyError, TypeError) as exc:
            raise StoreCorrupt(f'{file} can\'t be read: {exc}; restore it as {{"version": {STATE_VERSION}}}') from exc
        if version > STATE_VERSION:
            raise StateTooNew(
                f"the state {self.path} has format {version}, this sessfs knows up to {STATE_VERSION}: upgrade sessfs"
            )

    def _take_clean_mark(self) -> tuple[bool, bool]:
        """Whether the last daemon closed the state, and whether chunks that nothing names are still to be looked for;
        from here on it counts as not closed.
        """
        fresh = not (self.path / "meta").exists()
        owed = read_clean_mark(self.path)
        if owed is None:
            return fresh, not fresh
        (self.path / CLEAN_MARK).unlink()
        _sync_directory(self.path)
        return True, owed

    def where(self) -> Path | None:
        """Where the directory is now, which may have been renamed since it was opened; None if it was removed."""
        if os.fstat(self._directory).st_nlink == 0:
            return None
        return Path(os.readlink(f"/proc/self/fd/{self._directory}"))

    def mark_clean(self, *, owes_sweep: bool = False) -> None:
        """The state is closed, everything in it durable: the next start need not look for what a crash leaves. With
        *owes_sweep* it still looks for chunks that nothing names: a crash called for that, and it was not ended.
        """
        where = self.where()
        if where is not None:
            write_durably(where / CLEAN_MARK, OWES_SWEEP if owes_sweep else b"")

    def close(self) -> None:
        """Release the lock. Closing again does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            os.close(self._directory)
            self._lock = -1


def read_clean_mark(state_dir: Path) -> bool | None:
    """None when the state was not closed cleanly; else whether the next start looks for chunks that nothing names."""
    try:
        return bool((state_dir / CLEAN_MARK).read_bytes())
    except FileNotFoundError:
        return None


def lock_holder(state_dir: Path) -> int | None:
    """Process id of the daemon that holds the state, None when nobody does."""
    try:
        fd = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 32, 0).strip() or b"0")
    finally:
        os.close(fd)
    return None


def read_hash_key(state_dir: Path) -> bytes | None:
    """The key of all chunk ids in this state, None in a new one. Raises StoreCorrupt when the file is damaged."""
    try:
        key = (state_dir / HASH_KEY_FILE).read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != HASH_KEY_BYTES:
        raise StoreCorrupt(f"{state_dir / HASH_KEY_FILE} holds {len(key)} bytes, not {HASH_KEY_BYTES}")
    return key


def ensure_hash_key(state_dir: Path, given: bytes | None) -> bytes:
    """The state's key; in a new state the *given* one, or a random one, durably from now on. Raises StoreCorrupt when
    the key is lost: without it the chunks here can't be told apart from damage.
    """
    key = read_hash_key(state_dir)
    if key is None:
        if (state_dir / "chunks").exists():
            raise StoreCorrupt(f"{state_dir / HASH_KEY_FILE} is missing: restore it from a backup of the state")
        key = given or secrets.token_bytes(HASH_KEY_BYTES)
        write_durably(state_dir / HASH_KEY_FILE, key)
    return key


def note_unsent(directory: Path, text: str) -> None:
    """At the end of a daemon: which sessions its remote lacks something of. Empty for none."""
    if text:
        write_durably(directory / UNSENT, text.encode())
    else:
        (directory / UNSENT).unlink(missing_ok=True)


def read_unsent(directory: Path) -> str:
    """What the last daemon noted; empty while one runs, and for a state that can't be read."""
    try:
        return (directory / UNSENT).read_text(errors="replace")
    except OSError:
        return ""


def write_durably(file: Path, content: bytes) -> None:
    """Make *file* hold *content*, whole or not at all whatever happens, and durable on return; mode 0600."""
    temporary = file.with_suffix(".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, file)
    _sync_directory(file.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
