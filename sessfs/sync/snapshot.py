"""Cut a session: its tree and contents at one instant, as the records of a manifest.

The cut itself is synchronous: nothing changes between its first record and its last. Files that are hot at that instant
are frozen, and their recipes come from the seal process afterwards; chunks that the records name stay pinned until the
draft is released.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from sessfs.format.manifest import NameRecord, NodeRecord
from sessfs.types import ROOT_INO, ChunkId, Ino

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sessfs.format.recipe import Recipe
    from sessfs.local.changes import SessionChanges
    from sessfs.local.chunkstore import References
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.local.places import Published

MAX_DEPTH = 8
"""Deltas upon one full manifest: what a restore has to read one after another."""
DOT = b"."


FrozenT = TypeVar("FrozenT")


class Freezer(Protocol[FrozenT]):
    """What a cut needs of the sealing of files; *FrozenT* is what it keeps of each."""

    def freeze(self, inodes: Sequence[Inode]) -> list[FrozenT]:
        """Keep the hot files of *inodes* as they are now. Raises StoreCorrupt: then none is kept."""

    async def seal_frozen(self, frozen: Sequence[FrozenT]) -> Mapping[Ino, Recipe]:
        """Recipes of frozen files, chunks pinned. Raises LocalStoreError, StoreCorrupt where a file is the reason."""

    def thaw(self, frozen: Sequence[FrozenT]) -> None:
        """Give up frozen files that are not to be sealed."""


class Draft(Generic[FrozenT]):
    """One session's snapshot in the making."""

    def __init__(
        self,
        session: Ino,
        name: bytes,
        changes: SessionChanges,
        published: Published | None,
        *,
        everything: bool = False,
    ) -> None:
        """With *everything* what does not travel is in it as well; such a draft is full, and never published."""
        self.everything = everything
        self.session = session
        self.name = name
        self.changes = changes
        self.published = published
        self.is_full = (
            changes.whole
            or published is None
            or published.manifest is None
            or published.name != name
            or published.depth >= MAX_DEPTH
            or published.delta_bytes > published.full_bytes
        )
        self.nodes: list[NodeRecord] = []
        self.names: list[NameRecord] = []
        self.gone_nodes: list[int] = []
        self.gone_names: list[tuple[int, bytes]] = []
        self.hot: list[Inode] = []
        self.frozen: Sequence[FrozenT] = ()
        self.pinned: list[ChunkId] = []
        self._awaiting: dict[Ino, int] = {}

    def add_node(self, inodes: Inodes, inode: Inode) -> None:
        """Record the inode; the recipe of a hot one is filled in by `fill`."""
        recipe = b""
        if stat.S_ISREG(inode.mode) and inode.size:
            if inode.hot_no:
                self.hot.append(inode)
                self._awaiting[inode.ino] = len(self.nodes)
            else:
                stored = inodes.load_recipe(inode)
                recipe = stored.packed
                self.pinned.extend(stored.iter_chunks())
        self.nodes.append(
            NodeRecord(
                inode.ino,
                inode.mode,
                inode.uid,
                inode.gid,
                inode.nlink,
                inode.rdev,
                inode.size,
                inode.atime_ns,
                inode.mtime_ns,
                inode.ctime_ns,
                inodes.get_target(inode.ino) if stat.S_ISLNK(inode.mode) else None,
                dict(inodes.iter_xattrs(inode.ino)),
                recipe,
            )
        )

    @property
    def is_empty(self) -> bool:
        """True when what changed is not part of what is published."""
        return not (self.is_full or self.nodes or self.names or self.gone_nodes or self.gone_names)

    def fill(self, recipes: Mapping[Ino, Recipe]) -> None:
        """Put in the recipes of the files that were hot; their chunks, pinned by the sealing, are the draft's now."""
        for ino, index in self._awaiting.items():
            recipe = recipes[ino]
            self.nodes[index] = msgspec.structs.replace(self.nodes[index], recipe=recipe.packed)
            self.pinned.extend(recipe.iter_chunks())
        self._awaiting = {}

    def iter_chunks(self) -> Iterator[ChunkId]:
        """The chunks that the records name, each once, in order of the files."""
        return iter(dict.fromkeys(self.pinned))


def travels(inodes: Inodes, inode: Inode) -> bool:
    """True when the inode is part of what is published."""
    return inode.path_class <= inodes.travelling


def cut(inodes: Inodes, references: References, draft: Draft[Any]) -> None:
    """Fill *draft* with the session as it is at this instant, and pin the chunks that it names, to be released also
    when this raises: StoreCorrupt.
    """
    try:
        if draft.is_full:
            for inode in _walk(inodes, draft):
                draft.add_node(inodes, inode)
        else:
            _cut_changes(inodes, draft)
    finally:
        references.pin(draft.pinned)


def _walk(inodes: Inodes, draft: Draft[Any]) -> Iterator[Inode]:
    """Every travelling inode of the session, each once; notes the names on the way."""
    seen: set[Ino] = set()
    if draft.session != ROOT_INO:
        yield inodes.get(draft.session)
    stack = [draft.session]
    while stack:
        directory = stack.pop()
        for name, dentry in list(inodes.iter_dentries(directory)):
            is_dir = stat.S_ISDIR(dentry.kind)
            if directory == ROOT_INO and is_dir:
                continue
            inode = inodes.get(dentry.ino)
            if not (draft.everything or travels(inodes, inode)):
                continue
            draft.names.append(NameRecord(directory, name, inode.ino))
            if is_dir:
                stack.append(inode.ino)
            if inode.ino not in seen:
                seen.add(inode.ino)
                yield inode


def _cut_changes(inodes: Inodes, draft: Draft[Any]) -> None:
    for ino in sorted(draft.changes.inodes):
        inode = inodes.find(ino)
        if inode is None or inode.nlink == 0 or not travels(inodes, inode):
            draft.gone_nodes.append(ino)
        else:
            draft.add_node(inodes, inode)
    for parent, name in sorted(draft.changes.names):
        if parent == ROOT_INO and draft.session != ROOT_INO:
            continue
        dentry = inodes.find_dentry(parent, name)
        # Both: an inode with several names may have one in a directory that does not travel.
        if dentry is not None and travels(inodes, inodes.get(parent)) and travels(inodes, inodes.get(dentry.ino)):
            draft.names.append(NameRecord(parent, name, dentry.ino))
        else:
            draft.gone_names.append((parent, name))


def release(references: References, drafts: Iterable[Draft[Any]]) -> None:
    """The drafts are published, or given up: their chunks are no longer held for them."""
    for draft in drafts:
        references.unpin(draft.pinned)
        draft.pinned = []
