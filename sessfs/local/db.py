"""LMDB with an overlay: changes are made in memory at once and become durable together, batch by batch.

The request loop puts and deletes in the overlay, which costs a dictionary access; `cut` freezes the overlay at one
instant, `write_batch` makes that batch durable in one transaction from a worker thread, and reads see overlay, then
the batch on its way, then LMDB. So what is on disk is always a prefix of what was done. Only this module imports lmdb.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from typing import TYPE_CHECKING, Any, NewType

import lmdb

from sessfs.errors import LocalStoreError, StoreCorrupt, StoreFull
from sessfs.local.memory import unmap_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

TableName = NewType("TableName", str)
PREFIX_BYTES = 8
MAX_READERS = 256
COPY_BYTES = 32 << 20
DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"
MAPPED_BYTES = 4 << 20
"""About how much of the mapped file may count as this process's memory before it is let go of."""
PAGE_BYTES = 4096


class _Layer:
    """Changes of one table, not yet durable: key → value, None for a deletion; keys grouped by their first 8 bytes."""

    __slots__ = ("by_prefix", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.by_prefix: dict[bytes, list[bytes]] = {}

    def set(self, key: bytes, value: bytes | None) -> None:
        if key not in self.values:
            self.by_prefix.setdefault(key[:PREFIX_BYTES], []).append(key)
        self.values[key] = value

    def keys_with(self, prefix: bytes) -> Iterator[bytes]:
        if len(prefix) >= PREFIX_BYTES:
            return (k for k in self.by_prefix.get(prefix[:PREFIX_BYTES], ()) if k.startswith(prefix))
        return (k for k in self.values if k.startswith(prefix))


class Batch:
    """The changes of all tables between two cuts; immutable once cut."""

    def __init__(self, layers: dict[TableName, _Layer]) -> None:
        self._layers = layers

    @property
    def n_changes(self) -> int:
        """Number of keys that change."""
        return sum(len(layer.values) for layer in self._layers.values())

    def layers(self) -> dict[TableName, _Layer]:
        """Table → changes."""
        return self._layers


class Standing:
    """What is durable, as a transaction for writing finds it: nobody can change it before that transaction ends."""

    def __init__(self, txn: lmdb.Transaction, handles: dict[TableName, Any]) -> None:
        self._txn = txn
        self._handles = handles

    def get(self, table: TableName, key: bytes) -> bytes | None:
        """The value of *key*, None when there is none."""
        found = self._txn.get(key, db=self._handles[table])
        return None if found is None else bytes(found)

    def last_key(self, table: TableName, below: bytes) -> bytes | None:
        """The greatest key of the table that is less than *below*, None when there is none."""
        with self._txn.cursor(db=self._handles[table]) as cursor:
            found = cursor.prev() if cursor.set_range(below) else cursor.last()
            return bytes(cursor.key()) if found else None


def open_environment(
    path: Path,
    n_tables: int,
    map_size_bytes: int,
    *,
    readonly: bool = False,
    readahead: bool = False,
    create: bool = True,
) -> lmdb.Environment:
    """Open the environment in directory *path*, and create it, unless *readonly* or not *create*; the directory that
    *path* is in must be there.

    Must be called after the last fork, once per process and path. Stale reader slots of killed processes are cleared.
    *readahead* suits large values that are read whole: without it each page of a cold one is a disk access of its own.
    Pages start as zeros, so that what this process has in its memory never gets into the unused part of one.
    Raises LocalStoreError when LMDB refuses.
    """
    create = create and not readonly
    if not create and not (path / DATA_FILE).exists():
        raise LocalStoreError(f"there is no database in {path}")
    try:
        if create:
            path.mkdir(mode=0o700, exist_ok=True)
        env = lmdb.open(
            str(path),
            map_size=map_size_bytes,
            max_dbs=n_tables,
            max_readers=MAX_READERS,
            readonly=readonly,
            create=create,
            readahead=readahead,
            meminit=True,
            mode=0o600,
        )
        env.reader_check()
    except (lmdb.Error, OSError) as exc:
        raise LocalStoreError(f"can't open the database in {path}: {exc}") from exc
    return env


class Database:
    """One environment, its tables and their overlay. One thread (the request loop) may call all but `write_batch`."""

    def __init__(
        self,
        path: Path,
        tables: Sequence[TableName],
        map_size_bytes: int,
        *,
        readonly: bool = False,
        readahead: bool = False,
        create: bool = True,
    ) -> None:
        """See `open_environment`. Raises LocalStoreError."""
        self._path = path
        self._readahead = readahead
        self._data_path = str(path.resolve() / "data.mdb")
        self._mapped_bytes = 0
        self._env = open_environment(
            path, len(tables), map_size_bytes, readonly=readonly, readahead=readahead, create=create
        )
        try:
            self._handles = open_tables(self._env, tables, readonly=readonly)
        except StoreCorrupt:
            self._env.close()
            raise
        self._layers = {name: _Layer() for name in tables}
        self._in_flight: Batch | None = None
        self._txn: lmdb.Transaction | None = None

    def _reader(self) -> lmdb.Transaction:
        if self._txn is None:
            try:
                self._txn = self._env.begin()
            except lmdb.MapResizedError:
                # Another process (the chunk writer) has grown the map: adopt its size.
                self._env.set_mapsize(0)
                self._txn = self._env.begin()
        return self._txn

    def refresh(self) -> None:
        """Let the next read see what other threads and processes have committed; frees the pages this view held."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None

    def get(self, table: TableName, key: bytes) -> bytes | None:
        """The value of *key*, newest change first; None when there is none."""
        values = self._layers[table].values
        if key in values:
            return values[key]
        if self._in_flight is not None:
            values = self._in_flight.layers()[table].values
            if key in values:
                return values[key]
        stored = self._reader().get(key, db=self._handles[table])
        if stored is None:
            return None
        self._note_mapped(len(stored))
        return bytes(stored)

    def _note_mapped(self, length: int) -> None:
        """A value was read, or written: at least its pages are mapped now."""
        self._mapped_bytes += length + PAGE_BYTES // 8
        if self._mapped_bytes > MAPPED_BYTES:
            self._mapped_bytes = 0
            unmap_pages(self._data_path)

    def put(self, table: TableName, key: bytes, value: bytes) -> None:
        """Set *key* (at most 511 bytes); visible at once, durable with the next batch."""
        self._layers[table].set(key, value)

    def delete(self, table: TableName, key: bytes) -> None:
        """Remove *key*, if it is there; visible at once, durable with the next batch."""
        self._layers[table].set(key, None)

    def scan(self, table: TableName, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of every key that starts with *prefix* and is greater than *after*, in key order.

        Must be used up before the next change to the table or the next `refresh`.
        """
        changes: dict[bytes, bytes | None] = {}
        if self._in_flight is not None:
            layer = self._in_flight.layers()[table]
            changes.update((k, layer.values[k]) for k in layer.keys_with(prefix))
        layer = self._layers[table]
        changes.update((k, layer.values[k]) for k in layer.keys_with(prefix))
        if after is not None:
            changes = {k: v for k, v in changes.items() if k > after}
        stored = self._scan_stored(table, prefix, after)
        if not changes:
            yield from stored
            return
        fresh = ((k, v) for k, v in sorted(changes.items()) if v is not None)
        kept = ((k, v) for k, v in stored if k not in changes)
        yield from heapq.merge(kept, fresh, key=lambda item: item[0])

    def collect(self, table: TableName, prefix: bytes) -> dict[bytes, bytes]:
        """What `scan` gives for *prefix*, all of it at once, in no order, and several times as fast."""
        found: dict[bytes, bytes] = {}
        size = 0
        with self._reader().cursor(db=self._handles[table]) as cursor:
            rows: Any = cursor.iternext() if cursor.set_range(prefix) else ()
            for key, value in rows:
                if not key.startswith(prefix):
                    break
                found[key] = value
                size += len(value)
        self._note_mapped(size)
        newest = self._layers[table]
        for layer in (newest,) if self._in_flight is None else (self._in_flight.layers()[table], newest):
            for key in layer.keys_with(prefix):
                changed = layer.values[key]
                if changed is None:
                    found.pop(key, None)
                else:
                    found[key] = changed
        return found

    def _scan_stored(self, table: TableName, prefix: bytes, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        with self._reader().cursor(db=self._handles[table]) as cursor:
            start = prefix if after is None else max(prefix, after)
            found = cursor.set_range(start) if start else cursor.first()
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                if after is None or key > after:
                    value = bytes(cursor.value())
                    self._note_mapped(len(value))
                    yield key, value
                found = cursor.next()

    def last_key(self, table: TableName, below: bytes) -> bytes | None:
        """The greatest durable key of the table that is less than *below*, None when there is none."""
        return Standing(self._reader(), self._handles).last_key(table, below)

    def count(self, table: TableName) -> int:
        """Number of keys that are durable; changes in memory are not counted."""
        return int(self._reader().stat(self._handles[table])["entries"])

    @property
    def is_dirty(self) -> bool:
        """True when there are changes that no batch holds yet."""
        return any(layer.values for layer in self._layers.values())

    def cut(self) -> Batch:
        """Freeze all changes made so far as one batch. `settle` must be called before the next cut."""
        if self._in_flight is not None:
            raise RuntimeError("a batch is already on its way")
        batch = Batch(self._layers)
        self._layers = {name: _Layer() for name in self._layers}
        self._in_flight = batch
        return batch

    def write_batch(self, batch: Batch, check: Callable[[Standing], None] = lambda standing: None) -> bool:
        """Make *batch* durable in one transaction; may be called from any thread. False when the map is full: call
        `grow` from the request loop and try again. Raises StoreFull when the disk is, LocalStoreError on other errors,
        and whatever *check*, which is called before anything is changed, raises; nothing of the batch is on disk then.
        """
        try:
            with self._env.begin(write=True) as txn:
                check(Standing(txn, self._handles))
                for name, layer in batch.layers().items():
                    handle = self._handles[name]
                    for key, value in layer.values.items():
                        if value is None:
                            txn.delete(key, db=handle)
                        else:
                            txn.put(key, value, db=handle)
        except lmdb.MapFullError:
            return False
        except lmdb.DiskError as exc:
            raise StoreFull(f"the disk of {self._path} takes no more: {exc}") from exc
        except lmdb.Error as exc:
            if "No space left" in str(exc):
                raise StoreFull(f"the disk of {self._path} is full") from exc
            raise LocalStoreError(f"can't commit to {self._path}: {exc}") from exc
        return True

    def settle(self, batch: Batch, *, durable: bool) -> None:
        """End of a batch: when *durable*, reads go to LMDB; else its changes go back to the overlay, under newer."""
        if batch is not self._in_flight:
            raise RuntimeError("this batch is not on its way")
        self._in_flight = None
        if durable:
            self.refresh()
            return
        for name, layer in batch.layers().items():
            newer = self._layers[name]
            for key, value in newer.values.items():
                layer.set(key, value)
            self._layers[name] = layer

    def grow(self) -> int:
        """Double the map; returns its new size in bytes. No `write_batch` may be running."""
        self.refresh()
        size = int(self._env.info()["map_size"]) * 2
        self._env.set_mapsize(size)
        return size

    def stored_bytes(self) -> int:
        """Bytes of the pages in use (not the file's length)."""
        info = self._env.info()
        return (int(info["last_pgno"]) + 1) * int(self._env.stat()["psize"])

    def rewrite_into(self, target: Path) -> None:
        """Write what is durable here, and not a byte else, into a new environment in the directory *target*: freed
        pages keep what was in them, and pages in use the rest of what they once held. Any thread; nobody may write here
        until `adopt`. Raises StoreFull, LocalStoreError; then *target* is worth nothing.
        """
        size = int(self._env.info()["map_size"])
        try:
            while not self._try_rewrite(target, size):
                size *= 2
        except lmdb.DiskError as exc:
            raise StoreFull(f"the disk of {target} takes no more: {exc}") from exc
        except lmdb.Error as exc:
            raise LocalStoreError(f"can't rewrite {self._path} into {target}: {exc}") from exc

    def _try_rewrite(self, target: Path, map_size_bytes: int) -> bool:
        """False when the map is too small."""
        remove_rewritten(target)
        fresh = open_environment(target, len(self._handles), map_size_bytes)
        try:
            with self._env.begin(buffers=True) as source:
                for name, handle in self._handles.items():
                    _copy_table(source, handle, fresh, fresh.open_db(name.encode()))
        except lmdb.MapFullError:
            return False
        finally:
            fresh.close()
        return True

    def adopt(self, rewritten: Path) -> None:
        """Go on with the environment that `rewrite_into` made, in place of this one; changes in memory stay. No process
        may have either open but this one. A crash leaves the old one or the new one, whole. Raises LocalStoreError.
        """
        self.refresh()
        readonly, map_size = bool(self._env.flags()["readonly"]), int(self._env.info()["map_size"])
        self._env.close()
        os.replace(rewritten / DATA_FILE, self._path / DATA_FILE)
        # It counts the transactions of the old file: with it, the new one would be read from the wrong page.
        (self._path / LOCK_FILE).unlink(missing_ok=True)
        sync_directory(self._path)
        remove_rewritten(rewritten)
        names = list(self._handles)
        self._env = open_environment(self._path, len(names), map_size, readonly=readonly, readahead=self._readahead)
        self._handles = open_tables(self._env, names, readonly=readonly)

    def close(self) -> None:
        """Close; changes that were not written are lost."""
        self.refresh()
        self._env.close()


def open_tables(env: lmdb.Environment, names: Sequence[TableName], *, readonly: bool) -> dict[TableName, Any]:
    """Handles of the tables, which are made if they are missing; all in one transaction, since each waits for the disk.
    With *readonly* raises StoreCorrupt instead.
    """
    handles = {}
    # A handle from a transaction for reading is lost with it: py-lmdb keeps such transactions to use them again.
    with contextlib.nullcontext() if readonly else env.begin(write=True) as txn:
        for name in names:
            try:
                handles[name] = env.open_db(name.encode(), txn=txn, create=not readonly)
            except lmdb.NotFoundError as exc:
                raise StoreCorrupt(f"the database in {env.path()} has no table {name}") from exc
    return handles


def _copy_table(source: lmdb.Transaction, handle: Any, fresh: lmdb.Environment, target: Any) -> None:
    """Every key of one table, in order, in transactions of about COPY_BYTES."""
    with source.cursor(db=handle) as cursor:
        found = cursor.first()
        while found:
            with fresh.begin(write=True) as txn:
                size = 0
                while found and size < COPY_BYTES:
                    key, value = cursor.item()
                    txn.put(key, value, db=target, append=True)
                    size += len(key) + len(value)
                    found = cursor.next()


def remove_rewritten(directory: Path) -> None:
    """Remove what `rewrite_into` left when nobody came to `adopt` it; fine when there is nothing."""
    for name in (DATA_FILE, LOCK_FILE):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def sync_directory(path: Path) -> None:
    """Make the names in the directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
