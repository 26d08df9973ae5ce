"""The node of a mount, from before it can be opened: probing the endpoint, taking the prefix, trying again."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

import trio

from sessfs.errors import RemoteUnavailable, SessfsError
from sessfs.mount.repository import ANSWER_DEADLINE_S, START_DEADLINE_S
from sessfs.remote.node import Identity, Node, open_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence

    from sessfs.config import Settings
    from sessfs.format.manifest import ManifestRef
    from sessfs.format.repository import KeptSnapshot
    from sessfs.mount.repository import Repository

REOPEN_S = 5.0


class NodeGate:
    """The node, once it is open: until then whoever needs it gets RemoteUnavailable. Publisher and Catalogue."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.node: Node | None = None
        self.problem = "the remote has not been reached yet"

    def _open(self) -> Node:
        if self.node is None:
            raise RemoteUnavailable(self.problem)
        return self.node

    @property
    def incarnation(self) -> int:
        """See Publisher."""
        return self._open().incarnation

    @property
    def last_segment(self) -> int:
        """See Publisher."""
        return self._open().last_segment

    async def announce(self, name: bytes) -> None:
        """See Publisher."""
        await self._open().announce(name)

    async def settle(self) -> None:
        """See Publisher."""
        await self._open().settle()

    async def publish(self, last_segment: int, entries: Sequence[tuple[bytes, ManifestRef | None, int]]) -> None:
        """See Publisher."""
        await self._open().publish(last_segment, entries)

    async def resolve(self, name: bytes) -> tuple[ManifestRef | None, int] | None:
        """See Catalogue."""
        return await self._open().resolve(name)

    async def resolve_kept(self, name: bytes) -> list[KeptSnapshot]:
        """See Catalogue."""
        return await self._open().resolve_kept(name)

    async def save_kept(self, name: bytes) -> None:
        """See Node."""
        await self._open().save_kept(name)

    async def checkpoint(self) -> None:
        """See Node."""
        await self._open().checkpoint()

    def touch_kept(self, name: bytes) -> None:
        """The kept snapshots of the session changed, as its object is to say at the release. Before the node is open,
        nothing is noted: the state directory knows.
        """
        if self.node is not None:
            self.node.keeping.touched.add(name)

    async def iter_pages(self) -> AsyncIterator[list[bytes]]:
        """See Catalogue."""
        async for page in self._open().iter_pages():
            yield page

    async def prove_right(self) -> None:
        """See Node."""
        await self._open().prove_right()

    async def erase(self, names: Collection[bytes]) -> None:
        """See Node."""
        await self._open().erase(names)

    def relocate(self, moved: Mapping[ManifestRef, ManifestRef]) -> None:
        """See Node."""
        self._open().relocate(moved)

    def require_open(self) -> None:
        """Raises RemoteUnavailable while the remote was not reached."""
        self._open()

    def report(self) -> dict[str, Any]:
        """For `status`."""
        if self.node is None:
            return {"name": self.name, "open": False, "problem": self.problem}
        return {
            "name": self.name,
            "open": True,
            "incarnation": self.node.incarnation,
            "last_segment": self.node.last_segment,
            "fenced_by": self.node.fenced,
        }


async def open_gate(repository: Repository, settings: Settings, gate: NodeGate, deadline_s: float | None) -> Node:
    """Probe the endpoint and take the prefix. Raises RemoteHeld, RemoteUnsuitable, RemoteError."""
    remote = repository.remote
    await remote.require_conditional_writes(deadline_s)
    identity = Identity(gate.name, socket.gethostname(), os.getpid())
    store = remote.store if deadline_s is None else remote.within(deadline_s)
    opened = await open_node(
        store,
        repository.envelope,
        identity,
        take_over=settings.take_over,
        stale_s=settings.stale_s,
        monotonic_s=time.monotonic,
    )
    opened.use_stores(remote.store, remote.within(ANSWER_DEADLINE_S))
    gate.node = opened
    return opened


async def keep_opening(repository: Repository, settings: Settings, gate: NodeGate) -> Node:
    """Open the node, however long it takes; what stops it is in the gate's report. For starts without a remote."""
    while True:
        try:
            return await open_gate(repository, settings, gate, START_DEADLINE_S)
        except SessfsError as exc:
            gate.problem = str(exc)
            await trio.sleep(REOPEN_S)
