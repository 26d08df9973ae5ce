"""A store that is mounted: its daemon is asked through the control socket, contents are read through the mountpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from sessfs.api.records import SessionRecord
from sessfs.api.store import Store
from sessfs.errors import NotMounted, UsageError
from sessfs.mount import control, preflight, syscalls
from sessfs.sessions.trees import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sessfs.sessions.trees import Tree

ANSWER_TIMEOUT_S = 30.0
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

    def has(self, name: bytes) -> bool:
        """See Store."""
        return os.path.isdir(self._directory(name))

    def _directory(self, name: bytes) -> bytes:
        return os.path.join(os.fsencode(self.mountpoint), name)

    def tree(self, name: bytes, at: int | None, *, steady: bool) -> Tree:
        """See Store."""
        if at is not None:
            raise UsageError("this mount keeps no snapshots")
        return DirectoryTree(self._directory(name))

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
