"""This node in the remote: it holds the prefix alone, counts its segments, and knows where each session's latest is.

PREFIX/holder names the one node that may write. Whoever wants it while another node's state is not clean must first
see that state unchanged for a while (heartbeats change it; no wall clock is compared), then fence it: swap the state
for one that says so. From then on the fenced node's next swap fails, and nothing it uploads counts any more.

The *catalogue* is what changed since the sessions' own objects were written: session → latest manifest, or None when it
was removed. It is in the last checkpoint and in the footers of the segments since, and is emptied by `release`.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio

from sessfs.errors import (
    Fenced,
    RemoteConflict,
    RemoteError,
    RemoteMissing,
)
from sessfs.format.repository import (
    Holder,
    NodeState,
    SessionObject,
    decode_state,
    encode_session_object,
    encode_state,
)
from sessfs.format.segment import (
    SESSIONS_PREFIX,
    Checkpoint,
    checkpoint_key,
    encode_checkpoint,
    session_key,
    state_key,
)
from sessfs.remote.catalogue import read_known
from sessfs.remote.keeping import Keeping
from sessfs.remote.objectstore import iter_keys
from sessfs.remote.recovery import drop_older, find_last_holder
from sessfs.remote.roster import HeldRoster, lost_session, show
from sessfs.remote.sessionobjects import read_object, write_objects
from sessfs.remote.taking import claim, nothing, read_holder, start_incarnation, take_from, was_last

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import ManifestRef
    from sessfs.format.repository import KeptSnapshot
    from sessfs.remote.catalogue import Known
    from sessfs.remote.objectstore import ObjectStore

log = logging.getLogger(__name__)
BEAT_S = 20.0
RETRY_S = 5.0
CHECKPOINT_EVERY = 16
CHECKPOINT_AT_LAST = 128
"""After as many segments a checkpoint is written even where publishing never leaves time for a heartbeat."""
SWAP_TRIES = 4
SURE_S = 5.0
"""A swap that succeeded this long ago is proof enough that the node was not fenced."""
PAGE = 1000


class Identity(NamedTuple):
    """Who this node is: its name in the remote, and for people the host it runs on and its process."""

    name: str
    hostname: str
    pid: int


class Node:
    """The node, holding the prefix. Made by `open_node`; one task publishes at a time."""

    def __init__(
        self,
        store: ObjectStore,
        envelope: Envelope,
        identity: Identity,
        state: NodeState,
        etag: str,
        inherited: Known,
        roster: HeldRoster,
        *,
        monotonic_s: Callable[[], float],
        former: Holder | None,
    ) -> None:
        self._store = self._answering = store
        self._envelope = envelope
        self._identity = identity
        self._state = state
        self._etag = etag
        self._catalogue = inherited.latest
        self.keeping = Keeping(envelope, inherited.kept)
        self._roster = roster
        self.lost: set[bytes] = set()
        """Sessions that were released, and whose own object was found to be missing."""
        self._monotonic_s = monotonic_s
        self._written_s = monotonic_s()
        self._given: dict[int, list[tuple[bytes, ManifestRef | None, int]]] = {}
        """What becomes true once the state names that segment: it may do so later than it was heard of."""
        self._swapping = trio.Lock()
        self.former = former
        """Who held the prefix before; None when nobody ever did."""
        self._checkpointing = trio.Lock()
        self._releasing: NodeState | None = None
        """What `release` writes, or wrote: the one clean state that is this node's own word."""
        self._fenced_event = trio.Event()
        self.fenced: str | None = None
        """Who took over, once it is known that somebody did."""

    @property
    def name(self) -> str:
        """The node's name in the remote."""
        return self._identity.name

    @property
    def incarnation(self) -> int:
        """The count of its starts."""
        return self._state.incarnation

    @property
    def last_segment(self) -> int:
        """The last segment that counts."""
        return self._state.last_segment

    # -- the state

    async def _swap(self, *, clean: bool = False, heartbeat: bool = False, **changes: int | bool) -> None:
        """Swap the state for one with *changes* and the next beat. *clean* is for `release` alone; a *heartbeat* leaves
        a clean state alone. Raises Fenced when it is no longer this node's.
        """
        async with self._swapping:
            for _ in range(SWAP_TRIES):
                if heartbeat and self._state.clean:
                    return
                state = msgspec.structs.replace(self._state, beat=self._state.beat + 1, clean=clean, **changes)
                if clean:
                    self._releasing = state
                try:
                    self._etag = await self._store.put_if(state_key(self.name), encode_state(state), self._etag)
                except (RemoteConflict, RemoteMissing):
                    await self._read_back()
                    continue
                self._take_state(state)
                self._written_s = self._monotonic_s()
                return
            raise RemoteConflict(f"the state of node {self.name} changes under its hands: is its clock or store sane?")

    async def _read_back(self) -> None:
        """After a refused swap: an earlier write of this node, given up, may have landed late: then it is the one
        to go on from. Raises Fenced when the state is somebody else's.
        """
        try:
            blob = await self._store.get(state_key(self.name))
            state = decode_state(blob.body, state_key(self.name))
            is_mine = state.incarnation == self.incarnation and state.fenced_by is None
            # A clean state lets others in, as a fenced one does: nothing may follow upon one that this node did not
            # write.
            if is_mine and (not state.clean or state == self._releasing):
                self._etag = blob.etag
                self._take_state(state)
                return
            stranger = "a node that took it for replaced" if is_mine else "another process under the same node name"
            self.fenced = state.fenced_by or stranger
        except RemoteMissing:
            self.fenced = "somebody who deleted its state"
        self._fenced_event.set()
        raise Fenced(
            f"node {self.name} was fenced by {self.fenced}: this mount is read-only now, and what it had not uploaded "
            "stays in its state directory"
        )

    def _take_state(self, state: NodeState) -> None:
        """This is the state in the remote: what it makes count belongs to the catalogue."""
        self._state = state
        for last_segment in [n for n in self._given if n <= state.last_segment]:
            for name, ref, sequence in self._given.pop(last_segment):
                self._catalogue[name] = (ref, sequence)

    async def prove_right(self) -> None:
        """See sync.erasing.Eraser."""
        await self._swap()

    async def settle(self) -> None:
        """See Publisher."""
        await self._swap()
        self._given.clear()

    def use_stores(self, store: ObjectStore, answering: ObjectStore) -> None:
        """From here on use *store* for what this node publishes, *answering* for what somebody waits for: the same
        remote with other patience.
        """
        self._store, self._answering = store, answering

    async def run(self) -> None:
        """Heartbeats, and checkpoints in their stead when one is due, until fenced; started once, in the daemon's
        nursery. Returns after being fenced; `fenced` then says by whom.
        """
        while True:
            await self._sleep_unless_fenced(max(self._written_s + BEAT_S - self._monotonic_s(), 0.05))
            if self.fenced is not None:
                return
            behind = self._state.last_segment - self._state.last_checkpoint
            if self._monotonic_s() - self._written_s < BEAT_S and behind < CHECKPOINT_AT_LAST:
                continue
            try:
                if behind >= CHECKPOINT_EVERY:
                    await self.checkpoint()
                else:
                    await self._swap(heartbeat=True)
            except Fenced as exc:
                log.error("%s", exc)
                return
            except RemoteError as exc:
                # The mount lives on without the remote, and so must this task; `status` has the remote's health.
                log.error("the heartbeat failed, will be tried again: %s", exc)
                await self._sleep_unless_fenced(RETRY_S)

    async def _sleep_unless_fenced(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._fenced_event.wait()

    async def checkpoint(self) -> None:
        """Write the catalogue down as it is after the call, so that a start need not read the segments before. Raises
        Fenced, RemoteError.
        """
        # One at a time: an older one would overwrite a newer one, or be named in its place, when the segments between
        # may be erased already. So the number only grows.
        async with self._checkpointing:
            if self._state.clean:
                # All is in the sessions' own objects.
                return
            number = self._state.last_segment
            await self._put_checkpoint(number)
            # What was published meanwhile is above the number: a start reads those segments.
            await self._swap(last_checkpoint=number, has_checkpoint=True)

    async def _put_checkpoint(self, number: int) -> None:
        """Of the catalogue as it is at the call, *number* being the last segment then. Raises RemoteError."""
        entries = [(name, ref, sequence) for name, (ref, sequence) in sorted(self._catalogue.items())]
        kept = self.keeping.for_checkpoint(self._catalogue)
        checkpoint = Checkpoint(self.name, number, self.incarnation, entries, kept)
        await self._store.put(checkpoint_key(self.name, number), encode_checkpoint(checkpoint, self._envelope))

    # -- publishing

    async def announce(self, name: bytes) -> None:
        """See Publisher. What a removed session of the same name left there is superseded by the catalogue."""
        if self._monotonic_s() - self._written_s > SURE_S:
            # A node that was fenced must not leave names that others would see.
            await self._swap()
        record = SessionObject(name=name, holder=(self.name, self.incarnation), manifest=None, sequence=0, kept=[])
        with contextlib.suppress(RemoteConflict):
            await self._store.put_if(
                session_key(self._envelope, name), encode_session_object(record, self._envelope), None
            )

    async def publish(self, last_segment: int, entries: Sequence[tuple[bytes, ManifestRef | None, int]]) -> None:
        """See Publisher."""
        self._given[last_segment] = list(entries)
        await self._swap(last_segment=last_segment)

    async def release(self) -> None:
        """Write every session of the catalogue to its own object, and mark the state clean. Raises Fenced,
        RemoteError.
        """
        await self._write_objects([*self._catalogue, *self.keeping.untold(self._catalogue)])
        await self._tell_roster()
        async with self._checkpointing:
            await self._swap(
                clean=True, last_checkpoint=self._state.last_segment, has_checkpoint=False, has_roster=True
            )
        self._catalogue.clear()
        self.keeping.end()

    async def _tell_roster(self) -> None:
        """Have the roster say which sessions have an object of their own. Raises Fenced, RemoteError."""
        if self._state.has_roster and not self._catalogue:
            return
        present = [name for name, (ref, _) in self._catalogue.items() if ref is not None]
        removed = [name for name, (ref, _) in self._catalogue.items() if ref is None]
        await self._roster.change(self._store, present, removed, self.prove_right, is_due=self._state.has_roster)

    async def _write_objects(self, names: Sequence[bytes]) -> None:
        """Have the sessions' own objects say what is the latest, and kept. Raises Fenced, RemoteError."""

        def draft(name: bytes, there: SessionObject | None) -> SessionObject | None:
            if name not in self._catalogue:
                return self.keeping.retold(name, there)
            ref, sequence = self._catalogue[name]
            return None if ref is None else self.keeping.released(name, ref, sequence, there)

        await write_objects(self._store, self._envelope, names, draft, self.prove_right)

    async def save_kept(self, name: bytes) -> None:
        """Have the remote know now which snapshots of the session are kept. Raises Fenced, RemoteError."""
        if name in self._catalogue:
            await self.checkpoint()
        else:
            await self._write_objects([name])

    def relocate(self, moved: Mapping[ManifestRef, ManifestRef]) -> None:
        """See sync.erasing.Eraser."""
        self.keeping.relocate(moved)

    async def erase(self, names: Collection[bytes]) -> None:
        """Delete the objects of sessions whose removal is published, and write a checkpoint that does not name them.
        Segments up to its number are not read by a start any more. Raises Fenced, RemoteError.
        """
        # First: a name in the roster without an object would be a loss.
        await self._roster.forget(self._store, names, self.prove_right, is_due=self._state.has_roster)
        # The right to do so must still be this node's.
        await self._swap()
        await self._store.delete([session_key(self._envelope, name) for name in names])
        for name in names:
            self._catalogue.pop(name, None)
            self.keeping.forget(name)
        await self.checkpoint()

    # -- which sessions there are

    async def resolve(self, name: bytes) -> tuple[ManifestRef | None, int] | None:
        """See sync.restore.Catalogue."""
        if name in self._catalogue:
            ref, sequence = self._catalogue[name]
            return None if ref is None else (ref, sequence)
        relocations = self.keeping.relocations
        record = await read_object(self._answering, self._envelope, name)
        if record is None:
            await self._miss(name)
            return None
        self.lost.discard(name)
        if relocations == self.keeping.relocations:
            self.keeping.saw(record)
        return record.manifest, record.sequence

    async def _miss(self, name: bytes) -> None:
        """The session has no object: raises RemoteCorrupt if it was released, RemoteError if that is not known."""
        if name in await self._roster.names(self._answering, is_due=self._state.has_roster):
            self.lost.add(name)
            raise lost_session(self._envelope, name)

    async def resolve_kept(self, name: bytes) -> list[KeptSnapshot]:
        """See sync.restore.Catalogue."""
        return await self.keeping.resolve(self._answering, name)

    async def iter_pages(self) -> AsyncIterator[list[bytes]]:
        """See sync.restore.Catalogue."""
        yield [name for name, (ref, _) in self._catalogue.items() if ref is not None]
        lost = set(await self._roster.names(self._answering, is_due=self._state.has_roster))
        page: list[bytes] = []
        async for entry in iter_keys(self._answering, SESSIONS_PREFIX, PAGE):
            name = self._envelope.open_name(entry.key.removeprefix(SESSIONS_PREFIX))
            lost.discard(name)
            if name not in self._catalogue:
                page.append(name)
            if len(page) == PAGE:
                yield page
                page = []
        yield page
        # They exist: who looks into one is told what is missing.
        self.lost = lost.difference(self._catalogue)
        for name in sorted(self.lost):
            log.error("session %s: %s", show(name), lost_session(self._envelope, name))
        yield sorted(self.lost)


async def open_node(
    store: ObjectStore,
    envelope: Envelope,
    identity: Identity,
    *,
    take_over: bool,
    stale_s: float,
    monotonic_s: Callable[[], float],
) -> Node:
    """Take the prefix. Raises RemoteHeld, naming the holder, when another node has it and is not to be, or can't be,
    taken over; RemoteCorrupt when the holder, its state or the roster is missing and is not to be taken over;
    RemoteError otherwise.
    """
    holder, holder_etag = await read_holder(store)
    if holder is None and take_over:
        holder = await find_last_holder(store)
    inherited, has_roster = nothing(), False
    is_own = was_last(holder, identity)
    if holder is not None and not is_own:
        inherited, has_roster = await take_from(store, envelope, holder, identity, take_over, stale_s)
    state, etag, is_rebuilt = await start_incarnation(store, identity, holder, take_over, has_roster)
    if is_own:
        inherited = await read_known(store, envelope, state)
        if is_rebuilt:
            await drop_older(store, envelope, identity.name, inherited)
    roster = HeldRoster(envelope)
    if take_over and state.has_roster and await roster.begin_anew(store):
        state = msgspec.structs.replace(state, has_roster=False)
    node = Node(store, envelope, identity, state, etag, inherited, roster, monotonic_s=monotonic_s, former=holder)
    if inherited.latest and (not is_own or is_rebuilt):
        # Before the claim: from then on nobody looks into the state of the node before.
        await node.checkpoint()
    await claim(store, identity, state.incarnation, holder_etag)
    return node
