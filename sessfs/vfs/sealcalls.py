"""Requests to the seal process, and what is made of it when it breaks at one: one bad file, or chunk, is set aside, and
all others go on.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from sessfs.errors import StoreFull
from sessfs.types import ChunkId
from sessfs.vfs.sealclient import SealBroke
from sessfs.vfs.sealjobs import DropRequest, Reply, SealedFile, SealFile, SealRequest, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.damage import Damage
    from sessfs.vfs.sealclient import SealProcessClient

log = logging.getLogger(__name__)
BREAKS_MAX = 48
"""How often in a row the seal process may break while it is found out at what: more has another reason."""
SET_ASIDE_MAX = 1000


class SealCalls:
    """The seal process's answers, taken in. The caller sees to it that one request is under way at a time."""

    def __init__(
        self,
        client: SealProcessClient,
        reader: ChunkReader,
        references: References,
        damage: Damage,
        room_bytes: Callable[[], int],
    ) -> None:
        """What is sealed at once must have *room_bytes* on the disk; no chunk of *damage* is taken for a copy."""
        self._damage = damage
        self._room_bytes = room_bytes
        self.pending_bytes = 0
        """What is being sealed, 0 for nothing."""
        self._client = client
        self._reader = reader
        self._references = references
        self.set_aside: dict[str, None] = {}
        """What of `chunks/` was found damaged, and left as it is, a sentence each, in order."""
        self._broken: Counter[type[Task]] = Counter()
        """At how many requests of a kind in a row the seal process broke, whatever those of other kinds did."""
        self._undroppable: set[ChunkId] = set()
        """Chunks at which the seal process broke: they stay."""

    async def request(self, request: Task) -> Reply:
        """The reply, its chunks visible here and noted. Raises LocalStoreError: then the process may have stored chunks
        that nobody knows of, which the next start sweeps.
        """
        replies: list[Reply] = []
        pending = _hot_bytes(request)
        if pending > self._room_bytes():
            raise StoreFull("the disk of the state has too little room to seal what is to be sealed together")
        self.pending_bytes = pending
        try:
            replies.append(await self._client.call(request, replies.append))
            self._broken[type(request)] = 0
        except SealBroke:
            self._broken[type(request)] += 1
            raise
        finally:
            self.pending_bytes = 0
            self._reader.refresh()
            self._references.note_unused(ChunkId(cid) for reply in replies for cid in reply.added)
            self._damage.settle_here(ChunkId(cid) for reply in replies for cid in reply.replaced)
            self._note_set_aside(what for reply in replies for what in reply.set_aside)
        return replies[0]

    def damaged(self) -> list[bytes]:
        """What the seal process must not take for a copy."""
        return [bytes(cid) for cid in self._damage.here]

    async def cut(self, files: list[SealFile]) -> list[SealedFile]:
        """The recipe of each. Where the process breaks twice in a row, one file may be why: then each goes alone, and
        one at which it breaks again has none. Raises LocalStoreError.
        """
        try:
            return (await self.request(SealRequest(files, self.damaged()))).files
        except SealBroke:
            if self._broken[SealRequest] < 2:
                raise
        sealed: list[SealedFile] = []
        for file in files:
            try:
                sealed.extend((await self.request(SealRequest([file], self.damaged()))).files)
            except SealBroke as exc:
                if self._broken[SealRequest] > BREAKS_MAX:
                    raise
                sealed.append(SealedFile(file.ino, file.version, None, str(exc)))
        return sealed

    async def drop(self, ids: Sequence[ChunkId]) -> None:
        """Remove them. Where the process breaks twice in a row, one may be why: it is found by halves, and stays.
        Raises LocalStoreError.
        """
        is_searching = False
        waiting = [[cid for cid in ids if cid not in self._undroppable]]
        while waiting:
            some = waiting.pop()
            try:
                if some:
                    await self.request(DropRequest([bytes(cid) for cid in some]))
            except SealBroke as exc:
                is_searching |= self._broken[DropRequest] > 1
                if not is_searching or self._broken[DropRequest] > BREAKS_MAX:
                    raise
                if len(some) > 1:
                    waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
                else:
                    self._undroppable.update(some)
                    self._note_set_aside([f"chunk {some[0].hex()} can't be dropped: {exc}"])

    def _note_set_aside(self, sentences: Iterable[str]) -> None:
        for what in sentences:
            if what not in self.set_aside and len(self.set_aside) < SET_ASIDE_MAX:
                log.error("damage in the local chunks, all else goes on (`sessfs fsck` tells which files): %s", what)
                self.set_aside[what] = None


def _hot_bytes(request: Task) -> int:
    """How many bytes are to be cut."""
    if not isinstance(request, SealRequest):
        return 0
    return sum(span.end - span.start for file in request.files for span in file.spans if span.keep is None)
