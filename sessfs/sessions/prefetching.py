"""Fetches what a session is likely to read at its start, before it is asked for."""

from __future__ import annotations

import logging
import math
import stat
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import trio

from sessfs.errors import SessfsError
from sessfs.format.manifest import split_ids
from sessfs.sessions.usage import iter_session_inodes
from sessfs.types import ROOT_INO, ChunkId, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sessfs.format.recipe import Extent, Recipe
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Places

log = logging.getLogger(__name__)
SMALL_BYTES = 512 << 10
"""A file of up to this size is fetched whole: settings, journals, most databases."""
FILES_MAX = 1000
"""Of the small ones as of the large ones, the smallest first."""
LIKELY_MAX_BYTES = 16 << 20
AHEAD_MAX = 4
"""So many sessions that were looked at, and not used so far, are fetched ahead: `du` looks at all and uses none."""
AHEAD_S = 60.0


class ChunkFetcher(Protocol):
    """Where chunks come from."""

    async def prefetch(self, ids: Sequence[ChunkId]) -> None:
        """See sync.fetch.RemoteChunks."""


class Prefetcher:
    """Decides which sessions are fetched ahead, and what of them. The request loop alone; `run` in the daemon's
    nursery.
    """

    def __init__(
        self, inodes: Inodes, places: Places, chunks: ChunkFetcher, *, monotonic_s: Callable[[], float]
    ) -> None:
        self._inodes = inodes
        self._places = places
        self._chunks = chunks
        self._monotonic_s = monotonic_s
        self._waiting: set[Ino] = set()
        """Sessions that are fetched once they are used."""
        self._ahead: dict[Ino, float] = {}
        """Sessions that were fetched without being used so far, and when."""
        self._send, self._receive = trio.open_memory_channel[Ino](math.inf)

    def loaded(self, session: Ino) -> None:
        """Somebody looks at the session, whose tree has just come from the remote: probably it is going to start."""
        if session == ROOT_INO:
            return
        now_s = self._monotonic_s()
        self._ahead = {other: at_s for other, at_s in self._ahead.items() if now_s - at_s < AHEAD_S}
        if len(self._ahead) >= AHEAD_MAX:
            self._waiting.add(session)
            return
        self._ahead[session] = now_s
        self._send.send_nowait(session)

    def used(self, session: Ino) -> None:
        """Chrome opens a file of the session. May be called any number of times."""
        self._ahead.pop(session, None)
        if session in self._waiting:
            self._waiting.discard(session)
            self._send.send_nowait(session)

    async def run(self) -> None:
        """Fetch, one session after the other, for ever. What can't be had is fetched when it is read, or not."""
        async for session in self._receive:
            try:
                await self._chunks.prefetch(await self._likely(session))
            except SessfsError as exc:
                log.info("a session's start could not be fetched ahead: %s", exc)

    async def _likely(self, session: Ino) -> list[ChunkId]:
        """What it read at its last start, as far as that was learned, and what such sessions read."""
        found = dict.fromkeys(split_ids(self._places.startup(session)))
        small: list[tuple[int, Ino]] = []
        large: list[tuple[int, Ino]] = []
        async with aclosing(iter_session_inodes(self._inodes, session)) as inodes:
            async for inode in inodes:
                if stat.S_ISREG(inode.mode) and inode.cold:
                    (small if inode.size <= SMALL_BYTES else large).append((inode.size, inode.ino))
        left = LIKELY_MAX_BYTES
        for extent in self._iter_likely(sorted(small)[:FILES_MAX], sorted(large)[:FILES_MAX]):
            if extent.is_hole or extent.chunk in found:
                continue
            left -= extent.end - extent.start
            if left < 0:
                break
            found[extent.chunk] = None
        return list(found)

    def _iter_likely(self, small: list[tuple[int, Ino]], large: list[tuple[int, Ino]]) -> Iterator[Extent]:
        """All of small files. Of large ones the end, and then the beginning: tables of LevelDB and entries of the
        Simple Cache are looked into from their ends.
        """
        for _, ino in small:
            yield from self._recipe(ino)
        recipes = [recipe for _, ino in large if len(recipe := self._recipe(ino))]
        yield from (recipe.at(len(recipe) - 1) for recipe in recipes)
        yield from (recipe.at(0) for recipe in recipes)

    def _recipe(self, ino: Ino) -> Recipe:
        return self._inodes.load_recipe(self._inodes.get(ino))
