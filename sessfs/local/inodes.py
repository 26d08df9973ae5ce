"""Inodes, dentries, symlink targets, xattrs, recipes and session counters: the tables of `meta/`.

Inodes are loaded at first use and kept in memory; `encode_dirty` puts the changed ones into the database's overlay,
which happens before each cut. Record layouts: docs/format.md.
"""

from __future__ import annotations

import stat
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from sessfs.chrome import PathClass
from sessfs.errors import StoreCorrupt
from sessfs.format.recipe import Recipe
from sessfs.local.changes import DIRTY, Changes
from sessfs.local.db import Database, TableName
from sessfs.local.listings import Listings
from sessfs.local.places import PLACE_TABLES
from sessfs.local.policy import POLICY
from sessfs.local.snapshots import SNAPSHOT_TABLES
from sessfs.local.users import Users
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Iterator

INODES = TableName("inodes")
DENTRIES = TableName("dentries")
SYMLINKS = TableName("symlinks")
XATTRS = TableName("xattrs")
RECIPES = TableName("recipes")
SESSIONS = TableName("sessions")
ORPHANS = TableName("orphans")
SESSION_NAMES = TableName("session_names")
REFS = TableName("refs")
KEPT_REFS = TableName("kept_refs")
SUPER = TableName("super")
META_TABLES = (
    INODES,
    DENTRIES,
    SYMLINKS,
    XATTRS,
    RECIPES,
    SESSIONS,
    ORPHANS,
    SESSION_NAMES,
    REFS,
    KEPT_REFS,
    SUPER,
    DIRTY,
    POLICY,
    *PLACE_TABLES,
    *SNAPSHOT_TABLES,
)
META_MAP_BYTES = 1 << 36

INO = struct.Struct(">Q")
"""Keys are big-endian, so that they sort by number."""
INODE_HEAD = struct.Struct("<IIIIQQqqqQQQQI")
COLD_RANGE = struct.Struct("<QQ")
DENTRY = struct.Struct("<QI")
SESSION = struct.Struct("<QQq")
COUNTER = struct.Struct("<Q")
NEXT_NUMBER = b"next-number"
NUMBER_BLOCK = 4096
MAX_CLEAN_INODES = 20_000
LOOKS = 4
"""So many inodes are looked at, for each that comes or changed, to find those that can go: it takes no longer where
100,000 have to stay.
"""
MAX_COUNT = (1 << 64) - 1

Ranges = list[tuple[int, int]]


class Dentry(NamedTuple):
    """What a name in a directory stands for: the inode, and its file type (the S_IFMT bits of its mode)."""

    ino: Ino
    kind: int


class Inode:
    """One inode in memory. Change it through its owner's functions and call `Inodes.touch` after.

    *cold* are the ranges [start, end) of the content that are still only in the recipe's chunks, in order, disjoint,
    on extent boundaries; everything else below *size* is in the hot file number *hot_no* (0: there is none).
    *version* grows with each change of content: a seal of an older version is not used. *unsynced* is true while the
    hot file holds bytes that were not flushed to the disk; *ordered* while a commit must flush them first. *changed_s*
    is the monotonic time of the last change to the hot file. *carried* is true while the hot file's own mtime is the
    inode's; *times_unsynced* from then on until it was flushed with its times.
    """

    __slots__ = (
        "__weakref__",
        "allocated",
        "atime_ns",
        "carried",
        "changed_s",
        "cold",
        "ctime_ns",
        "gid",
        "hot_no",
        "ino",
        "mode",
        "mtime_ns",
        "nlink",
        "opens",
        "ordered",
        "parent",
        "path_class",
        "rdev",
        "recipe",
        "session",
        "size",
        "times_unsynced",
        "uid",
        "unsynced",
        "version",
    )

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.mode = self.uid = self.gid = self.nlink = self.rdev = self.size = 0
        self.atime_ns = self.mtime_ns = self.ctime_ns = 0
        self.session = ROOT_INO
        self.parent = ROOT_INO
        self.path_class = PathClass.TRAVELS
        self.hot_no = 0
        self.allocated = 0
        self.cold: Ranges = []
        self.recipe: Recipe | None = None
        self.opens = 0
        self.version = 0
        self.changed_s = 0.0
        self.unsynced = False
        self.ordered = False
        self.carried = False
        self.times_unsynced = False

    def encode(self) -> bytes:
        """The stored record."""
        head = INODE_HEAD.pack(
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.rdev,
            self.size,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.session,
            self.parent,
            self.hot_no,
            self.allocated,
            self.path_class,
        )
        if not self.cold:
            return head
        return head + b"".join(COLD_RANGE.pack(start, end) for start, end in self.cold)


def decode_inode(ino: Ino, record: bytes) -> Inode:
    """Inverse of `Inode.encode`; raises StoreCorrupt when *record* has no valid length."""
    tail = len(record) - INODE_HEAD.size
    if tail < 0 or tail % COLD_RANGE.size:
        raise StoreCorrupt(f"the record of inode {ino} has {len(record)} bytes")
    inode = Inode(ino)
    (
        inode.mode,
        inode.uid,
        inode.gid,
        inode.nlink,
        inode.rdev,
        inode.size,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        session,
        parent,
        inode.hot_no,
        inode.allocated,
        path_class,
    ) = INODE_HEAD.unpack_from(record)
    inode.session = Ino(session)
    inode.parent = Ino(parent)
    inode.path_class = PathClass(path_class)
    if tail:
        inode.cold = list(COLD_RANGE.iter_unpack(record[INODE_HEAD.size :]))
    return inode


class SessionCounters:
    """Running totals of one session: files (all but directories), their sizes in bytes, time of the last change."""

    __slots__ = ("files", "last_change_ns", "logical_bytes")

    def __init__(self, files: int = 0, logical_bytes: int = 0, last_change_ns: int = 0) -> None:
        self.files = files
        self.logical_bytes = logical_bytes
        self.last_change_ns = last_change_ns

    def encode(self) -> bytes:
        """The stored record. Three sparse files of the largest size are more than it holds: then it holds its most."""
        files, logical = (min(max(count, 0), MAX_COUNT) for count in (self.files, self.logical_bytes))
        return SESSION.pack(files, logical, self.last_change_ns)


class Inodes(Users):
    """The inode cache over a Database. Used by the request loop alone; nothing here blocks but a read of LMDB."""

    def __init__(self, db: Database) -> None:
        super().__init__()
        self._db = db
        self._cache: OrderedDict[Ino, Inode] = OrderedDict()
        self._living: WeakValueDictionary[Ino, Inode] = WeakValueDictionary()
        """Every inode that anybody holds, in the cache or no more: there is one object for each."""
        self._dirty: dict[Ino, Inode] = {}
        self._sessions: dict[Ino, SessionCounters] = {}
        self._dirty_sessions: set[Ino] = set()
        self._next = self._limit = 0
        self.listings = Listings(self._read_entries)
        self.is_hard_dirty = False
        """True when an inode changed since the last `encode_dirty` in a way that only a commit makes durable."""
        self.changes: Changes | None = None
        """Where changes of what travels are noted; None when there is no remote to publish them to."""
        self.travelling = PathClass.TRAVELS
        """Entries of this class and those before it are published."""

    # -- numbers

    def allocate_number(self) -> int:
        """A number never given before in this state directory: for inodes and hot files. Reserved in blocks, so that a
        crash can't give one twice: the block's end is in the overlay before its first number is used.
        """
        if self._next >= self._limit:
            stored = self._db.get(SUPER, NEXT_NUMBER)
            self._next = COUNTER.unpack(stored)[0] if stored else ROOT_INO + 1
            self._limit = self._next + NUMBER_BLOCK
            self._db.put(SUPER, NEXT_NUMBER, COUNTER.pack(self._limit))
        number = self._next
        self._next += 1
        return number

    # -- inodes

    def find(self, ino: Ino) -> Inode | None:
        """The inode, the same object as long as anybody holds it; None when there is none of that number."""
        inode = self._cache.get(ino)
        if inode is None:
            inode = self._living.get(ino)
            if inode is None:
                record = self._db.get(INODES, INO.pack(ino))
                if record is None:
                    return None
                inode = self._living[ino] = decode_inode(ino, record)
            self._cache[ino] = inode
            self._trim(LOOKS)
        return inode

    def get(self, ino: Ino) -> Inode:
        """The inode; raises StoreCorrupt when a name or handle leads to one that is not there."""
        inode = self.find(ino)
        if inode is None:
            raise StoreCorrupt(f"inode {ino} is named but not stored")
        return inode

    def create(self, mode: int, uid: int, gid: int, now_ns: int) -> Inode:
        """A new inode with a fresh number, nlink 0; the caller sets session and parent and links it."""
        inode = Inode(Ino(self.allocate_number()))
        inode.mode, inode.uid, inode.gid = mode, uid, gid
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = now_ns
        self._cache[inode.ino] = self._living[inode.ino] = inode
        self._dirty[inode.ino] = inode
        self.is_hard_dirty = True
        return inode

    def adopt(self, inode: Inode) -> None:
        """Take in an inode made elsewhere, under the number it has."""
        self._cache[inode.ino] = self._living[inode.ino] = inode
        self.touch(inode)

    def note_open(self, inode: Inode) -> None:
        """See Users. The count is nowhere but in the inode, which stays in memory from here on."""
        super().note_open(inode)
        self._cache[inode.ino] = inode

    def touch(self, inode: Inode, *, soft: bool = False, noted: bool = True) -> None:
        """Note that *inode* changed: it goes into the next batch. A *soft* change is one that a crash may take back to
        what the hot file itself says: its size after a write, and times. A change that is not *noted* is one of how
        the content is kept here: nothing that is published.
        """
        self._dirty[inode.ino] = inode
        if not soft:
            self.is_hard_dirty = True
        if noted and self.changes is not None and inode.path_class <= self.travelling:
            self.changes.note_inode(inode.session, inode.ino)

    def remove(self, inode: Inode) -> None:
        """Delete the inode's records (inode, symlink target, xattrs, orphan mark). Its recipe must be gone already."""
        key = INO.pack(inode.ino)
        if self.changes is not None and inode.path_class <= self.travelling:
            self.changes.note_inode(inode.session, inode.ino)
        self._cache.pop(inode.ino, None)
        self._living.pop(inode.ino, None)
        self._dirty.pop(inode.ino, None)
        for table in (INODES, SYMLINKS, ORPHANS):
            self._db.delete(table, key)
        for xattr_key, _ in list(self._db.scan(XATTRS, key)):
            self._db.delete(XATTRS, xattr_key)

    def encode_dirty(self) -> list[Ino]:
        """Put every changed inode and session counter into the overlay; called right before a cut. Returns the inodes
        that can't be encoded, which is a bug: they stay changed, and keep none of the others from becoming durable.
        """
        refused: dict[Ino, Inode] = {}
        for ino, inode in self._dirty.items():
            try:
                self._db.put(INODES, INO.pack(ino), inode.encode())
            except struct.error:
                refused[ino] = inode
        changed = len(self._dirty)
        self._dirty = refused
        self._trim(LOOKS * changed)
        self.is_hard_dirty = bool(refused)
        for session in self._dirty_sessions:
            counters = self._sessions[session]
            self._db.put(SESSIONS, INO.pack(session), counters.encode())
        self._dirty_sessions.clear()
        return list(refused)

    @property
    def is_dirty(self) -> bool:
        """True when an inode or counter changed since the last `encode_dirty`."""
        return bool(self._dirty or self._dirty_sessions)

    def _trim(self, looks: int) -> None:
        """While too many are cached, look at up to *looks* of them, the first to come first, and let go of those of
        which the database knows all. What has to stay is not looked at again before all others.
        """
        while looks and len(self._cache) > MAX_CLEAN_INODES:
            looks -= 1
            ino, inode = self._cache.popitem(last=False)
            if inode.opens or inode.hot_no or ino in self._dirty:
                self._cache[ino] = inode

    # -- dentries

    def find_dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        """What *name* in *parent* stands for, or None."""
        value = self._db.get(DENTRIES, INO.pack(parent) + name)
        if value is None:
            return None
        ino, kind = DENTRY.unpack(value)
        return Dentry(Ino(ino), kind)

    def set_dentry(self, parent: Ino, name: bytes, inode: Inode) -> None:
        """Make *name* in *parent* stand for *inode*; link counts and times are the caller's."""
        kind = stat.S_IFMT(inode.mode)
        self._db.put(DENTRIES, INO.pack(parent) + name, DENTRY.pack(inode.ino, kind))
        self.listings.note_name(parent, name, inode.ino, kind)
        if parent == ROOT_INO and kind == stat.S_IFDIR:
            self._db.put(SESSION_NAMES, INO.pack(inode.ino), name)
        if self.changes is not None and inode.path_class <= self.travelling:
            # The inode too: it may be new, and a published name must have its inode beside it.
            self.changes.note_inode(inode.session, inode.ino)
            self.changes.note_name(inode.session, parent, name)

    def delete_dentry(self, parent: Ino, name: bytes, inode: Inode) -> None:
        """Remove *name*, which stands for *inode*, from *parent*."""
        self._db.delete(DENTRIES, INO.pack(parent) + name)
        self.listings.note_gone(parent, name)
        if parent == ROOT_INO and self.find_session_name(inode.ino) == name:
            self._db.delete(SESSION_NAMES, INO.pack(inode.ino))
        if self.changes is not None and inode.path_class <= self.travelling:
            self.changes.note_name(inode.session, parent, name)

    def find_session_name(self, session: Ino) -> bytes | None:
        """The name that a top-level directory has, None when it has none."""
        return self._db.get(SESSION_NAMES, INO.pack(session))

    def iter_dentries(self, parent: Ino, after: bytes | None = None) -> Iterator[tuple[bytes, Dentry]]:
        """(name, dentry) of *parent* in order of the names' bytes, those greater than *after*."""
        prefix = INO.pack(parent)
        for key, value in self._db.scan(DENTRIES, prefix, None if after is None else prefix + after):
            ino, kind = DENTRY.unpack(value)
            yield key[INO.size :], Dentry(Ino(ino), kind)

    def _read_entries(self, parent: Ino) -> tuple[list[bytes], list[tuple[int, int]]]:
        """For `Listings`: the names in *parent*, and (inode, type) of each."""
        found = self._db.collect(DENTRIES, INO.pack(parent))
        return [key[INO.size :] for key in found], [*DENTRY.iter_unpack(b"".join(found.values()))]

    def iter_names_with(self, parent: Ino, start: bytes) -> Iterator[bytes]:
        """The names in *parent* that begin with *start*, in order of their bytes."""
        for key, _ in self._db.scan(DENTRIES, INO.pack(parent) + start):
            yield key[INO.size :]

    def has_entries(self, parent: Ino) -> bool:
        """True when the directory holds any name."""
        return next(self._db.scan(DENTRIES, INO.pack(parent)), None) is not None

    # -- symlinks, xattrs, recipes, orphans

    def get_target(self, ino: Ino) -> bytes:
        """The symlink's target."""
        target = self._db.get(SYMLINKS, INO.pack(ino))
        if target is None:
            raise StoreCorrupt(f"symlink {ino} has no target")
        return target

    def set_target(self, ino: Ino, target: bytes) -> None:
        """Set the symlink's target."""
        self._db.put(SYMLINKS, INO.pack(ino), target)

    def find_xattr(self, ino: Ino, name: bytes) -> bytes | None:
        """The value of the xattr, or None."""
        return self._db.get(XATTRS, INO.pack(ino) + name)

    def set_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        """Set the xattr."""
        self._db.put(XATTRS, INO.pack(ino) + name, value)

    def delete_xattr(self, ino: Ino, name: bytes) -> None:
        """Remove the xattr."""
        self._db.delete(XATTRS, INO.pack(ino) + name)

    def iter_xattrs(self, ino: Ino) -> Iterator[tuple[bytes, bytes]]:
        """(name, value) of all xattrs of the inode."""
        for key, value in self._db.scan(XATTRS, INO.pack(ino)):
            yield key[INO.size :], value

    def load_recipe(self, inode: Inode) -> Recipe:
        """The recipe below the inode's cold ranges; an empty one when it has none."""
        if inode.recipe is None:
            inode.recipe = Recipe(self._db.get(RECIPES, INO.pack(inode.ino)) or b"")
        return inode.recipe

    def store_recipe(self, inode: Inode, recipe: Recipe | None) -> None:
        """Replace the recipe's record (None: remove it). Reference counts are the caller's."""
        inode.recipe = recipe
        if recipe is None:
            self._db.delete(RECIPES, INO.pack(inode.ino))
        else:
            self._db.put(RECIPES, INO.pack(inode.ino), recipe.packed)

    def mark_orphan(self, inode: Inode) -> None:
        """Note that the inode has no name left and goes when its last user does, or at the next mount."""
        self._db.put(ORPHANS, INO.pack(inode.ino), b"")

    def unmark_orphan(self, ino: Ino) -> None:
        """Take back the mark of an inode that is not there."""
        self._db.delete(ORPHANS, INO.pack(ino))

    def iter_orphans(self) -> Iterator[Ino]:
        """Inodes marked by `mark_orphan` and not yet removed."""
        for key, _ in self._db.scan(ORPHANS):
            yield Ino(INO.unpack(key)[0])

    def iter_inodes(self) -> Iterator[Inode]:
        """Every stored inode, in order of number, decoded afresh; changes since the last cut are not in them."""
        for key, record in self._db.scan(INODES):
            ino = Ino(INO.unpack(key)[0])
            yield decode_inode(ino, record)

    # -- sessions

    def session_counters(self, session: Ino) -> SessionCounters:
        """The counters of *session*, zero when new."""
        counters = self._sessions.get(session)
        if counters is None:
            record = self._db.get(SESSIONS, INO.pack(session))
            counters = SessionCounters(*SESSION.unpack(record)) if record else SessionCounters()
            self._sessions[session] = counters
        return counters

    def account(self, session: Ino, files: int, size_bytes: int, now_ns: int) -> None:
        """Add to the counters of *session* and note the time of its change."""
        counters = self.session_counters(session)
        counters.files += files
        counters.logical_bytes += size_bytes
        counters.last_change_ns = max(counters.last_change_ns, now_ns)
        self._dirty_sessions.add(session)

    def drop_session(self, session: Ino) -> None:
        """Forget the counters of a removed session."""
        self._sessions.pop(session, None)
        self._dirty_sessions.discard(session)
        self._db.delete(SESSIONS, INO.pack(session))

    def iter_sessions(self) -> Iterator[tuple[Ino, SessionCounters]]:
        """(session, counters) of every session that has any."""
        stored = {Ino(INO.unpack(key)[0]) for key, _ in self._db.scan(SESSIONS)}
        for session in sorted(stored | self._dirty_sessions):
            yield session, self.session_counters(session)
