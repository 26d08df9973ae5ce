"""Writing the sessions' own objects, so that a node that stalls, and is replaced meanwhile, overwrites nothing of the
next one's.

Each object is read, then the right to write is proved, then it is written if it still is what was read: whoever takes
over does so after the proof, so what that node writes is something else. A deletion can't be made to depend on what is
there; it follows upon the proof at once, and what was absent already is not deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import RemoteConflict, RemoteMissing
from sessfs.format.repository import decode_session_object, encode_session_object
from sessfs.format.segment import session_key
from sessfs.remote.parallel import for_each, over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sessfs.format.envelope import Envelope
    from sessfs.format.repository import SessionObject
    from sessfs.remote.objectstore import ObjectStore

BATCH = 1000
"""So many objects are written upon one proof."""
TRIES = 4


class _Change(NamedTuple):
    """What is to become of one object; *record* None: it goes. *etag* is of what was read, None when nothing was."""

    name: bytes
    etag: str | None
    record: SessionObject | None


async def read_object(store: ObjectStore, envelope: Envelope, name: bytes) -> SessionObject | None:
    """The session's own object, None when there is none. Raises RemoteError."""
    return (await _read(store, envelope, name))[0]


async def _read(store: ObjectStore, envelope: Envelope, name: bytes) -> tuple[SessionObject | None, str | None]:
    key = session_key(envelope, name)
    try:
        blob = await store.get(key)
    except RemoteMissing:
        return None, None
    return decode_session_object(blob.body, envelope, key), blob.etag


async def write_objects(
    store: ObjectStore,
    envelope: Envelope,
    names: Sequence[bytes],
    draft: Callable[[bytes, SessionObject | None], SessionObject | None],
    prove_right: Callable[[], Awaitable[None]],
) -> None:
    """Have the objects of the sessions *names* be what *draft* makes, of the name and of what is there, None being no
    object. *prove_right* returns once the remote has confirmed that the prefix is this node's, or raises Fenced. Raises
    RemoteError; then some are written.
    """
    for first in range(0, len(names), BATCH):
        left = names[first : first + BATCH]
        for _ in range(TRIES):
            changes = await _find_changes(store, envelope, left, draft)
            if not changes:
                break
            await prove_right()
            left = await _apply(store, envelope, changes)
            if not left:
                break
        else:
            raise RemoteConflict(f"the objects of {len(left)} sessions change all the time: does the store work?")


async def _find_changes(
    store: ObjectStore,
    envelope: Envelope,
    names: Sequence[bytes],
    draft: Callable[[bytes, SessionObject | None], SessionObject | None],
) -> list[_Change]:
    """What is not yet as it is to be; also a write whose answer was lost is."""
    changes: list[_Change] = []

    async def compare(name: bytes) -> None:
        there, etag = await _read(store, envelope, name)
        record = draft(name, there)
        if record != there:
            changes.append(_Change(name, etag, record))

    await for_each(over(names), compare)
    return changes


async def _apply(store: ObjectStore, envelope: Envelope, changes: Sequence[_Change]) -> list[bytes]:
    """Make the changes; the names of objects that had changed by then."""
    conflicts: list[bytes] = []
    # First, right after the proof.
    gone = [session_key(envelope, change.name) for change in changes if change.record is None]
    if gone:
        await store.delete(gone)

    async def write(change: _Change) -> None:
        if change.record is None:
            return
        body = encode_session_object(change.record, envelope)
        try:
            await store.put_if(session_key(envelope, change.name), body, change.etag)
        except (RemoteConflict, RemoteMissing):
            # By this node itself, or by the next one: the next proof tells.
            conflicts.append(change.name)

    await for_each(over(changes), write)
    return conflicts
