"""Reading what the bucket has: every node with its state and catalogue, every segment, session object and manifest.

All of it is for collectors and checkers, which look from outside: they hold nothing and change nothing. The order of
reading matters where a node is at work meanwhile: states and catalogues first, then the sessions' own objects, because
a node that releases writes the objects before it empties its catalogue. So each session is seen in one of the two.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import RemoteCorrupt, RemoteMissing, RemoteUnsuitable, SessfsError, StoreCorrupt
from sessfs.format.manifest import Manifest, ManifestRef, SegmentRef, merge
from sessfs.format.repository import (
    FORMAT_KEY,
    HOLDER_KEY,
    Holder,
    NodeState,
    SessionObject,
    decode_format,
    decode_holder,
    decode_session_object,
    decode_state,
    open_format,
)
from sessfs.format.segment import (
    NODES_PREFIX,
    SESSIONS_PREFIX,
    Footer,
    checkpoint_key,
    open_manifest,
    parse_checkpoint_key,
    parse_segment_key,
    segment_key,
    session_key,
    state_key,
)
from sessfs.remote.catalogue import read_known
from sessfs.remote.footers import read_segment_footer
from sessfs.remote.objectstore import LIST_PAGE, iter_keys
from sessfs.remote.parallel import for_each, over
from sessfs.remote.recovery import (
    drop_older,
    find_last_holder,
    lost_holder,
    lost_state,
    rebuild_state,
    refuse_lost_format,
)
from sessfs.remote.roster import PUT_BACK, lost_session, read_roster
from sessfs.sync.snapshot import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterator

    from sessfs.format.envelope import Envelope
    from sessfs.format.repository import KeptSnapshot
    from sessfs.remote.catalogue import Catalogue, Known, OnDamage
    from sessfs.remote.objectstore import ObjectStore

    Progress = Callable[[str, int], None]

DAMAGE = (RemoteCorrupt, RemoteMissing, RemoteUnsuitable, StoreCorrupt)
"""Errors that are a finding about the bucket, not a failure to find out."""


class Stored(NamedTuple):
    """An object as the listing has it: *size* in bytes, *mtime_s* by the store's clock."""

    size: int
    mtime_s: float


class Inventory(NamedTuple):
    """Everything under nodes/, as listed."""

    segments: dict[SegmentRef, Stored]
    checkpoints: dict[SegmentRef, Stored]
    """By node and number, as segments."""
    nodes: set[str]
    strangers: list[str]
    """Keys of objects that sessfs does not put there."""


class View(NamedTuple):
    """Who writes, and what each node says, read in this order: inventory, holder, states, catalogues."""

    inventory: Inventory
    holder: Holder | None
    holder_etag: str | None
    states: dict[str, NodeState]
    etags: dict[str, str]
    known: dict[str, Known]
    """What nodes say that did not release all, as far as they count."""
    is_whole: bool
    """False when something that would have been said here is lost or damaged."""

    @property
    def truth(self) -> Catalogue:
        """The holder's catalogue, which is above the sessions' own objects."""
        known = self._of_holder
        return known.latest if known is not None else {}

    @property
    def covered(self) -> set[bytes]:
        """Sessions of which the holder says what is kept: their own objects count no more."""
        known = self._of_holder
        return known.covered if known is not None else set()

    @property
    def _of_holder(self) -> Known | None:
        return self.known.get(self.holder.node) if self.holder is not None else None


class Root(NamedTuple):
    """A manifest that something in the bucket names. *kind*: "latest" what a mount would restore, "kept" a snapshot,
    "left" what a node that is not the holder last knew.
    """

    session: bytes
    ref: ManifestRef
    kind: str
    where: str
    """The object that names it."""


class Ranges:
    """Byte ranges of one object, each counted once; a range that comes twice comes exactly so."""

    __slots__ = ("_packed", "_settled")

    def __init__(self) -> None:
        self._packed = array("Q")
        self._settled = 0

    def add(self, offset: int, length: int) -> None:
        """Bytes [offset, offset + length)."""
        self._packed.append(offset << 32 | length)
        if len(self._packed) > 64 + 2 * self._settled:
            self._settle()

    def _settle(self) -> None:
        self._packed = array("Q", sorted(set(self._packed)))
        self._settled = len(self._packed)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(offset, length), ascending."""
        self._settle()
        return ((packed >> 32, packed & 0xFFFFFFFF) for packed in self._packed)

    @property
    def n_bytes(self) -> int:
        """Sum of the lengths."""
        return sum(length for _, length in self)


# -- the repository


async def open_existing(store: ObjectStore, secret: bytes | None, where: str) -> tuple[bytes, Envelope]:
    """(key of chunk ids, envelope) of the repository in *store*; makes none. *where* is the remote's URL, for people.

    Raises RemoteMissing when there is no repository, KeyWrong, RemoteError.
    """
    try:
        blob = await store.get(FORMAT_KEY)
    except RemoteMissing as exc:
        await refuse_lost_format(store)
        raise RemoteMissing(f"{where} holds no sessfs repository: check the URL") from exc
    return open_format(decode_format(blob.body), secret)


# -- nodes


async def read_inventory(store: ObjectStore, progress: Progress | None = None) -> Inventory:
    """List everything under nodes/. Raises RemoteError."""
    found = Inventory({}, {}, set(), [])
    async for entry in iter_keys(store, NODES_PREFIX):
        segment, checkpoint = parse_segment_key(entry.key), parse_checkpoint_key(entry.key)
        node = entry.key.split("/")[1]
        stored = Stored(entry.size, entry.mtime_s)
        if segment is not None:
            found.segments[SegmentRef(*segment)] = stored
        elif checkpoint is not None:
            found.checkpoints[SegmentRef(*checkpoint)] = stored
        elif entry.key != f"{NODES_PREFIX}{node}/state":
            found.strangers.append(entry.key)
            continue
        found.nodes.add(node)
        if progress is not None and len(found.segments) % 1000 == 0:
            progress("segments", len(found.segments))
    return found


async def read_holder(store: ObjectStore) -> tuple[Holder | None, str | None]:
    """Who may write, and the etag of the object that says so; (None, None) when nobody ever did."""
    try:
        blob = await store.get(HOLDER_KEY)
    except RemoteMissing:
        return None, None
    return decode_holder(blob.body), blob.etag


async def read_view(
    store: ObjectStore,
    envelope: Envelope,
    *,
    counts: Callable[[NodeState], bool] = lambda state: False,
    on_damage: OnDamage | None = None,
    progress: Progress | None = None,
) -> View:
    """Who writes, and what each node says. *counts* is asked whether to read the catalogue of a node that is not the
    holder; no mount would restore anything from it. A node without a state is not in `states`. Raises RemoteError;
    RemoteCorrupt when the holder, or the state of a node that published, is missing. *on_damage*, if given, gets (key,
    error) of that, and of what is damaged: then what can be found out without it is in the view.
    """
    return await _ViewReader(store, envelope, counts, on_damage).read(progress)


class _ViewReader:
    """One call of `read_view`."""

    def __init__(
        self,
        store: ObjectStore,
        envelope: Envelope,
        counts: Callable[[NodeState], bool],
        on_damage: OnDamage | None,
    ) -> None:
        self._store = store
        self._envelope = envelope
        self._counts = counts
        self._on_damage = on_damage
        self._is_whole = True

    def _damage(self, key: str, error: SessfsError) -> None:
        if self._on_damage is None:
            raise error
        self._is_whole = False
        self._on_damage(key, error)

    async def read(self, progress: Progress | None) -> View:
        inventory = await read_inventory(self._store, progress)
        holder, holder_etag = await self._read_holder(inventory)
        nodes = inventory.nodes | ({holder.node} if holder is not None else set())
        view = View(inventory, holder, holder_etag, {}, {}, {}, is_whole=True)

        async def try_node(node: str) -> None:
            try:
                await self._read_node(view, node)
            except DAMAGE as exc:
                self._damage(state_key(node), exc)

        await for_each(over(sorted(nodes)), try_node)
        return view._replace(is_whole=self._is_whole)

    async def _read_holder(self, inventory: Inventory) -> tuple[Holder | None, str | None]:
        try:
            holder, etag = await read_holder(self._store)
            written = [segment_key(*ref) for ref in sorted(inventory.segments)]
            written += [checkpoint_key(*ref) for ref in sorted(inventory.checkpoints)]
            if holder is None and written:
                self._damage(HOLDER_KEY, lost_holder(written[0]))
                holder = await find_last_holder(self._store)
        except DAMAGE as exc:
            self._damage(HOLDER_KEY, exc)
            return None, None
        return holder, etag

    async def _read_node(self, view: View, node: str) -> None:
        is_holder = view.holder is not None and view.holder.node == node
        try:
            blob = await self._store.get(state_key(node))
        except RemoteMissing:
            await self._miss_state(view, node)
            return
        state = decode_state(blob.body, state_key(node))
        view.states[node] = state
        view.etags[node] = blob.etag
        if state.node != node:
            raise RemoteCorrupt(f"{state_key(node)} is the state of node {state.node}")
        if not state.clean and (is_holder or self._counts(state)):
            view.known[node] = await read_known(self._store, self._envelope, state, self._damage)

    async def _miss_state(self, view: View, node: str) -> None:
        """The node has no state: fine if it only just begins, else that was lost."""
        if view.holder is None or view.holder.node != node:
            self._damage(
                state_key(node), RemoteCorrupt(f"{state_key(node)} is missing, but not its segments: {PUT_BACK}")
            )
            return
        self._damage(state_key(node), lost_state(view.holder))
        state = await rebuild_state(self._store, view.holder)
        view.known[node] = known = await read_known(self._store, self._envelope, state, self._damage)
        await drop_older(self._store, self._envelope, node, known)


async def read_footer(store: ObjectStore, envelope: Envelope, ref: SegmentRef) -> Footer:
    """The footer of a segment whose size is not known. Raises RemoteError."""
    return await read_segment_footer(store, ref.node, ref.number, await find_size(store, ref), envelope)


async def find_size(store: ObjectStore, ref: SegmentRef) -> int:
    """Bytes of a segment that is referred to. Raises RemoteCorrupt when it is missing, RemoteError."""
    key = segment_key(ref.node, ref.number)
    listed = await store.list_page(key, "", 1)
    if not listed or listed[0].key != key:
        raise RemoteCorrupt(f"{key} is not in the remote, but other objects refer to it: {PUT_BACK}")
    return listed[0].size


# -- sessions


async def read_view_roster(store: ObjectStore, envelope: Envelope, view: View) -> frozenset[bytes]:
    """The sessions that were released; none where no roster was written yet. Raises RemoteError."""
    state = view.states.get(view.holder.node) if view.holder is not None else None
    return await read_roster(store, envelope, is_due=state is not None and state.has_roster) or frozenset()


async def find_lost_sessions(
    store: ObjectStore, envelope: Envelope, view: View, roster: frozenset[bytes], keys: Collection[str]
) -> list[bytes]:
    """Sessions of the *roster*, read before all *keys* of session objects were listed, that have no object, and were
    not removed. Raises RemoteError.
    """
    here = set(keys)
    lost = [name for name in roster.difference(view.truth) if session_key(envelope, name) not in here]
    if not lost:
        return []
    # Removed, and released, by a mount at work beside this since the view was read?
    now = await read_view(store, envelope, on_damage=lambda key, error: None)
    roster = await read_view_roster(store, envelope, now)
    return sorted(name for name in lost if name in roster and name not in now.truth)


async def refuse_lost_sessions(
    store: ObjectStore, envelope: Envelope, view: View, roster: frozenset[bytes], keys: Collection[str]
) -> None:
    """Raises RemoteCorrupt, naming the first, if `find_lost_sessions` finds any."""
    for name in await find_lost_sessions(store, envelope, view, roster, keys):
        raise lost_session(envelope, name)


async def iter_session_keys(store: ObjectStore) -> AsyncGenerator[str, None]:
    """The keys of all session objects. Raises RemoteError; ends without an error only when it was complete."""
    start_after = ""
    while True:
        page = await store.list_page(SESSIONS_PREFIX, start_after, LIST_PAGE)
        for entry in page:
            yield entry.key
        if len(page) < LIST_PAGE:
            return
        start_after = page[-1].key


async def read_session(store: ObjectStore, envelope: Envelope, key: str) -> SessionObject | None:
    """The session object at *key*, None when it was deleted since it was listed. Raises RemoteError, KeyWrong."""
    try:
        blob = await store.get(key)
    except RemoteMissing:
        return None
    record = decode_session_object(blob.body, envelope, key)
    if session_key(envelope, record.name) != key:
        raise RemoteCorrupt(f"{key} holds the object of another session")
    return record


def catalogue_roots(view: View) -> Iterator[list[Root]]:
    """The manifests that nodes' catalogues name, those of one session together."""
    for node, known in view.known.items():
        is_holder = view.holder is not None and node == view.holder.node
        where = f"the catalogue of node {node}"
        former: dict[bytes, list[KeptSnapshot]] = {}
        for name, kept in known.former:
            former.setdefault(name, []).append(kept)
        for name in dict.fromkeys((*known.latest, *known.kept, *former)):
            latest = known.latest.get(name, (None, 0))[0]
            roots = [] if latest is None else [Root(name, latest, "latest" if is_holder else "left", where)]
            snapshots = [*former.get(name, ()), *(known.kept[name].snapshots.values() if name in known.kept else ())]
            kind = "kept" if is_holder else "left"
            yield roots + [Root(name, one.manifest, kind, where) for one in snapshots if one.manifest != latest]


def session_roots(view: View, record: SessionObject, key: str) -> Iterator[Root]:
    """The manifests that a session object names, but for those that the holder's catalogue supersedes."""
    latest = record.manifest if record.name not in view.truth else None
    if latest is not None:
        yield Root(record.name, latest, "latest", key)
    if record.name in view.covered:
        return
    for kept in record.kept:
        if kept.manifest != latest:
            yield Root(record.name, kept.manifest, "kept", key)


Cache = dict[ManifestRef, Manifest]
"""Manifests that were read already: snapshots of one session build upon the same ones."""


async def read_chain(
    store: ObjectStore, envelope: Envelope, ref: ManifestRef, cache: Cache | None = None
) -> list[tuple[ManifestRef, Manifest]]:
    """The manifest at *ref* and those it builds upon, the full one last. Raises RemoteError."""
    cache = {} if cache is None else cache
    chain: list[tuple[ManifestRef, Manifest]] = []
    at: ManifestRef | None = ref
    while at is not None:
        if len(chain) > MAX_DEPTH + 1:
            raise RemoteCorrupt(f"manifest {ref} has more than {MAX_DEPTH} bases")
        manifest = cache.get(at)
        if manifest is None:
            blob = await store.get(segment_key(at.node, at.segment), at.offset, at.length)
            manifest = cache[at] = open_manifest(blob.body, at, envelope)
        chain.append((at, manifest))
        at = manifest.base
    return chain


def merge_chain(chain: list[tuple[ManifestRef, Manifest]]) -> Manifest:
    """The full manifest that the answer of `read_chain` amounts to. Raises RemoteCorrupt."""
    manifests = [manifest for _, manifest in reversed(chain)]
    return merge(manifests[0], manifests[1:])
