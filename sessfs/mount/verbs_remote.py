"""Control verbs that need a remote."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from sessfs.errors import UsageError
from sessfs.mount.showing import while_answering

if TYPE_CHECKING:
    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.remote_side import RemoteSide


class RemoteVerbs:
    """`sync` and `gc`."""

    def __init__(self, remote: RemoteSide | None) -> None:
        self._remote = remote

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {"sync": self._sync, "gc": self._collect}

    async def _collect(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        if self._remote is None:
            raise UsageError("this mount has no remote to collect in: mount with --remote URL")
        collect = partial(
            self._remote.collector.collect,
            dry_run=bool(params.get("dry_run")),
            grace_s=params.get("grace_s"),
            progress=progress,
        )
        # The daily one has time; somebody who asked for one is told.
        return await while_answering(self._remote.repository.remote.health, collect)

    async def _sync(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        if self._remote is None:
            raise UsageError("this mount has no remote to sync to: mount with --remote URL")
        return {"uploaded_bytes": await self._remote.syncs.sync(progress, params.get("timeout_s", math.inf))}
