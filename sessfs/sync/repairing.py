"""Making the lost object of a session anew, of what the segments that are there say of the session.

The roster says that the session exists. Each segment's footer lists the manifests in it by session, so the newest that
can be read is the latest snapshot, and the others that can be read count as kept: unknown is not absent. Only objects
that are missing are written, so a mount at work beside this is not in its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import RemoteConflict
from sessfs.format.manifest import ManifestRef
from sessfs.format.repository import KeptSnapshot, SessionObject, encode_session_object
from sessfs.format.segment import segment_key, session_key
from sessfs.remote.footers import read_segment_footer
from sessfs.remote.parallel import for_each, over
from sessfs.remote.roster import show
from sessfs.sync import remote_index
from sessfs.sync.remote_index import DAMAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import SegmentRef
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.remote_index import View


class _Said(NamedTuple):
    """What a segment says of a session; *ref* None: it was removed. Ordered by the writer's clock, then by number."""

    created_ns: int
    segment: SegmentRef
    sequence: int
    ref: ManifestRef | None


async def repair_sessions(store: ObjectStore, envelope: Envelope) -> list[str]:
    """Make the objects of sessions that were released, and have none, anew; what was done, and what could not be, a
    line each. Raises RemoteCorrupt when more than sessions' objects are missing, RemoteError.
    """
    view = await remote_index.read_view(store, envelope)
    roster = await remote_index.read_view_roster(store, envelope, view)
    keys = [key async for key in remote_index.iter_session_keys(store)]
    lost = await remote_index.find_lost_sessions(store, envelope, view, roster, keys)
    if not lost:
        return []
    said = await _read_segments(store, envelope, view, set(lost))
    return [await _repair(store, envelope, name, said[name]) for name in lost]


async def _read_segments(
    store: ObjectStore, envelope: Envelope, view: View, names: set[bytes]
) -> dict[bytes, list[_Said]]:
    found: dict[bytes, list[_Said]] = {name: [] for name in names}

    async def read(ref: SegmentRef) -> None:
        size = view.inventory.segments[ref].size
        try:
            footer = await read_segment_footer(store, ref.node, ref.number, size, envelope)
        except DAMAGE:
            # The check names it.
            return
        for entry in footer.manifests:
            if entry.session in names:
                manifest = ManifestRef(ref.node, ref.number, entry.offset, entry.length)
                found[entry.session].append(_Said(footer.created_ns, ref, entry.sequence, manifest))
        for name in names.intersection(footer.removed):
            found[name].append(_Said(footer.created_ns, ref, 0, None))

    counting = (ref for ref in sorted(view.inventory.segments) if ref.number <= view.states[ref.node].last_segment)
    await for_each(over(counting), read)
    return {name: sorted(of_name, key=lambda one: one[:3]) for name, of_name in found.items()}


def _since_removal(said: Iterable[_Said]) -> list[_Said]:
    """What was said since the session was last removed, oldest first: before that, it was another one."""
    of_it: list[_Said] = []
    for one in said:
        of_it = [] if one.ref is None else [*of_it, one]
    return of_it


async def _repair(store: ObjectStore, envelope: Envelope, name: bytes, said: list[_Said]) -> str:
    snapshots: dict[int, KeptSnapshot] = {}
    for one in _since_removal(said):
        try:
            assert one.ref is not None
            chain = await remote_index.read_chain(store, envelope, one.ref)
            remote_index.merge_chain(chain)
        except DAMAGE:
            continue
        snapshots[one.sequence] = KeptSnapshot(one.sequence, one.created_ns, one.ref)
    key = session_key(envelope, name)
    if not snapshots:
        return f"{key} can't be made anew: no segment that is there has a whole snapshot of session {show(name)}"
    latest = snapshots[max(snapshots)]
    kept = [snapshots[sequence] for sequence in sorted(snapshots)]
    record = SessionObject(name, None, latest.manifest, latest.sequence, kept)
    try:
        await store.put_if(key, encode_session_object(record, envelope), None)
    except RemoteConflict:
        return f"{key} is there again: somebody else put it"
    lost_ones = sum(one.ref is not None for one in said) - len(snapshots)
    which = f"snapshot {latest.sequence} in {segment_key(latest.manifest.node, latest.manifest.segment)}"
    more = f"; {lost_ones} other snapshots can't be read any more" if lost_ones else ""
    return f"{key} was made anew: session {show(name)} is {which}, the newest that is there{more}"
