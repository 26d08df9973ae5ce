"""A store that is mounted: its daemon is asked through the control socket, contents are read through the mountpoint."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sessfs.api.records import SessionRecord, SnapshotRecord
from sessfs.api.store import Session, Store, session_name
from sessfs.errors import NotMounted, PosixError, UsageError
from sessfs.mount import control, mountinfo, places, preflight, syscalls
from sessfs.sessions.erasing_report import ErasureReport
from sessfs.sessions.importing_report import ImportProgress, ImportReport
from sessfs.sessions.trees import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sessfs.api.store import PathLike
    from sessfs.sessions.trees import Tree

ANSWER_TIMEOUT_S = 30.0
LONG_TIMEOUT_S = 600.0
"""A snapshot of a large session, or an upload, may take that long."""
ANSWER_MARGIN_S = 60.0
"""The daemon keeps to a time-out itself; this much later it counts as hanging."""


class MountedStore(Store):
    """A running mount. Holds nothing of it, so that it can be unmounted while no file of it is open."""

    def __init__(self, mountpoint: Path) -> None:
        """Raises NotMounted, also for a mount that is dead or hangs."""
        self.mountpoint = mountpoint
        self.where = str(mountpoint)
        self.state_dir = preflight.find_state(mountpoint)
        try:
            if not preflight.answers(mountpoint):
                raise NotMounted(f"{mountpoint} is dead: its daemon has ended. `sessfs mount {mountpoint}` recovers it")
        except TimeoutError as exc:
            pid = preflight.daemon_pid(self.state_dir)
            raise NotMounted(f"{mountpoint} hangs: its daemon (pid {pid}) does not answer") from exc

    def close(self) -> None:
        """See Store."""

    def call(
        self,
        verb: str,
        params: dict[str, Any] | None = None,
        *,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Ask the daemon; errors as `control.call`."""
        return control.call(self.state_dir, verb, params or {}, timeout_s=timeout_s, on_progress=on_progress)

    def sessions(self) -> Iterator[SessionRecord]:
        """See Store."""
        return iter(msgspec.convert(self.call("sessions", timeout_s=None)["sessions"], list[SessionRecord]))

    def _has(self, name: bytes) -> bool:
        """See Store."""
        try:
            return stat.S_ISDIR(os.stat(self._directory(name)).st_mode)
        except FileNotFoundError:
            return False

    def _no_session(self, name: bytes) -> PosixError:
        """See Store. To ask for all that a mount has takes long, and who runs a mount has the command."""
        command = shlex.join(["sessfs", "sessions", self.where])
        return PosixError(errno.ENOENT, f"{self.where} has no session {os.fsdecode(name)}: `{command}` lists them")

    def _directory(self, name: bytes) -> bytes:
        return os.path.join(os.fsencode(self.mountpoint), name)

    def _tree(self, name: bytes, at: int | None, *, steady: bool) -> Tree:
        """See Store."""
        if at is None and not steady:
            return DirectoryTree(self._directory(name))
        view = self._ask("open_view", name, sequence=at)["view"]
        return _View(self, os.fsencode(view))

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
        """See Store. The daemon reads *source* itself, so it must see there what this process does. The `data_path` of
        the report begins with the mountpoint.
        """
        places.require_outside("the source", source, mend="import from outside of it")
        path = Path(os.path.realpath(source))
        try:
            found = path.stat()
        except OSError as exc:
            raise UsageError(f"{os.fspath(source)} can't be read: {exc.strerror}") from exc
        params = {
            "source": str(path),
            "identity": [found.st_dev, found.st_ino],
            "as_name": name,
            "verify": verify,
            "dry_run": dry_run,
            "skip_unsafe": skip_unsafe,
        }

        def show(step: dict[str, Any]) -> None:
            if progress is not None:
                progress(ImportProgress(**step))

        report = msgspec.convert(self.call("import", params, timeout_s=None, on_progress=show), ImportReport)
        report.data_path = report.data_path.replace("MOUNTPOINT", self.where)
        return report

    def _ask(self, verb: str, name: bytes, **params: Any) -> dict[str, Any]:
        return self.call(verb, {"session": os.fsdecode(name), **params}, timeout_s=LONG_TIMEOUT_S)

    def _history(self, name: bytes) -> list[SnapshotRecord]:
        return msgspec.convert(self._ask("history", name)["snapshots"], list[SnapshotRecord])

    def _snapshot(self, name: bytes, mark: str) -> SnapshotRecord:
        return msgspec.convert(self._ask("snapshot", name, mark=mark), SnapshotRecord)

    def _mark(self, name: bytes, sequence: int, mark: str) -> SnapshotRecord:
        return msgspec.convert(self._ask("snapshot", name, sequence=sequence, mark=mark), SnapshotRecord)

    def _judge(self, name: bytes, sequence: int, verdict: str) -> None:
        self._ask("judge", name, sequence=sequence, verdict=verdict)

    def _checked(self, name: bytes, verdict: str) -> None:
        self._ask("checked", name, verdict=verdict)

    def _rollback(self, name: bytes, sequence: int | None) -> SnapshotRecord:
        return msgspec.convert(self._ask("rollback", name, sequence=sequence), SnapshotRecord)

    def _remove(self, name: bytes, *, purge: bool) -> ErasureReport | None:
        params = {"session": os.fsdecode(name), "purge": purge}
        answer = self.call("remove", params, timeout_s=None)
        return msgspec.convert(answer, ErasureReport) if purge else None

    def _clone(self, name: bytes, new_name: bytes) -> None:
        self._ask("clone", name, new_name=os.fsdecode(new_name))

    def status(self) -> dict[str, Any]:
        """See Store."""
        return {"mountpoint": self.where, "state_dir": str(self.state_dir), **self.call("status")}

    def sync(self, timeout_s: float = 300.0, progress: Callable[[dict[str, Any]], None] | None = None) -> int:
        """See Store."""
        try:
            syscalls.within(timeout_s, lambda: syscalls.syncfs(self.where), "writing out the kernel's pages")
        except TimeoutError as exc:
            raise NotMounted(f"{self.where} hangs: {exc}") from exc
        answer = self.call(
            "sync", {"timeout_s": timeout_s}, timeout_s=timeout_s + ANSWER_MARGIN_S, on_progress=progress
        )
        sent: int = answer["uploaded_bytes"]
        return sent

    def limits(
        self, session: PathLike | None = None, changes: Mapping[str, int | None] | None = None
    ) -> dict[str, Any]:
        """See Store."""
        name = os.fsdecode(session_name(session)) if session is not None else None
        return self.call("limit", {"session": name, "set": dict(changes or {})}, timeout_s=LONG_TIMEOUT_S)

    def expire(self, *, dry_run: bool = False, trust_clock: bool = False) -> dict[str, Any]:
        """See Store."""
        return self.call("expire", {"dry_run": dry_run, "trust_clock": trust_clock}, timeout_s=LONG_TIMEOUT_S)

    def trash(self) -> list[dict[str, Any]]:
        """See Store."""
        found: list[dict[str, Any]] = self.call("trash_list", timeout_s=LONG_TIMEOUT_S)["trash"]
        return found

    def restore_from_trash(self, name: PathLike, as_name: PathLike | None = None) -> Session:
        """See Store."""
        params = {"name": os.fsdecode(name), "as_name": os.fsdecode(as_name) if as_name is not None else None}
        return self.session(self.call("trash_restore", params, timeout_s=LONG_TIMEOUT_S)["name"])

    def empty_trash(self, name: PathLike | None = None) -> list[str]:
        """See Store."""
        params = {"name": os.fsdecode(name) if name is not None else None}
        gone: list[str] = self.call("trash_empty", params, timeout_s=LONG_TIMEOUT_S)["gone"]
        return gone


def find_session(place: Path) -> tuple[Path, str]:
    """(mountpoint, name) of the session whose directory, in a running mount, *place* is. A dead mount is not touched.
    Raises NotMounted, or UsageError for what is no session's directory.
    """
    absolute = mountinfo.resolve(Path(os.path.abspath(place)))
    mountpoint = mountinfo.mount_of(place)
    parts = absolute.relative_to(mountpoint).parts
    if len(parts) != 1:
        if not parts:
            raise UsageError(f"{place} is a whole mount: give the directory of a session in it")
        raise UsageError(f"{place} lies in session {parts[0]}: give {mountpoint / parts[0]}")
    return mountpoint, parts[0]


class _View(DirectoryTree):
    """A snapshot, or the session at one instant, as the mount shows it until this is closed."""

    def __init__(self, store: MountedStore, view: bytes) -> None:
        super().__init__(os.path.join(os.fsencode(store.mountpoint), view))
        self._store = store
        self._view: bytes | None = view

    def close(self) -> None:
        super().close()
        view, self._view = self._view, None
        if view is not None:
            # Unmounted meanwhile: the next start drops it.
            with contextlib.suppress(NotMounted):
                self._store.call("close_view", {"view": os.fsdecode(view)}, timeout_s=LONG_TIMEOUT_S)
