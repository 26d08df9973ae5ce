"""The control verb `limit`: show and set limits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sessfs.errors import UsageError
from sessfs.sessions.limits import DOT_SESSION, find_session

if TYPE_CHECKING:
    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.policies import Policies
    from sessfs.mount.remote_side import RemoteSide
    from sessfs.vfs.volume import Volume


class LimitVerbs:
    """`limit`."""

    def __init__(self, volume: Volume, policies: Policies, remote: RemoteSide | None) -> None:
        self._volume = volume
        self._limits = policies.limits
        self._remote = remote

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {"limit": self._limit}

    async def _limit(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """*session*: its name, None for the whole mount; *set*: limit → number, 0 for off, None for the default."""
        name = os.fsencode(params["session"]) if params.get("session") is not None else None
        changes: dict[str, int | None] = params.get("set", {})
        if name is None:
            if changes:
                self._limits.change(None, changes)
                await self._volume.committer.commit()
            return self._limits.mount_report()
        if self._remote is not None and name != DOT_SESSION:
            await self._remote.sessions.find(name)
        session = find_session(self._volume, name)
        if session is None:
            raise UsageError(
                f"there is no session {name.decode(errors='replace')}: `sessfs sessions MOUNTPOINT` lists them"
            )
        if changes:
            self._limits.change(name, changes)
            await self._volume.committer.commit()
        return await self._limits.session_report(name, session)
