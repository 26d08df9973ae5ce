"""What is said, and can be found out, when the holder or the holder's state is not there any more.

Both were written before anything that counts. So a segment without them means that an object was lost, not that nobody
ever published. A plain mount refuses then; one with --take-over goes on with what the other objects say.
"""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from sessfs.errors import RemoteCorrupt, RemoteMissing
from sessfs.format.repository import FORMAT_KEY, HOLDER_KEY, Holder, NodeState, decode_state
from sessfs.format.roster import ROSTER_KEY
from sessfs.format.segment import (
    NODES_PREFIX,
    SESSIONS_PREFIX,
    checkpoints_prefix,
    parse_checkpoint_key,
    parse_segment_key,
    state_key,
)
from sessfs.remote.footers import iter_segments
from sessfs.remote.objectstore import LIST_PAGE, iter_keys
from sessfs.remote.roster import PUT_BACK
from sessfs.remote.sessionobjects import read_object

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope
    from sessfs.remote.catalogue import Known
    from sessfs.remote.objectstore import Entry, ObjectStore

log = logging.getLogger(__name__)
LONG_AGO = "1970-01-01T00:00:00Z"
BEFORE_OURS = "gc"
"""No key of a repository but PREFIX/format sorts before it."""
OURS = ("gc/", NODES_PREFIX, SESSIONS_PREFIX)


def lost_holder(witness: str) -> RemoteCorrupt:
    """The error for a remote without a holder in which some node published *witness*."""
    return RemoteCorrupt(
        f"{HOLDER_KEY} is missing, but {witness} is there: a node held this remote, and may have published what only "
        f"its own objects say; {PUT_BACK}; or mount with --take-over, which finds the last holder by the nodes' states"
    )


def lost_state(holder: Holder) -> RemoteCorrupt:
    """The error for a holder whose state is missing: with it went the word which segments count."""
    return RemoteCorrupt(
        f"{state_key(holder.node)} is missing: node {holder.node} (host {holder.hostname}) holds the remote, but its "
        f"state is missing, so it is not known which segments count; {PUT_BACK}; or mount with --take-over, which goes "
        "on with what that node's segments say"
    )


async def refuse_lost_format(store: ObjectStore) -> None:
    """For a remote without PREFIX/format: raises RemoteCorrupt if it has objects of a repository."""
    for entry in await store.list_page("", BEFORE_OURS, LIST_PAGE):
        if entry.key in (HOLDER_KEY, ROSTER_KEY) or entry.key.startswith(OURS):
            raise RemoteCorrupt(
                f"{FORMAT_KEY} is missing, but {entry.key} is there: without it nothing here can be read, and no new "
                f"repository is made over it: {PUT_BACK}"
            )


def _is_work(key: str) -> bool:
    return parse_segment_key(key) is not None or parse_checkpoint_key(key) is not None


async def refuse_lost_holder(store: ObjectStore) -> None:
    """For a remote without a holder: raises RemoteCorrupt if some node ever published, so that there was one."""
    async with aclosing(iter_keys(store, NODES_PREFIX)) as entries:
        async for entry in entries:
            # A first start that ended before it took the prefix leaves a state, and nothing else.
            if _is_work(entry.key):
                raise lost_holder(entry.key)


def _speaks(state: NodeState) -> bool:
    """Whether the state names something that the sessions' own objects do not say."""
    return not state.clean and (state.has_checkpoint or state.last_segment > state.last_checkpoint)


async def find_last_holder(store: ObjectStore) -> Holder | None:
    """Who held the remote last, by the nodes' states; None when nobody ever published. In its answer the incarnation is
    0: a state that held the prefix is not to be believed to be the latest. Raises RemoteCorrupt when several could be,
    RemoteError.
    """
    states, entries, witness = await _read_states(store)
    if not witness:
        return None
    speaking = [state for state in states.values() if _speaks(state)]
    live = [state for state in speaking if state.fenced_by is None]
    unsure = [state for state in speaking if state.fenced_by is not None and not _is_past(state, states)]
    if len(live) > 1 or (unsure and not live):
        names = ", ".join(sorted(state.node for state in (live or unsure)))
        raise RemoteCorrupt(
            f"{HOLDER_KEY} is missing, and it can't be told which node held it last ({names}): {PUT_BACK}"
        )
    # Where no state says more than the sessions' own objects, it does not matter whose is taken.
    found = live[0] if live else max(states.values(), key=lambda state: entries[state.node].mtime_s)
    log.warning("%s is missing: by the nodes' states, node %s was the last to hold it", HOLDER_KEY, found.node)
    return Holder(found.node, 0, found.hostname, 0, LONG_AGO)


def _is_past(state: NodeState, states: dict[str, NodeState]) -> bool:
    """Whether what a fenced node says has been taken over by whoever fenced it."""
    fencer = states.get(state.fenced_by or "")
    return fencer is not None and (fencer.clean or _speaks(fencer))


async def _read_states(store: ObjectStore) -> tuple[dict[str, NodeState], dict[str, Entry], str]:
    """(state, its entry, the key of some segment or checkpoint, empty for none), by node. Raises RemoteCorrupt when a
    node with segments has no state, RemoteError.
    """
    entries: dict[str, Entry] = {}
    witness: dict[str, str] = {}
    async for entry in iter_keys(store, NODES_PREFIX):
        node = entry.key.split("/")[1]
        if _is_work(entry.key):
            witness.setdefault(node, entry.key)
        elif entry.key == state_key(node):
            entries[node] = entry
    for node in sorted(witness.keys() - entries.keys()):
        raise RemoteCorrupt(f"{HOLDER_KEY} is missing, and so is {state_key(node)}: {PUT_BACK}")
    states = {}
    for node in entries:
        try:
            states[node] = decode_state((await store.get(state_key(node))).body, state_key(node))
        except RemoteMissing as exc:
            raise RemoteCorrupt(f"{state_key(node)} was deleted while it was read: somebody is at work here") from exc
    return states, entries, next(iter(witness.values()), "")


async def rebuild_state(store: ObjectStore, holder: Holder) -> NodeState:
    """What the lost state of *holder* said, as far as its segments and checkpoints tell: all that are there count, from
    the last checkpoint on, or from the last gap. `drop_older` has to look at what they say. Raises RemoteError.
    """
    log.warning("%s is missing: what it said is read from the node's segments", state_key(holder.node))
    numbers = {number async for number, _ in iter_segments(store, holder.node, 0)}
    checkpoints = {
        parsed[1]
        async for entry in iter_keys(store, checkpoints_prefix(holder.node))
        if (parsed := parse_checkpoint_key(entry.key)) is not None
    }
    last = max(numbers | checkpoints, default=0)
    first = last
    while first in numbers and first not in checkpoints:
        first -= 1
    return NodeState(
        node=holder.node,
        hostname=holder.hostname,
        incarnation=holder.incarnation,
        last_segment=last,
        last_checkpoint=first,
        has_checkpoint=first in checkpoints,
    )


async def drop_older(store: ObjectStore, envelope: Envelope, node: str, known: Known) -> None:
    """Leave of *known*, which is of a rebuilt state of *node*, what is newer than the sessions' own objects: a session
    that was released since goes by its object. Raises RemoteError.
    """
    for name, (ref, sequence) in list(known.latest.items()):
        record = await read_object(store, envelope, name)
        if record is None or record.manifest is None:
            continue
        # What the node published of a session after it removed it would be known. What another node did is not: then
        # the session stays.
        is_newer = record.sequence >= sequence if ref is not None else record.manifest.node != node
        if is_newer:
            del known.latest[name]
            known.kept.pop(name, None)
            known.covered.discard(name)
