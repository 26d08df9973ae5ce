"""A node's catalogue: what it published since the sessions' own objects were written."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from sessfs.errors import RemoteCorrupt
from sessfs.format.manifest import ManifestRef
from sessfs.format.segment import checkpoint_key, decode_checkpoint
from sessfs.remote.footers import iter_segments, read_segment_footer

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope
    from sessfs.format.repository import NodeState
    from sessfs.format.segment import Footer
    from sessfs.remote.objectstore import ObjectStore

Catalogue = dict[bytes, tuple[ManifestRef | None, int]]
"""Session → its latest manifest, or None when it was removed, and the snapshot's sequence."""


async def read_catalogue(store: ObjectStore, envelope: Envelope, state: NodeState) -> Catalogue:
    """What the node knew of its sessions: its last checkpoint, and the footers of the segments since. Raises
    RemoteError; RemoteCorrupt when a segment that counts is missing.
    """
    catalogue: Catalogue = {}
    if state.has_checkpoint:
        blob = await store.get(checkpoint_key(state.node, state.last_checkpoint))
        for name, ref, sequence in decode_checkpoint(blob.body, state.node, state.last_checkpoint, envelope).entries:
            catalogue[name] = (ref, sequence)
    expected = state.last_checkpoint
    async with aclosing(iter_segments(store, state.node, state.last_checkpoint)) as segments:
        async for number, size in segments:
            if number > state.last_segment:
                break
            expected += 1
            if number != expected:
                raise RemoteCorrupt(f"segment {expected} of node {state.node} is missing")
            footer = await read_segment_footer(store, state.node, number, size, envelope)
            catalogue |= footer_catalogue(footer, state.node, number)
    if expected < state.last_segment:
        raise RemoteCorrupt(f"segment {expected + 1} of node {state.node} is missing")
    return catalogue


def footer_catalogue(footer: Footer, node: str, number: int) -> Catalogue:
    """What the segment says of sessions."""
    said: Catalogue = {
        entry.session: (ManifestRef(node, number, entry.offset, entry.length), entry.sequence)
        for entry in footer.manifests
    }
    return said | {name: (None, 0) for name in footer.removed}
