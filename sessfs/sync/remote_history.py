"""The kept snapshots of a session straight from the bucket, whoever has it mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessfs.errors import RemoteMissing, UsageError
from sessfs.format.repository import KeptSnapshot, decode_state
from sessfs.format.segment import state_key
from sessfs.remote.catalogue import Kept, Known, read_known
from sessfs.remote.keeping import read_object
from sessfs.sync.remote_index import read_holder

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope
    from sessfs.remote.objectstore import ObjectStore


async def read_history(store: ObjectStore, envelope: Envelope, name: bytes) -> list[KeptSnapshot]:
    """Oldest first, the latest last. Raises UsageError when there is no such session, RemoteError."""
    known = await _read_holders(store, envelope)
    latest, sequence = known.latest.get(name, (None, 0))
    if name in known.latest and latest is None:
        raise _unknown(name)
    kept = known.kept.get(name, Kept({}, complete=False))
    snapshots = dict(kept.snapshots)
    if not kept.complete:
        record = await read_object(store, envelope, name)
        if record is None and latest is None:
            raise _unknown(name)
        if record is not None:
            snapshots = {one.sequence: one for one in record.kept} | snapshots
            if latest is None:
                latest, sequence = record.manifest, record.sequence
    if latest is not None and sequence not in snapshots:
        snapshots[sequence] = KeptSnapshot(sequence, 0, latest)
    return [snapshots[number] for number in sorted(snapshots)]


async def _read_holders(store: ObjectStore, envelope: Envelope) -> Known:
    """What the holder says beyond the sessions' own objects."""
    nothing = Known({}, {}, [], set())
    holder, _ = await read_holder(store)
    if holder is None:
        return nothing
    key = state_key(holder.node)
    try:
        state = decode_state((await store.get(key)).body, key)
    except RemoteMissing:
        return nothing
    return nothing if state.clean else await read_known(store, envelope, state)


def _unknown(name: bytes) -> UsageError:
    return UsageError(f"the remote has no session {name.decode(errors='replace')}")
