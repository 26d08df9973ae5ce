"""Control verbs that every mount has: how it does, what it holds, making things durable."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sessfs.mount.reports import sessions_report, status_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sessfs.config import Settings
    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.policies import Policies
    from sessfs.mount.remote_side import RemoteSide
    from sessfs.vfs.volume import Volume


class CoreVerbs:
    """*requests* counts what the kernel asked, by kind."""

    def __init__(
        self,
        volume: Volume,
        remote: RemoteSide | None,
        requests: Mapping[str, int],
        settings: Settings,
        policies: Policies,
    ) -> None:
        self._volume = volume
        self._remote = remote
        self._requests = requests
        self._settings = settings
        self._policies = policies
        self._started_s = time.monotonic()

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {
            "status": self._status,
            "commit": self._commit,
            "seal": self._seal,
            "sessions": self._sessions,
            "open_files": self._open_files,
        }

    async def _status(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        uptime_s = time.monotonic() - self._started_s
        report = status_report(self._volume, uptime_s, self._requests, self._remote, self._settings.warn_total_bytes)
        report["suspect_sessions"] = self._policies.suspects.report()
        report["warnings"] += self._policies.warnings()
        return report

    async def _commit(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        await self._volume.commit_all()
        return {}

    async def _seal(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        await self._volume.sealer.seal_all()
        await self._volume.committer.commit()
        await self._volume.sealer.drop_dead()
        return {}

    async def _sessions(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return await sessions_report(self._volume, self._remote, self._policies)

    async def _open_files(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return {"inodes": self._volume.inodes.count_open()}
