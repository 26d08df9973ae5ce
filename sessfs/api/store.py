"""`Store` and `Session`: what a program does with sessions, whatever kind of place they lie in.

The three kinds of stores override what they can do; what they can't says so by UsageError. Everything blocks, and one
store is for one thread at a time.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sessfs.api.files import open_file
from sessfs.api.records import Entry, SessionRecord, SnapshotRecord, entry_of
from sessfs.api.treefiles import TreeFiles
from sessfs.errors import PosixError, UsageError
from sessfs.mount import places, syscalls
from sessfs.sessions.checking import check_files
from sessfs.sessions.exporting import ExportFormat, ExportReport, ExportStep, check_dest, export_tree, guess_format
from sessfs.sessions.names import check_name
from sessfs.sessions.trees import Tree, normalize

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Collection, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from sessfs.sessions.checking_files import CheckReport
    from sessfs.sessions.erasing_report import ErasureReport
    from sessfs.sessions.importing_report import ImportProgress, ImportReport

    PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

SHOWN = 10
"""So many sessions are named in the error for one that is not there."""


class Store(ABC):
    """Sessions in one place; made by `open_store`, and closed by leaving its `with` or by `close`."""

    where: str
    """The mountpoint, state directory or URL, for people."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Give everything back; of a state directory, all changes are durable on return. Raises SessfsError."""

    # -- what there is

    @abstractmethod
    def sessions(self) -> Iterator[SessionRecord]:
        """Every session. Raises SessfsError."""

    def session(self, name: PathLike) -> Session:
        """The session of that name. Raises PosixError (ENOENT) when there is none, UsageError for what is no name, and
        other SessfsErrors when it can't be known.
        """
        encoded = session_name(name)
        if not self._has(encoded):
            raise self._no_session(encoded)
        return Session(self, encoded)

    def _no_session(self, name: bytes) -> PosixError:
        """The error for a session that is not there. Raises SessfsError when it can't be known what is."""
        return no_session(self.where, name, [record.name for record in self.sessions()])

    @abstractmethod
    def _has(self, name: bytes) -> bool:
        """Whether there is such a session. Raises SessfsError."""

    @abstractmethod
    def _tree(self, name: bytes, at: int | None, *, steady: bool) -> Tree:
        """The session's tree, to be closed: as it is now, or at snapshot *at*. With *steady* nobody's changes are seen
        in it while it is read, also where that costs a snapshot. Raises UsageError when there is none.
        """

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """How the store does, as JSON has it: for a mount what `sessfs status --json` prints."""

    # -- what can be done

    def sync(self, timeout_s: float = 300.0, progress: Callable[[dict[str, Any]], None] | None = None) -> int:
        """Return the bytes sent once the remote has every change made before. Raises Unsynced, naming sessions, when
        it has not after *timeout_s*; *progress* gets `uploaded_bytes` and `pending_bytes` meanwhile.
        """
        raise self._cannot("sync")

    def limits(
        self, session: PathLike | None = None, changes: Mapping[str, int | None] | None = None
    ) -> dict[str, Any]:
        """The limits of the mount, or of one session, and what is used of them, as `sessfs limit --json` prints them;
        first *changes* are set: `max_session_bytes` and so on → the limit, 0 for off, None for the default.
        """
        raise self._cannot("limit sessions")

    def expire(self, *, dry_run: bool = False, trust_clock: bool = False) -> dict[str, Any]:
        """A round of expiry, as `sessfs expire --json` prints it."""
        raise self._cannot("expire sessions")

    def trash(self) -> list[dict[str, Any]]:
        """Removed sessions, as `sessfs trash list --json` prints them."""
        raise self._cannot("look into the trash")

    def restore_from_trash(self, name: PathLike, as_name: PathLike | None = None) -> Session:
        """Give back the session of that name that was removed last. Raises UsageError when there is none, or the name
        is taken.
        """
        raise self._cannot("restore from the trash")

    def empty_trash(self, name: PathLike | None = None) -> list[str]:
        """Remove for good what is in the trash, or what of it had that *name*; the names of what is gone. Raises
        UsageError for an empty name, and when nothing there has that name.
        """
        raise self._cannot("empty the trash")

    def import_tree(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        verify: bool = True,
        dry_run: bool = False,
        skip_unsafe: bool = False,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> ImportReport:
        """Make sessions of *source*: a tree of profiles, one profile, a tar or a zip, as `sessfs import` does.

        *name*: what the one session in it is called. With *verify* every byte is compared before a session counts as
        imported. Sessions that can't be are in the report as refused. Raises UsageError, SessfsError when nothing, or
        nothing more, can be imported; what was before stays.
        """
        raise self._cannot("import")

    # -- for Session

    @abstractmethod
    def _history(self, name: bytes) -> list[SnapshotRecord]:
        """See Session.history."""

    def _snapshot(self, name: bytes, mark: str) -> SnapshotRecord:
        """See Session.snapshot."""
        raise self._cannot("take a snapshot")

    def _mark(self, name: bytes, sequence: int, mark: str) -> SnapshotRecord:
        """See Session.mark."""
        raise self._cannot("mark a snapshot")

    @abstractmethod
    def _judge(self, name: bytes, sequence: int, verdict: str) -> None:
        """Note what a check found; where nothing can be noted, nothing happens."""

    @abstractmethod
    def _checked(self, name: bytes, verdict: str) -> None:
        """Heed what a check of the session as it is found; where nothing can be noted, nothing happens."""

    def _rollback(self, name: bytes, sequence: int | None) -> SnapshotRecord:
        """See Session.rollback."""
        raise self._cannot("roll back")

    def _clone(self, name: bytes, new_name: bytes) -> None:
        """See Session.clone."""
        raise self._cannot("clone")

    def _remove(self, name: bytes, *, purge: bool) -> ErasureReport | None:
        """See Session.remove."""
        raise self._cannot("remove")

    def _cannot(self, what: str) -> UsageError:
        return UsageError(f"{self.where} can't {what}: that takes a mount")


class Session:
    """One session of a store."""

    def __init__(self, store: Store, name: bytes) -> None:
        self._store = store
        self._name = name

    @property
    def name(self) -> str:
        """Its name; bytes that are no UTF-8 are there as os.fsdecode gives them."""
        return os.fsdecode(self._name)

    def __repr__(self) -> str:
        return f"<Session {self.name!r} of {self._store.where}>"

    # -- reading

    def walk(self, at: int | None = None) -> Iterator[Entry]:
        """Every entry, the session's own directory first, directories before what is in them; as of snapshot *at*."""
        tree = self._store._tree(self._name, at, steady=False)
        try:
            for node in tree.walk():
                yield entry_of(node)
        finally:
            tree.close()

    def files(self, at: int | None = None) -> Iterator[Entry]:
        """The regular files of `walk`."""
        return (entry for entry in self.walk(at) if entry.is_file)

    def open(self, path: PathLike, at: int | None = None) -> io.BufferedReader:
        """The file at *path*, for reading: it is seekable, and reads what is asked for, chunk by chunk. To be closed.

        Raises PosixError (ENOENT, EISDIR, ELOOP for a symlink, which is never followed), SessfsError.
        """
        tree = self._store._tree(self._name, at, steady=False)
        try:
            return open_file(tree, normalize(os.fsencode(path)))
        except BaseException:
            tree.close()
            raise

    def read(self, path: PathLike, at: int | None = None) -> bytes:
        """The whole content of the file at *path*. Raises as `open`."""
        with self.open(path, at) as file:
            return file.read()

    # -- the past

    def history(self) -> list[SnapshotRecord]:
        """Its kept snapshots, oldest first. Raises SessfsError."""
        return self._store._history(self._name)

    def snapshot(self, mark: str = "") -> SnapshotRecord:
        """Take a snapshot of it as it is now; with *mark*, a word for it, it is kept for good. Raises SessfsError."""
        return self._store._snapshot(self._name, mark)

    def mark(self, sequence: int, mark: str) -> SnapshotRecord:
        """Set the word of a snapshot, which keeps it; an empty one lets it go as the policy says. Raises UsageError."""
        return self._store._mark(self._name, sequence, mark)

    def rollback(self, sequence: int | None = None) -> SnapshotRecord:
        """Put a snapshot, by default the newest that was checked good, in its place; what that replaces is kept as a
        marked one. Raises MountBusy while a file of it is open, UsageError, SessfsError.
        """
        return self._store._rollback(self._name, sequence)

    def check(self, at: int | None = None, on_step: Callable[[str], None] = lambda path: None) -> CheckReport:
        """Would Chrome open it? Checks what Chrome has in it now, or had at a snapshot, where the verdict is noted.

        *on_step* hears of each path before it is checked. Raises SessfsError.
        """
        places.require_temporary_outside()
        tree = self._store._tree(self._name, at, steady=True)
        try:
            report = check_files(TreeFiles(tree), on_step)
        finally:
            tree.close()
        if at is not None:
            self._store._judge(self._name, at, report.verdict)
        else:
            self._store._checked(self._name, report.verdict)
        return report

    # -- as a whole

    def clone(self, new_name: PathLike) -> Session:
        """A new session with the content that this one has now; they share every chunk. Raises PosixError (EEXIST),
        SessfsError.
        """
        encoded = session_name(new_name)
        self._store._clone(self._name, encoded)
        return Session(self._store, encoded)

    def remove(self, *, purge: bool = False) -> ErasureReport | None:
        """Remove it with all that is in it: of a mount to the trash, else for good. With *purge*, of a mount alone: no
        byte that only it had is left in the state, its snapshots, the trash or the remote, and the report says what
        remains because others have it. Raises MountBusy while a file of it is open, SessfsError.
        """
        return self._store._remove(self._name, purge=purge)

    def export(
        self,
        dest: str | os.PathLike[str],
        *,
        at: int | None = None,
        format: ExportFormat | str | None = None,
        progress: Callable[[ExportStep], None] | None = None,
    ) -> ExportReport:
        """Write the session to *dest*, which must not exist (an empty directory may), whole and durable or not at all.

        *format* is guessed from the suffix of *dest* when not given. Raises UsageError, SessfsError, OSError.
        """
        path = Path(os.path.abspath(dest))
        places.require_outside("the export", path)
        form = guess_format(path) if format is None else _format_of(format)
        check_dest(path, form)
        tree = self._store._tree(self._name, at, steady=True)
        try:
            return export_tree(tree, path, form, syncfs=syscalls.syncfs, progress=progress)
        finally:
            tree.close()


def no_session(where: str, name: bytes, names: Collection[str]) -> PosixError:
    """The error for a session that is not there; *names* are those that are."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    known = ", ".join(sorted(names)[:SHOWN]) or "none"
    return PosixError(errno.ENOENT, f"{where} has no session {os.fsdecode(name)}; there are: {known}{more}")


def session_name(name: PathLike) -> bytes:
    """The bytes of a session's name. Raises UsageError for what can't be one."""
    encoded = os.fsencode(name)
    check_name(encoded)
    return encoded


def _format_of(given: ExportFormat | str) -> ExportFormat:
    try:
        return ExportFormat(given)
    except ValueError as exc:
        raise UsageError(f"the format {given!r} is not one of {', '.join(ExportFormat)}") from exc
