"""The node's hold on the roster: which sessions have an object of their own, so that one that is lost is missed.

A session's own object says that the session exists. Were it the only one to say so, a deleted object would be a removed
session. PREFIX/roster names all of them. It is written at a release, after the objects and before the state, and read
only when a name has no object or all names are listed: once in the life of a node, one request. Names in the node's
catalogue do not go by it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sessfs.errors import RemoteConflict, RemoteCorrupt, RemoteMissing
from sessfs.format.roster import ROSTER_KEY, decode_roster, encode_roster
from sessfs.format.segment import SESSIONS_PREFIX, session_key
from sessfs.remote.objectstore import iter_keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from sessfs.format.envelope import Envelope
    from sessfs.remote.objectstore import ObjectStore

log = logging.getLogger(__name__)
PUT_BACK = "put the object back (a bucket that keeps versions has it among the deleted ones)"
NO_NAMES: frozenset[bytes] = frozenset()


def show(name: bytes) -> str:
    """A session's name, for people."""
    return name.decode(errors="backslashreplace")


def lost_session(envelope: Envelope, name: bytes) -> RemoteCorrupt:
    """The error for a session that was released and has no object."""
    return RemoteCorrupt(
        f"{session_key(envelope, name)} is missing, but session {show(name)} was released, not removed; {PUT_BACK}, "
        "or have `sessfs fsck --remote URL --repair` make it anew"
    )


def lost_roster() -> RemoteCorrupt:
    """The error for a roster that the node's state counts on, and that is not there."""
    return RemoteCorrupt(
        f"{ROSTER_KEY} is missing, so it is not known which sessions there are; {PUT_BACK}, or mount with --take-over, "
        "which makes it anew of the sessions that are there"
    )


async def read_roster(store: ObjectStore, envelope: Envelope, *, is_due: bool) -> frozenset[bytes] | None:
    """The names; None where the remote has none yet. Raises RemoteCorrupt when it *is_due* and missing, RemoteError."""
    return (await _read(store, envelope, is_due))[0]


async def _read(store: ObjectStore, envelope: Envelope, is_due: bool) -> tuple[frozenset[bytes] | None, str | None]:
    try:
        blob = await store.get(ROSTER_KEY)
    except RemoteMissing as exc:
        if is_due:
            raise lost_roster() from exc
        return None, None
    return decode_roster(blob.body, envelope), blob.etag


class HeldRoster:
    """The roster, for the node that holds the prefix."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._names: frozenset[bytes] | None = None
        self._etag: str | None = None
        self._is_read = False

    async def _load(self, store: ObjectStore, is_due: bool) -> None:
        if not self._is_read:
            self._names, self._etag = await _read(store, self._envelope, is_due)
            self._is_read = True

    async def names(self, store: ObjectStore, *, is_due: bool) -> frozenset[bytes]:
        """The names, none where the remote has no roster yet. Errors as `read_roster`."""
        await self._load(store, is_due)
        return self._names or NO_NAMES

    async def change(
        self,
        store: ObjectStore,
        added: Collection[bytes],
        removed: Collection[bytes],
        prove_right: Callable[[], Awaitable[None]],
        *,
        is_due: bool,
    ) -> None:
        """Have the roster name *added* and not *removed*. Where the remote has none, one is made of the sessions that
        have an object. *prove_right* as for `sessionobjects.write_objects`. Raises RemoteConflict when another node
        wrote it meanwhile, Fenced, RemoteError.
        """
        await self._load(store, is_due)
        before = self._names
        if before is None:
            before = await self._list(store)
        await self._put(store, before.difference(removed).union(added), prove_right, is_due)

    async def forget(
        self,
        store: ObjectStore,
        names: Collection[bytes],
        prove_right: Callable[[], Awaitable[None]],
        *,
        is_due: bool,
    ) -> None:
        """Have no roster name *names*. As `change`, but none is made."""
        await self._load(store, is_due)
        if self._names is not None:
            await self._put(store, self._names.difference(names), prove_right, is_due)

    async def _put(
        self, store: ObjectStore, after: frozenset[bytes], prove_right: Callable[[], Awaitable[None]], is_due: bool
    ) -> None:
        if after == self._names:
            return
        await prove_right()
        try:
            self._etag = await store.put_if(ROSTER_KEY, encode_roster(after, self._envelope), self._etag)
        except (RemoteConflict, RemoteMissing):
            # Perhaps by this very call, whose answer was lost.
            self._is_read = False
            await self._load(store, is_due)
            if self._names != after:
                raise
        self._names = after

    async def _list(self, store: ObjectStore) -> frozenset[bytes]:
        found = set()
        async for entry in iter_keys(store, SESSIONS_PREFIX):
            found.add(self._envelope.open_name(entry.key.removeprefix(SESSIONS_PREFIX)))
        return frozenset(found)

    async def begin_anew(self, store: ObjectStore) -> bool:
        """With --take-over: True when the roster can't be read, so that the next release makes another one. The damaged
        one is overwritten then. Raises RemoteError when it is not known.
        """
        try:
            await self._load(store, is_due=True)
        except RemoteCorrupt as exc:
            log.warning("%s: it is made anew at the next release", exc)
            try:
                self._etag = (await store.get(ROSTER_KEY)).etag
            except RemoteMissing:
                self._etag = None
            self._is_read = True
            return True
        return False
