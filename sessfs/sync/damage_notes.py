"""Notes in PREFIX/gc/ of damage that a check from outside has found, so that mounts which have the bytes put it right.

A note is written once and never changed. A check that reads everything, and finds it sound, deletes them.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import msgspec

from sessfs.errors import RemoteCorrupt, RemoteMissing
from sessfs.format.manifest import SegmentRef
from sessfs.local.places import RemotePlace
from sessfs.remote.objectstore import iter_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sessfs.remote.objectstore import ObjectStore

NOTE_PREFIX = "gc/damage-"
NOTE_VERSION = 1


class DamageNote(msgspec.Struct, frozen=True):
    """What one check found; the object is its JSON."""

    version: int
    frames: list[tuple[str, int, int, int]]
    """(node, segment, offset, length) of frames that are damaged or missing."""
    segments: list[tuple[str, int]]
    """(node, number) of segments that are missing, or whose footer or manifests are damaged."""

    @property
    def places(self) -> list[RemotePlace]:
        """The frames."""
        return [RemotePlace(*frame) for frame in self.frames]

    @property
    def refs(self) -> set[SegmentRef]:
        """The segments."""
        return {SegmentRef(*segment) for segment in self.segments}


def make_note(frames: Collection[RemotePlace], segments: Collection[SegmentRef]) -> DamageNote:
    """A note of that damage."""
    return DamageNote(
        NOTE_VERSION,
        [(p.node, p.segment, p.offset, p.length) for p in sorted(frames)],
        [(ref.node, ref.number) for ref in sorted(segments)],
    )


async def put_note(store: ObjectStore, note: DamageNote) -> None:
    """Leave the note; one of the same damage replaces itself. Raises RemoteError."""
    body = json.dumps(msgspec.to_builtins(note), separators=(",", ":"), sort_keys=True).encode()
    await store.put(f"{NOTE_PREFIX}{hashlib.blake2b(body, digest_size=8).hexdigest()}", body)


async def list_notes(store: ObjectStore) -> list[str]:
    """The keys of all notes. Raises RemoteError."""
    return [entry.key async for entry in iter_keys(store, NOTE_PREFIX)]


async def read_notes(store: ObjectStore, is_known: Callable[[str], bool]) -> dict[str, DamageNote]:
    """By key, the notes that are not known. One request when there are none. Raises RemoteError."""
    found = {}
    for key in [key for key in await list_notes(store) if not is_known(key)]:
        try:
            found[key] = _decode(key, (await store.get(key)).body)
        except RemoteMissing:
            continue  # a check has found everything sound since
    return found


def _decode(key: str, body: bytes) -> DamageNote:
    try:
        note = msgspec.json.decode(body, type=DamageNote)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise RemoteCorrupt(f"{key} is no note of damage: {exc}; delete it, and check again") from exc
    if note.version != NOTE_VERSION:
        raise RemoteCorrupt(f"{key} was written by a newer sessfs (version {note.version}): use that one")
    return note
