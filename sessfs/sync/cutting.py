"""Cutting sessions for a round of snapshots, of whatever becomes of them: uploaded, or kept here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from sessfs.errors import StoreCorrupt
from sessfs.sync.snapshot import Draft, FrozenT, cut, release
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sessfs.local.changes import Changes
    from sessfs.local.chunkstore import References
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Published
    from sessfs.sync.snapshot import Freezer

DOT_SESSION = b"."


class Round(Generic[FrozenT]):
    """What one round is about: drafts, removed sessions with their names, and what stopped a session."""

    def __init__(self) -> None:
        self.drafts: list[Draft[FrozenT]] = []
        self.removed: dict[Ino, bytes] = {}
        self.damage: StoreCorrupt | None = None


class Cutter(Generic[FrozenT]):
    """Makes drafts of changed sessions. *last* gives what a session's next snapshot may be a delta of."""

    def __init__(
        self,
        inodes: Inodes,
        changes: Changes,
        references: References,
        freezer: Freezer[FrozenT],
        last: Callable[[Ino], Published | None],
    ) -> None:
        self._inodes = inodes
        self._changes = changes
        self._references = references
        self._freezer = freezer
        self._last = last
        self.on_damage: Callable[[Ino, StoreCorrupt], None] = lambda session, exc: None
        """Told of each session that is left out; set by whoever wants to know."""
        self.in_flight: dict[Ino, Draft[FrozenT]] = {}
        """Sessions whose snapshot is on its way."""

    def cut(self, round_: Round[FrozenT], sessions: Iterable[Ino] | None = None) -> None:
        """A draft of each of *sessions* (default: of all) that changed, and those that had snapshots and are gone, with
        their names. Synchronous: all are of one instant.
        """
        for session in list(self._changes.sessions if sessions is None else sessions):
            if session not in self._changes.sessions:
                continue
            name = DOT_SESSION if session == ROOT_INO else self._inodes.find_session_name(session)
            last = self._last(session)
            changes = self._changes.take(session)
            if name is not None:
                draft: Draft[FrozenT] = Draft(session, name, changes, last)
                # At once: whatever goes wrong, `undo` gives the changes back.
                round_.drafts.append(draft)
                try:
                    cut(self._inodes, self._references, draft)
                    draft.frozen = self._freezer.freeze(draft.hot)
                except StoreCorrupt as exc:
                    self.leave_out(round_, draft, exc)
                    continue
                if draft.is_empty:
                    round_.drafts.remove(draft)
                    release(self._references, [draft])
                    self._changes.settle(session)
                    continue
            elif last is not None:
                round_.removed[session] = last.name
            else:
                self._changes.forget(session)
        self.in_flight = {draft.session: draft for draft in round_.drafts}

    async def seal(self, round_: Round[FrozenT]) -> None:
        """Complete the drafts with the recipes of what was hot; one of which a file can't be sealed is left out. Raises
        LocalStoreError.
        """
        for draft in list(round_.drafts):
            try:
                draft.fill(await self._freezer.seal_frozen(draft.frozen))
            except StoreCorrupt as exc:
                self.leave_out(round_, draft, exc)

    def leave_out(self, round_: Round[FrozenT], draft: Draft[FrozenT], exc: StoreCorrupt) -> None:
        """The draft can't become a snapshot; the others can."""
        if draft in round_.drafts:
            round_.drafts.remove(draft)
        self.give_back([draft])
        self.in_flight.pop(draft.session, None)
        self._changes.restore(draft.session, draft.changes)
        self.on_damage(draft.session, exc)
        who = draft.name.decode(errors="replace")
        round_.damage = round_.damage or StoreCorrupt(f"session {who} can't be kept or uploaded as it is: {exc}")

    def give_back(self, drafts: Sequence[Draft[FrozenT]]) -> None:
        """Nothing is frozen or pinned for the drafts any more."""
        for draft in drafts:
            self._freezer.thaw(draft.frozen)
        release(self._references, drafts)

    def undo(self, round_: Round[FrozenT]) -> None:
        """The round did not come to its end: what was cut counts as changed again."""
        for draft in round_.drafts:
            self._changes.restore(draft.session, draft.changes)
        for session in round_.removed:
            self._changes.note_whole(session)

    def end(self, round_: Round[FrozenT]) -> None:
        """After each round, whatever came of it."""
        self.in_flight = {}
        self.give_back(round_.drafts)
