"""A store straight from a remote: read-only, without a mount, beside whoever has it mounted."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sessfs.api.portal import Portal
from sessfs.api.records import SessionRecord, SnapshotRecord
from sessfs.api.store import Store
from sessfs.errors import UsageError
from sessfs.mount.repository import read_secret, remote_settings
from sessfs.remote.urls import open_remote
from sessfs.sessions.trees import ManifestTree, show
from sessfs.sync.bucket import Bucket, open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sessfs.config import Settings
    from sessfs.format.manifest import ManifestRef
    from sessfs.sessions.trees import Tree

PATIENCE_S = 60.0
"""How long each request is tried again before it is given up."""


class RemoteStore(Store):
    """A remote as it was when it was opened."""

    def __init__(self, settings: Settings) -> None:
        """Raises UsageError, KeyWrong, RemoteMissing when there is no repository, RemoteError."""
        self._settings = settings
        self.where = str(settings.remote)
        self._portal: Portal[Bucket] = Portal(self._opened, self.where)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Bucket]:
        async with open_remote(remote_settings(self._settings)) as remote:
            yield await open_bucket(remote.within(PATIENCE_S), read_secret(self._settings), self.where)

    @property
    def _bucket(self) -> Bucket:
        return self._portal.held

    def close(self) -> None:
        """See Store."""
        self._portal.close()

    def sessions(self) -> Iterator[SessionRecord]:
        """See Store: only the names are known."""
        return iter([SessionRecord(name=os.fsdecode(name)) for name in self._portal.call(self._bucket.names)])

    def _has(self, name: bytes) -> bool:
        """See Store."""
        return self._portal.call(self._bucket.resolve, name) is not None

    def _tree(self, name: bytes, at: int | None, *, steady: bool) -> Tree:
        """See Store."""
        manifest = self._portal.call(self._bucket.load, self._manifest_at(name, at))
        chunks = self._bucket.chunks(manifest)
        return ManifestTree(manifest, lambda ids: self._portal.call(chunks.fetch, ids))

    def _manifest_at(self, name: bytes, at: int | None) -> ManifestRef:
        if at is not None:
            found = {kept.sequence: kept.manifest for kept in self._portal.call(self._bucket.kept, name)}
            if at not in found:
                known = ", ".join(str(sequence) for sequence in found) or "none"
                raise UsageError(f"session {show(name)} of {self.where} has no snapshot {at}; there are: {known}")
            return found[at]
        latest = self._portal.call(self._bucket.resolve, name)
        if latest is None or latest[0] is None:
            raise UsageError(f"session {show(name)} of {self.where} was never uploaded, or was removed")
        return latest[0]

    def _history(self, name: bytes) -> list[SnapshotRecord]:
        kept = self._portal.call(self._bucket.kept, name)
        return [
            SnapshotRecord(sequence=one.sequence, taken_ns=one.taken_ns, mark=one.mark, verdict=one.verdict)
            for one in kept
        ]

    def _judge(self, name: bytes, sequence: int, verdict: str) -> None:
        """See Store: a remote is only read."""

    def _checked(self, name: bytes, verdict: str) -> None:
        """See Store: a remote is only read."""

    def status(self) -> dict[str, Any]:
        """See Store."""
        holder = self._bucket.holder
        found = None if holder is None else {"node": holder.node, "hostname": holder.hostname, "since": holder.since}
        return {"remote": self.where, "encrypted": self._bucket.encrypted, "holder": found}

    def _cannot(self, what: str) -> UsageError:
        return UsageError(f"{self.where} can't {what}: a remote is only read here; mount it")
