"""A node's catalogue: what it published since the sessions' own objects were written, and the snapshots it keeps.

Which snapshots of a session are kept is in three places: its own object as of the last release, the node's last
checkpoint, which knows of all or says that it does not, and the footers since, each manifest of which is one more.
Where these disagree, a snapshot counts as kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import RemoteCorrupt, RemoteMissing, RemoteUnsuitable, SessfsError
from sessfs.format.manifest import ManifestRef
from sessfs.format.repository import KeptSnapshot
from sessfs.format.segment import checkpoint_key, decode_checkpoint, segment_key
from sessfs.remote.footers import iter_segments, read_segment_footer
from sessfs.remote.roster import PUT_BACK

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope
    from sessfs.format.repository import NodeState
    from sessfs.format.segment import Checkpoint, Footer
    from sessfs.remote.objectstore import ObjectStore

Catalogue = dict[bytes, tuple[ManifestRef | None, int]]
"""Session → its latest manifest, or None when it was removed, and the snapshot's sequence."""


class Kept(NamedTuple):
    """Snapshots of one session, by sequence. Unless *complete*, the session's own object may name more."""

    snapshots: dict[int, KeptSnapshot]
    complete: bool


class Known(NamedTuple):
    """What a node says. *former*: snapshots of sessions that were removed, or renamed, after its last checkpoint;
    *covered*: sessions whose own objects its checkpoint supersedes, kept snapshots included.
    """

    latest: Catalogue
    kept: dict[bytes, Kept]
    former: list[tuple[bytes, KeptSnapshot]]
    covered: set[bytes]


OnDamage = Callable[[str, SessfsError], None]
"""Told (key, error) of an object that is damaged or missing."""
DAMAGE = (RemoteCorrupt, RemoteMissing, RemoteUnsuitable)
"""Errors that are a finding about the bucket, not a failure to find out."""


def _refuse(key: str, error: SessfsError) -> None:
    raise error


async def read_known(store: ObjectStore, envelope: Envelope, state: NodeState, on_damage: OnDamage = _refuse) -> Known:
    """What the node knew of its sessions: its last checkpoint, and the footers of the segments since. Raises
    RemoteError; RemoteCorrupt when the checkpoint, or a segment that counts, is missing, or damaged. With *on_damage*
    what can't be read is left out.
    """
    known = Known({}, {}, [], set())
    if state.has_checkpoint:
        await _read_checkpoint(store, envelope, state, known, on_damage)
    if state.last_checkpoint == state.last_segment:
        return known
    expected = state.last_checkpoint + 1
    async with aclosing(iter_segments(store, state.node, state.last_checkpoint)) as segments:
        async for number, size in segments:
            if number > state.last_segment:
                break
            _miss_segments(state, expected, number, on_damage)
            expected = number + 1
            try:
                footer = await read_segment_footer(store, state.node, number, size, envelope)
            except DAMAGE as exc:
                on_damage(segment_key(state.node, number), exc)
            else:
                _add_footer(known, footer, state.node, number)
    _miss_segments(state, expected, state.last_segment + 1, on_damage)
    return known


async def _read_checkpoint(
    store: ObjectStore, envelope: Envelope, state: NodeState, known: Known, on_damage: OnDamage
) -> None:
    key = checkpoint_key(state.node, state.last_checkpoint)
    try:
        body = (await store.get(key)).body
        _add_checkpoint(known, decode_checkpoint(body, state.node, state.last_checkpoint, envelope))
    except RemoteMissing:
        text = f"{key} is missing, which says what node {state.node} knew of its sessions: {PUT_BACK}"
        on_damage(key, RemoteCorrupt(text))
    except DAMAGE as exc:
        on_damage(key, exc)


def _miss_segments(state: NodeState, first: int, end: int, on_damage: OnDamage) -> None:
    """Segments from *first* up to *end*, which is not one of them, are not there."""
    for number in range(first, end):
        key = segment_key(state.node, number)
        text = f"segment {number} of node {state.node} is missing ({key}), which says what changed last: {PUT_BACK}"
        on_damage(key, RemoteCorrupt(text))


def _add_checkpoint(known: Known, checkpoint: Checkpoint) -> None:
    for name, ref, sequence in checkpoint.entries:
        known.latest[name] = (ref, sequence)
        if ref is None and checkpoint.kept is not None:
            known.kept[name] = Kept({}, complete=True)
            known.covered.add(name)
    for one in checkpoint.kept or ():
        known.kept[one.session] = Kept({kept.sequence: kept for kept in one.snapshots}, one.complete)
        if one.complete:
            known.covered.add(one.session)


def _add_footer(known: Known, footer: Footer, node: str, number: int) -> None:
    known.latest.update(footer_catalogue(footer, node, number))
    for entry in footer.manifests:
        ref = ManifestRef(node, number, entry.offset, entry.length)
        kept = known.kept.setdefault(entry.session, Kept({}, complete=False))
        kept.snapshots[entry.sequence] = KeptSnapshot(entry.sequence, footer.created_ns, ref)
    for name in footer.removed:
        gone = known.kept.get(name)
        if gone is not None:
            known.former.extend((name, kept) for kept in gone.snapshots.values())
        # Should the name come again, it is that of another session.
        known.kept[name] = Kept({}, complete=True)


def footer_catalogue(footer: Footer, node: str, number: int) -> Catalogue:
    """What the segment says of sessions."""
    said: Catalogue = {
        entry.session: (ManifestRef(node, number, entry.offset, entry.length), entry.sequence)
        for entry in footer.manifests
    }
    return said | {name: (None, 0) for name in footer.removed}
