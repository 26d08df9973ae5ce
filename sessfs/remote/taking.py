"""Taking the prefix: whose it was, what that node left, and this node's state for a new incarnation.

The order, in `node.open_node`: the holder is read; if another node, it is made sure that it writes no more, and what it
says is read; then this node's state is swapped in; then the claim. Each of these may find that an object was lost.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import trio

from sessfs.errors import RemoteConflict, RemoteHeld, RemoteMissing
from sessfs.format.repository import (
    HOLDER_KEY,
    Holder,
    NodeState,
    decode_holder,
    decode_state,
    encode_holder,
    encode_state,
)
from sessfs.format.segment import state_key
from sessfs.remote.catalogue import Known, read_known
from sessfs.remote.footers import iter_segments
from sessfs.remote.recovery import drop_older, lost_state, rebuild_state, refuse_lost_holder

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope
    from sessfs.remote.node import Identity
    from sessfs.remote.objectstore import ObjectStore

log = logging.getLogger(__name__)


def nothing() -> Known:
    """Of a node that released all."""
    return Known({}, {}, [], set())


def was_last(holder: Holder | None, identity: Identity) -> bool:
    """True when no other node has held the prefix since this one last did, if it did."""
    return holder is None or holder.node == identity.name


async def read_holder(store: ObjectStore) -> tuple[Holder | None, str | None]:
    """Who may write, and the etag of the object that says so; (None, None) when it is not there. Raises RemoteError."""
    try:
        blob = await store.get(HOLDER_KEY)
    except RemoteMissing:
        return None, None
    return decode_holder(blob.body), blob.etag


async def claim(store: ObjectStore, identity: Identity, incarnation: int, etag: str | None) -> None:
    """Say that the prefix is this node's, if the holder still is what was read with *etag*. Raises RemoteHeld when it
    is not, RemoteError.
    """
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    holder = Holder(identity.name, incarnation, identity.hostname, identity.pid, since)
    try:
        await store.put_if(HOLDER_KEY, encode_holder(holder), etag)
    except RemoteConflict as exc:
        raise RemoteHeld("another node took the remote at this very moment: try again, or mount there") from exc


async def _rebuild(store: ObjectStore, holder: Holder, *, take_over: bool) -> NodeState:
    """The state of the holder is not there. It was before the holder was, so it was lost. Raises RemoteCorrupt unless
    *take_over*: then what it said is found out, see `rebuild_state`.
    """
    if not take_over:
        raise lost_state(holder)
    return await rebuild_state(store, holder)


async def _last_number(store: ObjectStore, node: str) -> int:
    """The highest number of a segment that the node ever wrote and that is there, 0 for none."""
    last = 0
    async for number, _ in iter_segments(store, node, 0):
        last = number
    return last


async def start_incarnation(
    store: ObjectStore, identity: Identity, holder: Holder | None, take_over: bool, has_roster: bool
) -> tuple[NodeState, str, bool]:
    """This node's state for a new incarnation, swapped in, its etag, and whether it had to be rebuilt. When another
    node has held the prefix since, nothing that this one published before is the latest any more, and *has_roster* is
    what that node knew. Raises RemoteCorrupt when the holder, or this node's state, is lost.
    """
    key = state_key(identity.name)
    forget = not was_last(holder, identity)
    is_rebuilt = False
    old: NodeState | None = None
    etag: str | None = None
    try:
        blob = await store.get(key)
        old, etag = decode_state(blob.body, key), blob.etag
    except RemoteMissing:
        pass
    if holder is None:
        await refuse_lost_holder(store)
    if old is None and holder is not None and not forget:
        is_rebuilt = True
        old = await _rebuild(store, holder, take_over=take_over)
    elif old is None:
        # Should there be any, segments are referred to: no number is used twice.
        last = await _last_number(store, identity.name) if holder is not None else 0
        old = NodeState(
            node=identity.name, hostname=identity.hostname, incarnation=0, last_segment=last, last_checkpoint=last
        )
    state = msgspec.structs.replace(
        old,
        incarnation=old.incarnation + 1,
        beat=old.beat + 1,
        hostname=identity.hostname,
        fenced_by=None,
        clean=False,
        last_checkpoint=old.last_segment if forget else old.last_checkpoint,
        has_checkpoint=old.has_checkpoint and not forget,
        has_roster=has_roster if forget else old.has_roster,
    )
    return state, await store.put_if(key, encode_state(state), etag), is_rebuilt


async def take_from(
    store: ObjectStore, envelope: Envelope, holder: Holder, identity: Identity, take_over: bool, stale_s: float
) -> tuple[Known, bool]:
    """Make sure that *holder* writes no more; its catalogue, which is empty when it released all, and whether the
    remote has a roster.
    """
    who = f"node {holder.node} (host {holder.hostname}, process {holder.pid}, since {holder.since})"
    key = state_key(holder.node)
    etag: str | None = None
    try:
        blob = await store.get(key)
        state, etag = decode_state(blob.body, key), blob.etag
    except RemoteMissing:
        state = await _rebuild(store, holder, take_over=take_over)
    if state.clean:
        return nothing(), state.has_roster
    if state.fenced_by is None:
        if not take_over:
            raise RemoteHeld(
                f"the remote is held by {who}, which did not release it: unmount it there, or, if that machine is "
                f"gone, mount with --take-over"
            )
        log.info("watching the heartbeat of %s for %.0f s", who, stale_s)
        await trio.sleep(stale_s)
        fenced = msgspec.structs.replace(state, fenced_by=identity.name, beat=state.beat + 1)
        try:
            await store.put_if(key, encode_state(fenced), etag)
        except RemoteConflict as exc:
            raise RemoteHeld(f"the remote is held by {who}, and its heart beats: unmount it there first") from exc
    known = await read_known(store, envelope, state)
    if etag is None:
        await drop_older(store, envelope, holder.node, known)
    return known, state.has_roster
