"""A bug in one handler fails that one call with EIO; the mount lives, and the next call works."""

from __future__ import annotations

import errno
import inspect
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyfuse3
import pytest

from sessfs.errors import PosixError
from sessfs.mount.boundary import FAULT_VARIABLE, is_handler
from sessfs.mount.boundary import errno_of as boundary_errno_of
from sessfs.mount.calls import CALLS
from sessfs.mount.fuseops import SessionOperations
from tests.support.mounted import Mounted
from tests.support.posix import RENAME_EXCHANGE, errno_of, forget_failed_writes, read_file, renameat2, write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAULTS = 6
"""More than the calls that mounting and looking at the mount may take for themselves."""
ATTEMPTS = 14
EXCEPTIONS = ("KeyError", "UnicodeDecodeError", "MemoryError", "RuntimeError")


@dataclass(frozen=True)
class Case:
    """A system call that reaches *handler*, given a session directory prepared by _prepare."""

    handler: str
    call: Callable[[Path], object]
    is_silent: bool = False
    """The kernel does not tell the caller: it only must not end the mount."""
    expected: int = 0
    """The errno without a fault."""


def _write_and_sync(session: Path) -> None:
    fd = os.open(session / "f", os.O_WRONLY)
    try:
        os.write(fd, b"x" * 5000)
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_uncached(session: Path) -> bytes:
    fd = os.open(session / "f", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


CASES = (
    Case("lookup", lambda session: os.stat(session / "unseen"), expected=errno.ENOENT),
    Case("getattr", lambda session: os.stat(session / "fresh"), is_silent=True),
    Case("setattr", lambda session: os.chmod(session / "f", 0o640)),
    Case("readlink", lambda session: os.readlink(session / "s")),
    Case("mknod", lambda session: os.mkfifo(session / "new")),
    Case("mkdir", lambda session: os.mkdir(session / "new")),
    Case("unlink", lambda session: os.unlink(session / "f")),
    Case("rmdir", lambda session: os.rmdir(session / "d")),
    Case("symlink", lambda session: os.symlink("x", session / "new")),
    Case("rename", lambda session: os.rename(session / "f", session / "new")),
    Case("rename", lambda session: renameat2(session / "f", session / "d", RENAME_EXCHANGE)),
    Case("link", lambda session: os.link(session / "f", session / "new")),
    Case("open", lambda session: read_file(session / "f")),
    Case("create", lambda session: write_file(session / "new", b"")),
    Case("read", _read_uncached),
    Case("write", _write_and_sync),
    Case("fsync", lambda session: _fsync(session / "f")),
    Case("fsyncdir", lambda session: _fsync(session)),
    Case("release", lambda session: read_file(session / "f"), is_silent=True),
    Case("opendir", lambda session: os.listdir(session / "d")),
    Case("readdir", lambda session: os.listdir(session / "d")),
    Case("releasedir", lambda session: os.listdir(session / "d"), is_silent=True),
    Case("statfs", os.statvfs),
    Case("setxattr", lambda session: os.setxattr(session / "f", "user.b", b"1")),
    Case("getxattr", lambda session: os.getxattr(session / "f", "user.a")),
    Case("listxattr", lambda session: os.listxattr(session / "f")),
    Case("removexattr", lambda session: os.removexattr(session / "f", "user.a")),
    Case("forget", lambda session: os.unlink(session / "f"), is_silent=True),
)


def _prepare(session: Path) -> None:
    session.mkdir()
    write_file(session / "f", b"content")
    write_file(session / "fresh", b"content")
    os.mkdir(session / "d")
    os.symlink("f", session / "s")
    os.setxattr(session / "f", "user.a", b"1")
    _fsync(session / "f")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with many sessions prepared alike, made by a mount without faults."""
    path = tmp_path_factory.mktemp("faults") / "state"
    with Mounted(state=path) as mounted:
        for number in range(len(CASES) * ATTEMPTS):
            _prepare(mounted.path / f"user{number}")
    return path


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number].handler}{number}")
def test_exception_in_a_handler_is_eio_for_that_call_alone(state: Path, number: int) -> None:
    case = CASES[number]
    exception = EXCEPTIONS[number % len(EXCEPTIONS)]
    log = state / "sessfs.log"
    logged = len(log.read_text())
    with Mounted(state=state, env={FAULT_VARIABLE: f"{case.handler}:{exception}:{FAULTS}"}) as mounted:
        pid = mounted.pid
        sessions = [mounted.path / f"user{number * ATTEMPTS + attempt}" for attempt in range(ATTEMPTS)]
        answers = [errno_of(case.call, session) for session in sessions]
        if case.handler == "write":
            # The kernel gave the pages up, and says so once to whoever syncs: here, not to the unmount.
            forget_failed_writes(mounted.path)
        assert mounted.status()["pid"] == pid, "the daemon did not live through it"
    text = log.read_text()[logged:]
    assert text.count(f"{exception}") >= FAULTS, "each fault is logged with its traceback"
    assert "Traceback" in text
    assert set(answers) <= {0, case.expected, errno.EIO}, answers
    assert answers[-1] == case.expected, "the call does not work when the faults are over"
    assert case.is_silent or errno.EIO in answers, answers


def test_every_handler_of_the_adapter_is_behind_the_boundary_and_has_a_case() -> None:
    handlers = {
        name
        for name, function in inspect.getmembers(SessionOperations, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert {case.handler for case in CASES} == handlers == {call.name for call in CALLS.values()}
    for name in handlers:
        assert is_handler(getattr(SessionOperations, name)), name


@pytest.mark.parametrize("exception", [KeyError, UnicodeError, MemoryError, RuntimeError, AssertionError, struct.error])
def test_boundary_turns_any_exception_into_eio(exception: type[Exception]) -> None:
    assert boundary_errno_of(exception("in the middle"), "read of inode 1") == errno.EIO


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (pyfuse3.FUSEError(errno.EXDEV), errno.EXDEV),
        (PosixError(errno.ENOTEMPTY), errno.ENOTEMPTY),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.EBADF, "closed"), errno.EIO),
    ],
)
def test_boundary_passes_on_what_a_rule_says(exception: Exception, expected: int) -> None:
    assert boundary_errno_of(exception, "write of inode 1") == expected
