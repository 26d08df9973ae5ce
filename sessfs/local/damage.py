"""What is known to be damaged: chunks that are stored here, and frames that the remote has.

It is in `meta/`, so it outlives the daemon. What is noted here is never taken for a copy: content that is written again
is stored, and uploaded, again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessfs.local.db import Database, TableName
from sessfs.types import ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterable, Set
    from pathlib import Path

DAMAGE = TableName("damage")
HERE = b"h"
REMOTE = b"r"
TAKEN = b"n"
FOUND_FILE = "damaged"
"""In the state directory: ids, one in a line, of chunks that a check of the unmounted state found damaged."""


class Damage:
    """The request loop alone."""

    def __init__(self, meta: Database) -> None:
        self._meta = meta
        self._here = {ChunkId(key[1:]) for key, _ in meta.scan(DAMAGE, HERE)}
        self._remote = {key[1:] for key, _ in meta.scan(DAMAGE, REMOTE)}
        self.is_news = bool(self._remote)
        """True when something in the remote was found damaged since somebody last looked what can be mended."""

    @property
    def here(self) -> Set[ChunkId]:
        """Chunks whose copy in `chunks/` is not what its name says."""
        return self._here

    def note_here(self, cid: ChunkId) -> None:
        """The chunk's local copy is damaged."""
        if cid not in self._here:
            self._here.add(cid)
            self._meta.put(DAMAGE, HERE + cid, b"")

    def settle_here(self, ids: Iterable[ChunkId]) -> None:
        """The local copies of *ids* are sound, or no longer there; fine for those that were not damaged."""
        for cid in ids:
            if cid in self._here:
                self._here.discard(cid)
                self._meta.delete(DAMAGE, HERE + cid)

    @property
    def has_remote(self) -> bool:
        """True while some frame in the remote is known to be damaged."""
        return bool(self._remote)

    def is_bad(self, place: bytes) -> bool:
        """True when the frame at that place, as `places` records it, is known to be damaged or missing."""
        return place in self._remote

    def note_bad(self, place: bytes) -> None:
        """The frame there is damaged or missing."""
        if place not in self._remote:
            self._remote.add(place)
            self._meta.put(DAMAGE, REMOTE + place, b"")
            self.is_news = True

    def settle_bad(self, place: bytes) -> None:
        """The frame there is sound after all; fine when it was never thought otherwise."""
        if place in self._remote:
            self._remote.discard(place)
            self._meta.delete(DAMAGE, REMOTE + place)

    def is_taken(self, note: str) -> bool:
        """True when what that note in the remote says is noted here."""
        return self._meta.get(DAMAGE, TAKEN + note.encode()) is not None

    def note_taken(self, note: str) -> None:
        """What the note says is noted here."""
        self._meta.put(DAMAGE, TAKEN + note.encode(), b"")


def read_found(state_dir: Path) -> list[ChunkId]:
    """The chunks that a check of the unmounted state has left a note of; what can't be read of it is left out."""
    try:
        lines = (state_dir / FOUND_FILE).read_text("ascii", "replace").split()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(ChunkId(bytes.fromhex(line)))
        except ValueError:
            continue
    return found


def write_found(state_dir: Path, ids: Iterable[ChunkId]) -> None:
    """Leave a note for the next mount. Raises OSError."""
    path = state_dir / FOUND_FILE
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{cid.hex()}\n" for cid in sorted(ids)), "ascii")
    fresh.replace(path)
