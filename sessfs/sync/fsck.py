"""Check a state directory: every record against every other, every chunk against its hash, every hot file.

Reads only. The state must not be mounted; a state that was not closed cleanly is judged leniently where the next mount
repairs by itself, and the report says so.
"""

from __future__ import annotations

import contextlib
import stat
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from sessfs.errors import SessfsError, StateInUse, StoreCorrupt, UsageError
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.manifest import decode_manifest
from sessfs.format.recipe import Recipe
from sessfs.local.chunkstore import (
    CHUNK_TABLES,
    CHUNKS_MAP_BYTES,
    FRAME_KEY,
    FRAMES,
    INDEX,
    LIVE,
    LIVE_BYTES,
    PLACE,
    REF_COUNT,
    Totals,
    decode_frame_record,
    read_totals,
)
from sessfs.local.damage import write_found
from sessfs.local.db import Database, TableName
from sessfs.local.inodes import (
    COUNTER,
    DENTRIES,
    DENTRY,
    INO,
    INODES,
    KEPT_REFS,
    META_MAP_BYTES,
    META_TABLES,
    NEXT_NUMBER,
    ORPHANS,
    RECIPES,
    REFS,
    SESSION,
    SESSIONS,
    SUPER,
    SYMLINKS,
    XATTRS,
    Inode,
    decode_inode,
)
from sessfs.local.places import PLACES, YOUNG_TABLES
from sessfs.local.snapshots import MANIFESTS, SNAPSHOT_KEY, SNAPSHOTS, Snapshot
from sessfs.local.state import CLEAN_MARK, lock_holder, read_clean_mark, read_hash_key
from sessfs.sync.history import manifest_chunks
from sessfs.types import ROOT_INO, ChunkId, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Progress = Callable[[str, int], None]

CHECKED_TABLES = tuple(table for table in META_TABLES if table not in YOUNG_TABLES)


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong. *session* and *path* are empty where it belongs to none."""

    kind: str
    session: str
    path: str
    message: str


class Report(msgspec.Struct, frozen=True):
    """What was found: clean when there are no problems. *notes* are things that the next mount mends by itself."""

    problems: list[Problem]
    counts: dict[str, int]
    notes: list[str]

    @property
    def clean(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def check_state(state_dir: Path, progress: Progress | None = None) -> Report:
    """Check everything in *state_dir*. *progress* gets (stage, items done). Raises UsageError when there is no state,
    StateInUse when it is mounted, LocalStoreError when the database can't be opened at all.
    """
    if not (state_dir / "meta").is_dir():
        raise UsageError(f"{state_dir} holds no sessfs state")
    pid = lock_holder(state_dir)
    if pid is not None:
        raise StateInUse(f"{state_dir} is mounted by process {pid}: unmount it first (sessfs umount)")
    if _is_unused(state_dir):
        return Report(
            [], {}, ["the state was never used: its first mount did not come far; the next one begins afresh"]
        )
    meta = Database(state_dir / "meta", CHECKED_TABLES, META_MAP_BYTES, readonly=True)
    try:
        chunks = Database(state_dir / "chunks", CHUNK_TABLES, CHUNKS_MAP_BYTES, readonly=True)
        try:
            return _Check(state_dir, meta, chunks, progress).run()
        finally:
            chunks.close()
    finally:
        meta.close()


def _is_unused(state_dir: Path) -> bool:
    """True when the daemon was killed before its first commit: the state holds nothing yet, not even all its tables."""
    if (state_dir / CLEAN_MARK).exists() or not (state_dir / "meta" / "data.mdb").exists():
        return not (state_dir / CLEAN_MARK).exists() and not (state_dir / "chunks").exists()
    try:
        meta = Database(state_dir / "meta", CHECKED_TABLES, META_MAP_BYTES, readonly=True)
    except StoreCorrupt:
        # A table is missing: they are all made before anything is put into them.
        return not (state_dir / "chunks").exists()
    try:
        return all(table == SUPER or next(meta.scan(table), None) is None for table in CHECKED_TABLES)
    finally:
        meta.close()


def _notes(state_dir: Path) -> list[str]:
    owes_sweep = read_clean_mark(state_dir)
    if owes_sweep is None:
        return ["the state was not closed cleanly; the next mount recovers it"]
    if owes_sweep:
        return ["after a crash, chunks that nothing names are still being looked for; the next mount goes on"]
    return []


class _Findings:
    """What one run knows of a state so far, and what it found wrong."""

    def __init__(self, state_dir: Path, meta: Database, chunks: Database, progress: Progress | None) -> None:
        self._state_dir = state_dir
        self._meta = meta
        self._chunks = chunks
        self._progress = progress
        self._problems: list[Problem] = []
        self._counts: Counter[str] = Counter()
        self._clean = (state_dir / CLEAN_MARK).exists()
        self._inodes: dict[Ino, Inode] = {}
        self._names: dict[Ino, tuple[Ino, bytes]] = {}
        self._links: Counter[Ino] = Counter()
        self._subdirs: Counter[Ino] = Counter()
        self._refs: Counter[ChunkId] = Counter()
        self._kept: Counter[ChunkId] = Counter()
        self._bad: dict[ChunkId, str] = {}
        """What is wrong with chunks that are stored."""

    def _step(self, stage: str) -> None:
        self._counts[stage] += 1
        if self._progress is not None and self._counts[stage] % 1000 == 0:
            self._progress(stage, self._counts[stage])

    def _report(self, kind: str, ino: Ino | None, message: str) -> None:
        session, path = self._locate(ino) if ino is not None else ("", "")
        self._problems.append(Problem(kind, session, path, message))

    def _locate(self, ino: Ino) -> tuple[str, str]:
        """(session, path) of an inode by the names seen so far; best effort, since names may be what is broken."""
        parts: list[bytes] = []
        at = ino
        while at != ROOT_INO and at in self._names and len(parts) < 4096:
            at, name = self._names[at]
            parts.append(name)
        parts.reverse()
        path = b"/".join(parts).decode(errors="backslashreplace") or f"inode {ino}"
        return (path.split("/", 1)[0] if len(parts) > 1 else "."), path

    def _scan_inos(self, table: TableName) -> Iterator[tuple[Ino, bytes]]:
        for key, value in self._meta.scan(table):
            yield Ino(INO.unpack(key)[0]), value


class _Check(_Findings):
    """One run over one state."""

    def run(self) -> Report:
        self._load_inodes()
        self._check_dentries()
        self._check_inodes()
        self._check_leftovers()
        self._check_sessions()
        self._check_frames()
        self._check_recipes()
        self._check_snapshots()
        self._check_references()
        self._check_hot_files()
        if self._bad:
            with contextlib.suppress(OSError):
                # So that content which is written again is not taken for one of these.
                write_found(self._state_dir, self._bad)
        return Report(self._problems, dict(self._counts), _notes(self._state_dir))

    # -- the tree

    def _load_inodes(self) -> None:
        for ino, record in self._scan_inos(INODES):
            self._step("inodes")
            try:
                self._inodes[ino] = decode_inode(ino, record)
            except StoreCorrupt as exc:
                self._report("inode", ino, str(exc))
        if ROOT_INO not in self._inodes:
            self._report("inode", None, "the root directory is missing")
        reserved = self._meta.get(SUPER, NEXT_NUMBER)
        following = COUNTER.unpack(reserved)[0] if reserved else 0
        last = max((max(ino, inode.hot_no) for ino, inode in self._inodes.items()), default=0)
        if last >= following and last > ROOT_INO:
            self._report("counter", None, f"the next number to be given is {following}, but {last} was given already")

    def _check_dentries(self) -> None:
        for key, value in self._meta.scan(DENTRIES):
            self._step("dentries")
            parent, name = Ino(INO.unpack_from(key)[0]), key[INO.size :]
            ino, kind = DENTRY.unpack(value)
            directory, inode = self._inodes.get(parent), self._inodes.get(Ino(ino))
            self._names.setdefault(Ino(ino), (parent, name))
            if directory is None or not stat.S_ISDIR(directory.mode):
                self._report("dentry", Ino(ino), f"its parent {parent} is no directory")
            if inode is None:
                self._report("dentry", Ino(ino), f"names inode {ino}, which is not stored")
                continue
            if stat.S_IFMT(inode.mode) != kind:
                self._report("dentry", Ino(ino), f"says type {kind:#o}, the inode has {stat.S_IFMT(inode.mode):#o}")
            self._links[Ino(ino)] += 1
            if stat.S_ISDIR(inode.mode):
                self._subdirs[parent] += 1
                if inode.parent != parent:
                    self._report("dentry", Ino(ino), f"the directory says its parent is {inode.parent}, not {parent}")
            expected = self._session_under(parent, directory, inode)
            if inode.session != expected:
                self._report("session", Ino(ino), f"belongs to session {inode.session}, its place to {expected}")

    def _session_under(self, parent: Ino, directory: Inode | None, inode: Inode) -> Ino:
        if parent == ROOT_INO:
            return inode.ino if stat.S_ISDIR(inode.mode) else ROOT_INO
        return directory.session if directory is not None else inode.session

    def _check_inodes(self) -> None:
        orphans = {ino for ino, _ in self._scan_inos(ORPHANS)}
        for ino, inode in self._inodes.items():
            is_dir = stat.S_ISDIR(inode.mode)
            names = self._links[ino] + (1 if ino == ROOT_INO else 0)
            if ino in orphans:
                expected = 0
            else:
                expected = 2 + self._subdirs[ino] if is_dir else names
                if not names:
                    self._report("inode", ino, "has no name and is not marked as deleted")
            if is_dir and names > 1:
                self._report("inode", ino, f"a directory with {names} names")
            if inode.nlink != expected:
                self._report("inode", ino, f"has a link count of {inode.nlink}, should have {expected}")
            if stat.S_ISLNK(inode.mode):
                target = self._meta.get(SYMLINKS, INO.pack(ino))
                if target is None or len(target) != inode.size:
                    self._report("symlink", ino, "its target is missing or of another length")
        for ino in orphans - self._inodes.keys():
            self._report("orphan", ino, "is marked as deleted and not stored")

    def _check_leftovers(self) -> None:
        for table in (SYMLINKS, RECIPES):
            for ino, _ in self._scan_inos(table):
                if ino not in self._inodes:
                    self._report(table, ino, f"{table} has a record of an inode that is not stored")
        for key, _ in self._meta.scan(XATTRS):
            self._step("xattrs")
            ino = Ino(INO.unpack_from(key)[0])
            if ino not in self._inodes:
                self._report("xattr", ino, "belongs to an inode that is not stored")

    def _check_sessions(self) -> None:
        files: Counter[Ino] = Counter()
        sizes: Counter[Ino] = Counter()
        for inode in self._inodes.values():
            if not stat.S_ISDIR(inode.mode) and inode.nlink:
                files[inode.session] += 1
                sizes[inode.session] += inode.size
        stored = {ino: SESSION.unpack(record) for ino, record in self._scan_inos(SESSIONS)}
        for session in sorted(stored.keys() | files.keys()):
            self._step("sessions")
            n_files, logical, _ = stored.get(session, (0, 0, 0))
            if (n_files, logical) != (files[session], sizes[session]):
                self._report(
                    "counter",
                    session,
                    f"the session counts {n_files} files of {logical} bytes, "
                    f"it has {files[session]} of {sizes[session]}",
                )

    # -- content

    def _check_recipes(self) -> None:
        for ino, packed in self._scan_inos(RECIPES):
            self._step("recipes")
            inode = self._inodes.get(ino)
            try:
                recipe = Recipe(packed)
            except StoreCorrupt as exc:
                self._report("recipe", ino, str(exc))
                continue
            self._refs.update(recipe.iter_chunks())
            if inode is None:
                continue
            for start, end in inode.cold:
                try:
                    recipe.slice_packed(start, end)
                except ValueError as exc:
                    self._report("recipe", ino, f"cold range: {exc}")
            self._check_extents(ino, recipe)
        for ino, inode in self._inodes.items():
            end = inode.cold[-1][1] if inode.cold else 0
            if end > inode.size or (inode.size and not inode.hot_no and self._is_short(inode)):
                self._report("inode", ino, f"has {inode.size} bytes, but content for another length")
            if inode.cold and self._meta.get(RECIPES, INO.pack(ino)) is None:
                self._report("recipe", ino, "the inode has sealed content and no recipe")

    def _check_extents(self, ino: Ino, recipe: Recipe) -> None:
        for extent in recipe:
            if extent.is_hole:
                continue
            place = self._chunks.get(INDEX, extent.chunk)
            is_remote = self._meta.get(PLACES, extent.chunk) is not None
            fault = self._bad.get(extent.chunk, "")
            if place is None:
                fault = "" if is_remote else "is missing"
            elif PLACE.unpack(place)[2] != extent.end - extent.start:
                fault = f"has {PLACE.unpack(place)[2]} bytes"
            if fault:
                where = f"bytes {extent.start} to {extent.end}: chunk {extent.chunk.hex()} {fault}"
                mend = "; the remote has it: reading it once, mounted, mends it" if is_remote else ""
                self._report("chunk", ino, where + mend)

    def _check_snapshots(self) -> None:
        """Every snapshot that is kept here decodes, has what it builds upon, and its chunks are stored."""
        entries: dict[tuple[int, int], Snapshot] = {}
        for key, value in self._meta.scan(SNAPSHOTS):
            self._step("snapshots")
            entries[SNAPSHOT_KEY.unpack(key)] = msgspec.msgpack.decode(value, type=Snapshot)
        manifests: set[tuple[int, int]] = set()
        for key, encoded in self._meta.scan(MANIFESTS):
            session, sequence = SNAPSHOT_KEY.unpack(key)
            manifests.add((session, sequence))
            try:
                chunks = list(manifest_chunks(decode_manifest(encoded, f"snapshot {sequence}")))
            except SessfsError as exc:
                self._report("snapshot", Ino(session), str(exc))
                continue
            self._kept.update(chunks)
            for cid in dict.fromkeys(chunks):
                fault = self._bad.get(cid, "" if self._is_somewhere(cid) else "is missing")
                if fault:
                    self._report("chunk", Ino(session), f"snapshot {sequence}: chunk {cid.hex()} {fault}")
        for (session, sequence), snapshot in entries.items():
            if snapshot.manifest is None and (session, sequence) not in manifests:
                self._report("snapshot", Ino(session), f"snapshot {sequence} is listed, and not stored")
            if snapshot.base and (session, snapshot.base) not in manifests:
                message = f"snapshot {sequence} builds upon snapshot {snapshot.base}, which is not stored"
                self._report("snapshot", Ino(session), message)
        for session, sequence in manifests - entries.keys():
            self._report("snapshot", Ino(session), f"snapshot {sequence} is stored, and not listed")

    def _is_somewhere(self, cid: ChunkId) -> bool:
        return self._chunks.get(INDEX, cid) is not None or self._meta.get(PLACES, cid) is not None

    def _is_short(self, inode: Inode) -> bool:
        return stat.S_ISREG(inode.mode) and inode.cold != [(0, inode.size)]

    def _check_frames(self) -> None:
        """Every frame, and every chunk that the index places in it; what is wrong with a chunk is noted in `_bad`, for
        `_check_recipes` to say of which file it is.
        """
        key = read_hash_key(self._state_dir)
        if key is None:
            if next(self._chunks.scan(FRAMES), None) is not None:
                self._report("state", None, "the hash key is missing: no chunk can be verified")
            return
        codec = FrameCodec()
        stored = last = 0
        intact: set[int] = set()
        suspects: dict[int, bytes | StoreCorrupt] = {}
        for frame_key, record in self._chunks.scan(FRAMES):
            self._step("frames")
            last = FRAME_KEY.unpack(frame_key)[0]
            stored += len(record)
            try:
                entries, payload = decode_frame_record(record)
                plain = codec.decode(payload)
            except StoreCorrupt as exc:
                suspects[last] = exc
                continue
            live = self._chunks.get(LIVE, frame_key)
            if live == LIVE_BYTES.pack(self._check_chunks(key, last, entries, plain)):
                intact.add(last)
            else:
                suspects[last] = plain
        plain_bytes = self._check_index(key, intact, suspects)
        totals = read_totals(self._chunks)
        if totals != Totals(totals.next_frame, stored, plain_bytes) or totals.next_frame <= last:
            self._report("counter", None, f"the totals say {tuple(totals)}, there are {stored} and {plain_bytes} bytes")

    def _check_chunks(self, key: bytes, number: int, entries: list[tuple[ChunkId, int]], plain: bytes) -> int:
        """Bytes of the frame's chunks that the index places here."""
        offset = alive = 0
        for cid, length in entries:
            place = self._chunks.get(INDEX, cid)
            if place is not None and PLACE.unpack(place) == (number, offset, length):
                self._step("chunks")
                alive += length
                self._verify(key, cid, memoryview(plain)[offset : offset + length])
            offset += length
        return alive

    def _verify(self, key: bytes, cid: ChunkId, plain: bytes | memoryview) -> None:
        try:
            verify_chunk(key, cid, plain)
        except StoreCorrupt:
            self._bad[cid] = "does not match its hash"

    def _check_index(self, key: bytes, intact: set[int], suspects: dict[int, bytes | StoreCorrupt]) -> int:
        """Bytes of all chunks in the index. Those in frames whose own list can't be relied on are verified here."""
        total = 0
        used: set[int] = set()
        for cid_bytes, value in self._chunks.scan(INDEX):
            cid = ChunkId(cid_bytes)
            number, offset, length = PLACE.unpack(value)
            total += length
            if number in intact:
                continue
            used.add(number)
            plain = suspects.get(number)
            if plain is None:
                self._bad[cid] = f"is indexed in frame {number}, which is not stored"
            elif isinstance(plain, StoreCorrupt):
                self._bad[cid] = f"lies in frame {number}, which is damaged: {plain}"
            else:
                self._verify(key, cid, plain[offset : offset + length])
        for number, plain in suspects.items():
            if number not in used or not isinstance(plain, StoreCorrupt):
                self._report("frame", None, f"frame {number} is damaged, or its chunks are miscounted")
        return total

    def _check_references(self) -> None:
        named = self._refs.keys() | self._kept.keys()
        for cid in self._bad.keys() - named:
            self._report("chunk", None, f"chunk {cid.hex()}, which no file uses, {self._bad[cid]}")
        for table, counted, whose in ((REFS, self._refs, "references"), (KEPT_REFS, self._kept, "of snapshots")):
            stored = {ChunkId(cid): REF_COUNT.unpack(value)[0] for cid, value in self._meta.scan(table)}
            for cid in stored.keys() | counted.keys():
                if stored.get(cid, 0) != counted[cid]:
                    found = f"{stored.get(cid, 0)} {whose} stored, {counted[cid]} counted"
                    self._report("refcount", None, f"chunk {cid.hex()}: {found}")
        if read_clean_mark(self._state_dir) is False:
            for cid_bytes, _ in self._chunks.scan(INDEX):
                if ChunkId(cid_bytes) not in named:
                    self._report("chunk", None, f"chunk {cid_bytes.hex()} is stored and nothing names it")

    def _check_hot_files(self) -> None:
        wanted = {f"{ino:x}.{inode.hot_no:x}": inode for ino, inode in self._inodes.items() if inode.hot_no}
        hot_dir = self._state_dir / "hot"
        found = {entry.name: entry.stat().st_size for entry in hot_dir.iterdir()} if hot_dir.is_dir() else {}
        for name, inode in wanted.items():
            self._step("hot_files")
            if not self._clean:
                continue
            if name not in found:
                self._report("hot", inode.ino, f"its hot file {name} is missing")
            elif found[name] != inode.size:
                self._report("hot", inode.ino, f"its hot file has {found[name]} bytes, the inode {inode.size}")
        if self._clean:
            for name in found.keys() - wanted.keys():
                self._report("hot", None, f"hot file {name} belongs to no inode")
