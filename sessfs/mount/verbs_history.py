"""Control verbs of snapshots: `history`, `snapshot`, `rollback`, `clone`, and views for other commands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from sessfs.errors import MountBusy
from sessfs.mount.openers import name_users
from sessfs.mount.showing import while_answering
from sessfs.sessions.usage import rfc3339

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.lives_side import LivesSide
    from sessfs.mount.remote_side import RemoteSide
    from sessfs.sync.history import SnapshotInfo


def describe(info: SnapshotInfo) -> dict[str, Any]:
    """One snapshot in an answer."""
    return {
        "sequence": info.sequence,
        "taken": rfc3339(info.taken_ns),
        "taken_ns": info.taken_ns,
        "mark": info.mark,
        "verdict": info.verdict,
    }


class HistoryVerbs:
    """All take the session's name as `session`."""

    def __init__(self, side: LivesSide, remote: RemoteSide | None, mountpoint: Path) -> None:
        self._history = side.history
        self._lives = side.lives
        self._remote = remote
        self._mountpoint = mountpoint

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {
            "history": self._list,
            "snapshot": self._take,
            "rollback": self._rollback,
            "clone": self._clone,
            "open_view": self._open_view,
            "close_view": self._close_view,
        }

    async def _list(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        session = await self._lives.locate(os.fsencode(params["session"]))
        return {"session": params["session"], "snapshots": [describe(info) for info in self._history.list(session)]}

    async def _take(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """With `sequence`: set the mark of that one, an empty one unmarks it. Without: take one. Raises
        RemoteUnavailable when the remote stops answering meanwhile; what was not published by then is still pending.
        """
        if self._remote is None:
            return describe(await self._take_or_mark(params))
        remote = self._remote.repository.remote
        return describe(await while_answering(remote.health, lambda: self._take_or_mark(params)))

    async def _take_or_mark(self, params: dict[str, Any]) -> SnapshotInfo:
        session = await self._lives.locate(os.fsencode(params["session"]))
        mark = params.get("mark", "")
        if params.get("sequence") is None:
            return await self._history.take(session, mark)
        await self._history.mark(session, params["sequence"], mark)
        return self._history.get(session, params["sequence"])

    async def _rollback(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        name = os.fsencode(params["session"])
        session = await self._lives.locate(name)
        sequence = params.get("sequence")
        if sequence is None:
            sequence = self._history.newest_good(session).sequence
        try:
            return describe(await self._lives.rollback(name, sequence))
        except MountBusy as exc:
            users = await trio.to_thread.run_sync(name_users, self._mountpoint, params["session"])
            raise MountBusy(f"{exc}{users}") from exc

    async def _clone(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        await self._lives.clone(os.fsencode(params["session"]), os.fsencode(params["new_name"]))
        return {}

    async def _open_view(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """With `sequence` of that snapshot, without of the session as it is now."""
        view = await self._lives.open_view(os.fsencode(params["session"]), params.get("sequence"))
        return {"view": os.fsdecode(view)}

    async def _close_view(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        self._lives.close_view(os.fsencode(params["view"]))
        await self._lives.settled()
        return {}
