"""Collection: delete segments that no manifest needs, and have mostly dead ones written anew.

A run reads everything that refers to segments (see remote_index), and then deletes a segment only if all of this holds:

1. No manifest that the bucket names refers to it: not the latest of any session, nor a kept snapshot, nor what a node
   last knew that another one replaced less than a grace period ago.
2. Its node can't write it again, nor need its footer: its number is at most the node's last, and below the node's last
   checkpoint unless the node released all.
3. It is older than the grace period by the store's clock and by its writer's, and a mark that condemns it is older than
   the grace period by the store's clock.
4. Nobody can come to refer to it. Either nobody holds the prefix, from before the reading of manifests until after it;
   or the run is the holder's own, which was not fenced until after it, has read what it published meanwhile, and has
   forgotten, in one step with that comparison, all places in the segment, or spared it because a chunk there is needed.

That 4 is enough: from then on no live manifest refers to the segment and no running node places a chunk there. A node
gets places only from its own new segments, from live manifests, and from its state directory; and a node that starts
later finds the mark, which is older than its start, and does not rely on what it condemns (`missing_segments`), however
long it was away and whatever it had not sent. So two collectors can't hurt each other either: each deletes only what
nobody can come to need, and marks are never changed, only added, and deleted after what they name.

A run from outside, beside a mounted node, therefore marks and reports; that node's own daily run deletes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import trio

from sessfs.errors import Fenced, RemoteUnavailable
from sessfs.format.manifest import SegmentRef
from sessfs.format.repository import decode_state
from sessfs.format.segment import checkpoint_key, segment_key, state_key
from sessfs.remote.catalogue import footer_catalogue
from sessfs.remote.footers import read_segment_footer
from sessfs.remote.parallel import for_each, over
from sessfs.sync import gc_marks, remote_index
from sessfs.sync.gc_live import Liveness, is_over
from sessfs.sync.gc_marks import MARK_PREFIX, MARK_VERSION, RETIRED_S, Mark
from sessfs.sync.remote_index import Root
from sessfs.sync.upload import Numbering

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from sessfs.format.envelope import Envelope
    from sessfs.format.repository import NodeState
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.gc_live import Rewrite
    from sessfs.sync.gc_marks import Marks
    from sessfs.sync.remote_index import Progress, View

GRACE_S = 7 * 86400.0
LIVE_SHARE = 0.3
SWEEP_MAX_S = 3600.0
"""A run deletes nothing later than this after it read the manifests."""
MARK_KEEP_S = 86400.0
DELETE_BATCH = 1000


class Holding(Numbering, Protocol):
    """The node that holds the prefix, when the run is its own."""

    def release_segments(self, segments: Collection[SegmentRef]) -> set[SegmentRef]:
        """Forget the places of chunks in *segments* that no recipe, pin or upload under way holds; return those
        segments in which a held chunk is placed. Synchronous. Afterwards no chunk is placed in the others.
        """


class Item(msgspec.Struct, frozen=True):
    """One object of the report. *fate*: "delete" (or deleted), "wait" until the grace period is over, "held" by the
    node that is mounted, "rewrite" because little of it is live.
    """

    key: str
    size_bytes: int
    live_bytes: int
    fate: str


class Report(msgspec.Struct, frozen=True):
    """What a run did, or with dry_run would have done."""

    dry_run: bool
    sessions: int
    segments: int
    segment_bytes: int
    live_bytes: int
    deleted: int
    deleted_bytes: int
    items: list[Item]
    notes: list[str]


class Options(NamedTuple):
    """*run_id*: any text of letters and digits that no other run has."""

    run_id: str
    grace_s: float = GRACE_S
    dry_run: bool = False
    live_share: float = LIVE_SHARE


async def collect(
    store: ObjectStore,
    envelope: Envelope,
    options: Options,
    *,
    holding: Holding | None = None,
    request_rewrite: Callable[[Rewrite], Awaitable[None]] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run once. *holding* when the caller is the node that holds the prefix; it then passes *request_rewrite*, too.

    Raises RemoteError, having deleted nothing if anything could not be listed or read; Fenced when *holding* no longer
    holds the prefix. A dry run writes nothing, so it takes the last time that a collector wrote for the store's now.
    """
    return await _Run(store, envelope, options, holding, request_rewrite, progress).run()


class _Run:
    """One run."""

    def __init__(
        self,
        store: ObjectStore,
        envelope: Envelope,
        options: Options,
        holding: Holding | None,
        request_rewrite: Callable[[Rewrite], Awaitable[None]] | None,
        progress: Progress | None,
    ) -> None:
        self._store = store
        self._envelope = envelope
        self._options = options
        self._holding = holding
        self._request_rewrite = request_rewrite
        self._progress = progress
        self._live = Liveness()
        self._n_sessions = 0
        self._now_s = 0.0

    async def run(self) -> Report:
        marks = await gc_marks.read_marks(self._store, touch_clock=not self._options.dry_run)
        self._now_s = marks.now_s
        retired = {identity for identity, since_s in marks.retired_since().items() if self._is_old(since_s)}
        view = await remote_index.read_view(
            self._store,
            self._envelope,
            counts=lambda state: (state.node, state.incarnation) not in retired,
            progress=self._progress,
        )
        if self._options.dry_run:
            newest = max((stored.mtime_s for stored in view.inventory.segments.values()), default=0.0)
            self._now_s = max(self._now_s, newest)
        replaced = self._find_replaced(view, marks, retired)
        await self._mark_all(view)
        started_s = trio.current_time()
        unreferenced = {ref for ref in view.inventory.segments if is_over(ref, view) and ref not in self._live.ranges}
        doomed = await self._find_doomed(view, marks, unreferenced)
        writer, spared = await self._exclude_writers(view, doomed)
        doomed -= spared
        checkpoints = self._old_checkpoints(view)
        report = self._report(view, unreferenced - spared, doomed, checkpoints, writer)
        if self._options.dry_run:
            return report
        await self._put_mark(view, marks, unreferenced, spared, replaced)
        await self._delete([checkpoint_key(*ref) for ref in checkpoints], started_s)
        if writer is None:
            await self._delete([segment_key(*ref) for ref in sorted(doomed)], started_s)
            existing = view.inventory.segments.keys() - doomed
            await self._delete(marks.settled(existing, replaced, MARK_KEEP_S), started_s)
        await self._rewrite(view)
        return report

    def _is_old(self, time_s: float) -> bool:
        return self._now_s - time_s >= self._options.grace_s

    # -- what is live

    def _find_replaced(self, view: View, marks: Marks, retired: set[tuple[str, int]]) -> dict[tuple[str, int], float]:
        """The nodes that another one replaced, with the store's time when a mark first said so, RETIRED_S for those in
        *retired*.
        """
        if view.holder is None:
            return {}
        known = marks.retired_since()
        replaced = {}
        for node, state in view.states.items():
            identity = (node, state.incarnation)
            if node != view.holder.node and not state.clean:
                replaced[identity] = RETIRED_S if identity in retired else known.get(identity, self._now_s)
        return replaced

    async def _mark_all(self, view: View) -> None:
        """Mark from every manifest that the bucket names. Raises RemoteCorrupt when something that it names is missing:
        whoever puts that back should find all that goes with it.
        """
        roster = await remote_index.read_view_roster(self._store, self._envelope, view)
        keys: list[str] = []
        await for_each(
            over(remote_index.catalogue_roots(view)),
            lambda roots: self._live.mark(self._store, self._envelope, roots),
        )

        async def mark_session(key: str) -> None:
            keys.append(key)
            record = await remote_index.read_session(self._store, self._envelope, key)
            if record is not None:
                await self._live.mark(self._store, self._envelope, remote_index.session_roots(view, record, key))
            self._n_sessions += 1
            if self._progress is not None and self._n_sessions % 100 == 0:
                self._progress("sessions", self._n_sessions)

        await for_each(remote_index.iter_session_keys(self._store), mark_session)
        await remote_index.refuse_lost_sessions(self._store, self._envelope, view, roster, keys)
        for ref in sorted(self._live.ranges.keys() - view.inventory.segments.keys()):
            # Unless it was put after the listing.
            await remote_index.find_size(self._store, ref)

    async def _find_doomed(self, view: View, marks: Marks, unreferenced: set[SegmentRef]) -> set[SegmentRef]:
        """Those of *unreferenced* that are old, and were condemned long ago."""
        since = marks.condemned_since()
        doomed: set[SegmentRef] = set()

        async def check_footer(ref: SegmentRef) -> None:
            footer = await read_segment_footer(
                self._store, ref.node, ref.number, view.inventory.segments[ref].size, self._envelope
            )
            if self._is_old(footer.created_ns / 1e9):
                doomed.add(ref)

        old = sorted(
            ref
            for ref in unreferenced
            if ref in since and self._is_old(since[ref]) and self._is_old(view.inventory.segments[ref].mtime_s)
        )
        await for_each(over(old), check_footer)
        return doomed

    def _old_checkpoints(self, view: View) -> list[SegmentRef]:
        return sorted(
            ref
            for ref, stored in view.inventory.checkpoints.items()
            if ref.node in view.states
            and ref.number < view.states[ref.node].last_checkpoint
            and self._is_old(stored.mtime_s)
        )

    # -- who else writes

    async def _exclude_writers(self, view: View, doomed: set[SegmentRef]) -> tuple[str | None, set[SegmentRef]]:
        """(who may be writing, so that nothing can be deleted; those of *doomed* that are needed after all)."""
        spared = {ref for ref in doomed if self._live.may_be_needed(ref)}
        if self._holding is None:
            return await find_writer(self._store, view), spared
        await check_holding(self._store, self._holding)
        if self._options.dry_run:
            return None, spared
        return None, spared | await self._release(view, self._holding, doomed - spared)

    async def _release(self, view: View, holding: Holding, doomed: set[SegmentRef]) -> set[SegmentRef]:
        """Mark what the node published since its state was read, and have it forget its places in the rest of *doomed*;
        those that are needed.
        """
        marked = view.states[holding.name].last_segment
        while True:
            state = await check_holding(self._store, holding)
            # The state knows of a segment whose acknowledgement was lost on its way to the node.
            last = max(holding.last_segment, state.last_segment)
            if last <= marked:
                # No await between this comparison and the release.
                live = doomed & self._live.ranges.keys()
                return live | holding.release_segments(doomed - live)
            for number in range(marked + 1, last + 1):
                await self._mark_segment(SegmentRef(holding.name, number))
            marked = last

    async def _mark_segment(self, segment: SegmentRef) -> None:
        footer = await remote_index.read_footer(self._store, self._envelope, segment)
        catalogue = footer_catalogue(footer, segment.node, segment.number)
        for name, (ref, _) in catalogue.items():
            if ref is not None:
                await self._live.mark(self._store, self._envelope, [Root(name, ref, "latest", segment_key(*segment))])

    # -- what is done

    async def _put_mark(
        self,
        view: View,
        marks: Marks,
        unreferenced: set[SegmentRef],
        spared: set[SegmentRef],
        replaced: dict[tuple[str, int], float],
    ) -> None:
        """Say what was found, if it is news."""
        condemned = marks.condemned_since().keys()
        candidates = unreferenced - condemned - spared
        rescued = {ref for ref in condemned if ref in self._live.ranges and ref in view.inventory.segments} | spared
        news = replaced.items() - marks.retired_since().items()
        if not candidates and not rescued and not news:
            return
        mark = Mark(
            version=MARK_VERSION,
            candidates=gc_marks.group(candidates),
            rescued=gc_marks.group(rescued),
            retired=[(node, incarnation, since_s) for (node, incarnation), since_s in sorted(replaced.items())],
        )
        await self._store.put(f"{MARK_PREFIX}{self._options.run_id}", gc_marks.encode_mark(mark))

    async def _delete(self, keys: list[str], started_s: float) -> None:
        for first in range(0, len(keys), DELETE_BATCH):
            if trio.current_time() - started_s > SWEEP_MAX_S:
                raise RemoteUnavailable("the collection took too long, and left the rest to the next one")
            await self._store.delete(keys[first : first + DELETE_BATCH])
            if self._progress is not None:
                self._progress("deleted", first + DELETE_BATCH)

    async def _rewrite(self, view: View) -> None:
        """Ask the holder to publish anew what mostly dead segments still hold."""
        chosen = self._find_mostly_dead(view)
        if self._request_rewrite is not None and chosen:
            await self._request_rewrite(await self._live.plan_rewrite(self._store, self._envelope, chosen))

    def _find_mostly_dead(self, view: View) -> list[SegmentRef]:
        old = {
            ref: stored.size
            for ref, stored in view.inventory.segments.items()
            if self._is_old(stored.mtime_s) and is_over(ref, view)
        }
        return self._live.find_mostly_dead(old, self._options.live_share)

    # -- the report

    def _report(
        self,
        view: View,
        unreferenced: set[SegmentRef],
        doomed: set[SegmentRef],
        checkpoints: list[SegmentRef],
        writer: str | None,
    ) -> Report:
        stored = view.inventory.segments
        fate = "delete" if writer is None else "held"
        items = [Item(checkpoint_key(*ref), view.inventory.checkpoints[ref].size, 0, "delete") for ref in checkpoints]
        items += [
            Item(segment_key(*ref), stored[ref].size, 0, fate if ref in doomed else "wait")
            for ref in sorted(unreferenced)
        ]
        items += [
            Item(segment_key(*ref), stored[ref].size, self._live.live_bytes(ref), "rewrite")
            for ref in self._find_mostly_dead(view)
        ]
        gone = [item.size_bytes for item in items if item.fate == "delete"]
        return Report(
            dry_run=self._options.dry_run,
            sessions=len(self._live.latest),
            segments=len(stored),
            segment_bytes=sum(s.size for s in stored.values()),
            live_bytes=sum(self._live.live_bytes(ref) for ref in stored),
            deleted=len(gone),
            deleted_bytes=sum(gone),
            items=items,
            notes=self._notes(view, writer),
        )

    def _notes(self, view: View, writer: str | None) -> list[str]:
        notes = [
            f"{root.where} names a snapshot of session {root.session.decode(errors='replace')} whose manifest is gone "
            f"({segment_key(root.ref.node, root.ref.segment)} or what it builds upon): put that object back, or drop "
            "the snapshot; until then what it may need is left alone"
            for root in self._live.lost
        ]
        if writer is not None:
            notes.append(f"{writer}: segments are only marked, and deleted by its own daily collection")
        unsettled = [
            stored.size
            for ref, stored in view.inventory.segments.items()
            if ref.node not in view.states or ref.number > view.states[ref.node].last_segment
        ]
        if unsettled:
            notes.append(
                f"{len(unsettled)} segments ({sum(unsettled)} bytes) were never published; "
                "their nodes write them again when they are mounted"
            )
        if view.inventory.strangers:
            notes.append(
                f"{len(view.inventory.strangers)} objects are not of sessfs: {view.inventory.strangers[0]}, ..."
            )
        return notes


async def find_writer(store: ObjectStore, view: View) -> str | None:
    """Who held the prefix at any time since the states of *view* were read, None when nobody did. RemoteError."""
    if view.holder is None:
        holder, _ = await remote_index.read_holder(store)
        return None if holder is None else f"node {holder.node} has just mounted the remote"
    who = f"node {view.holder.node} (host {view.holder.hostname})"
    if not view.states[view.holder.node].clean:
        return f"{who} has the remote mounted, or did not release it"
    holder, etag = await remote_index.read_holder(store)
    blob = await store.get(state_key(view.holder.node))
    if etag != view.holder_etag or blob.etag != view.etags[view.holder.node]:
        who = who if holder is None else f"node {holder.node} (host {holder.hostname})"
        return f"{who} has just mounted the remote"
    return None


async def check_holding(store: ObjectStore, holding: Holding) -> NodeState:
    """The node's state in the remote. Raises Fenced unless the prefix is the node's own."""
    holder, _ = await remote_index.read_holder(store)
    state = decode_state((await store.get(state_key(holding.name))).body, state_key(holding.name))
    mine = (holding.name, holding.incarnation)
    is_holder = holder is not None and (holder.node, holder.incarnation) == mine
    if not is_holder or (state.node, state.incarnation) != mine or state.fenced_by is not None or state.clean:
        raise Fenced(f"node {holding.name} no longer holds the remote: nothing was collected")
    return state
