"""A program that writes as Chrome and its users do, and logs what it was promised: run by the crash tests.

`python -m tests.crash.workload DIR LOG SEED`: makes its files in DIR, prints "ready", waits for a line on standard
input, and then goes on until it is killed or a call fails. LOG gets one JSON object a line, written before an
operation ("begin") and after it has returned ("done", with CLOCK_MONOTONIC). See tests/crash/verify.py for what each
kind of operation promises.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import plyvel

if TYPE_CHECKING:
    from collections.abc import Callable

SLOT_BYTES = 4096
N_SLOTS = 200
LOG_SEED = 99
SQLITE = {"wal": ("wal", "full"), "delete": ("delete", "extra")}
"""Of each SQLite database, journal mode and `synchronous`: with these, a commit that returned is durable."""
ROW_BYTES = 500
LMDB_MAP_BYTES = 16 << 20
EMPTY = hashlib.sha256(b"").hexdigest()


def slot_content(slot: int, version: int) -> bytes:
    """Return the content of slot *slot* of `slots` in its *version*-th version; tells both by itself."""
    head = b"slot %08d version %08d " % (slot, version)
    return head + random.Random(slot * 1_000_003 + version).randbytes(SLOT_BYTES - len(head))


def row_content(row: int) -> bytes:
    """Return the content of row *row* of each database."""
    return random.Random(row).randbytes(ROW_BYTES)


def row_key(row: int) -> bytes:
    """Return its key in LMDB and LevelDB."""
    return b"%08d" % row


def appended_content(length: int) -> bytes:
    """Return the first *length* bytes, at most 4 MiB, of what is appended to `log`."""
    return random.Random(LOG_SEED).randbytes(4 << 20)[:length]


class Workload:
    """The operations, each of which logs itself."""

    def __init__(self, directory: Path, log: Path, seed: int) -> None:
        self._directory = directory
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._random = random.Random(seed)
        self._id = 0
        self._versions = [0] * N_SLOTS
        self._stream = appended_content(4 << 20)
        self._appended = 0
        self._chain = 0
        self._puts: list[str] = []
        directory.mkdir()
        self._dir_fd = os.open(directory, os.O_RDONLY)
        self._set_up()

    def _set_up(self) -> None:
        path = self._directory / "slots"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"".join(slot_content(slot, 0) for slot in range(N_SLOTS)))
        os.fsync(fd)
        os.close(fd)
        self._slots = os.open(path, os.O_RDWR)
        self._appender = os.open(self._directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._set_up_databases()
        for number in range(8):
            # They exist from the start: only a rename over an existing name orders the new content before itself.
            self._write(f"replace{number}", b"", sync=True)
            self._say(k="begin", id=-1 - number, kind="replace_sync", path=f"replace{number}", digest=EMPTY)
            self._say(k="done", id=-1 - number, t=0.0)
        os.mkdir(self._directory / "chain")
        (self._directory / "chain" / "token0").touch()
        os.fsync(self._dir_fd)
        for path in (self._directory / "chain", self._directory.parent):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def _set_up_databases(self) -> None:
        self._databases = {}
        for name, (journal, synchronous) in SQLITE.items():
            database = sqlite3.connect(self._directory / f"{name}.db", isolation_level=None)
            database.execute(f"pragma journal_mode={journal}")
            database.execute(f"pragma synchronous={synchronous}")
            database.execute("create table t(n integer primary key, b)")
            self._databases[name] = database
        self._lmdb = lmdb.open(str(self._directory / "lmdb"), map_size=LMDB_MAP_BYTES)
        self._leveldb = plyvel.DB(str(self._directory / "leveldb"), create_if_missing=True, write_buffer_size=100_000)
        self._rows = dict.fromkeys([*SQLITE, "lmdb", "leveldb"], 0)

    def _say(self, **record: Any) -> None:
        os.write(self._log, json.dumps(record).encode() + b"\n")

    def _do(self, kind: str, call: Callable[[], None], **facts: Any) -> None:
        self._id += 1
        self._say(k="begin", id=self._id, kind=kind, **facts)
        call()
        self._say(k="done", id=self._id, t=time.monotonic())

    def _content(self) -> bytes:
        size = self._random.choice([0, 100, 3000, 20_000, 100_000])
        return self._random.randbytes(self._random.randint(0, size))

    def _write(self, name: str, content: bytes, *, sync: bool) -> None:
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if sync:
            os.fsync(fd)
        os.close(fd)

    def put(self, sync: bool) -> None:
        """A new file; with *sync*, it and its directory are synced."""
        name, content = f"put{self._id}", self._content()

        def call() -> None:
            self._write(name, content, sync=sync)
            if sync:
                os.fsync(self._dir_fd)

        self._do("put_sync" if sync else "put_lazy", call, path=name, digest=hashlib.sha256(content).hexdigest())
        if sync:
            self._puts.append(name)

    def replace(self, sync: bool) -> None:
        """A new version of one of eight files, by rename from a temporary name, as LevelDB does with CURRENT."""
        name, content = f"replace{self._random.randrange(8)}", self._content()

        def call() -> None:
            self._write("temporary", content, sync=sync)
            os.rename(self._directory / "temporary", self._directory / name)
            if sync:
                os.fsync(self._dir_fd)

        kind = "replace_sync" if sync else "replace_lazy"
        self._do(kind, call, path=name, digest=hashlib.sha256(content).hexdigest())

    def append(self) -> None:
        """A record at the end of `log`, then fdatasync."""
        length = self._random.randint(1, 3000)
        piece = self._stream[self._appended : self._appended + length]

        def call() -> None:
            os.write(self._appender, piece)
            os.fdatasync(self._appender)

        self._do("append", call, length=self._appended + len(piece))
        self._appended += len(piece)

    def slot(self) -> None:
        """A new version of one slot in the middle of a file that was sealed before, then fdatasync."""
        slot = self._random.randrange(N_SLOTS)
        self._versions[slot] += 1

        def call() -> None:
            os.pwrite(self._slots, slot_content(slot, self._versions[slot]), slot * SLOT_BYTES)
            os.fdatasync(self._slots)

        self._do("slot", call, slot=slot, version=self._versions[slot])

    def unlink(self) -> None:
        """Remove a synced file, and sync the directory."""
        if self._puts:
            name = self._puts.pop(self._random.randrange(len(self._puts)))

            def call() -> None:
                os.unlink(self._directory / name)
                os.fsync(self._dir_fd)

            self._do("unlink", call, path=name)

    def move(self) -> None:
        """Rename a synced file to a new name, and sync the directory."""
        if self._puts:
            old = self._puts.pop(self._random.randrange(len(self._puts)))
            new = f"moved{self._id}"

            def call() -> None:
                os.rename(self._directory / old, self._directory / new)
                os.fsync(self._dir_fd)

            self._do("move", call, path=old, to=new)
            self._puts.append(new)

    def _row(self, database: str, put: Callable[[int, bytes], None]) -> None:
        row = self._rows[database]
        self._do("row", lambda: put(row, row_content(row)), database=database, row=row)
        self._rows[database] += 1

    def commit(self) -> None:
        """One row into one of the SQLite databases."""
        name = self._random.choice([*SQLITE])
        self._row(name, lambda row, content: self._insert(name, row, content))

    def _insert(self, name: str, row: int, content: bytes) -> None:
        self._databases[name].execute("insert into t values(?, ?)", (row, content))

    def transact(self) -> None:
        """One key into LMDB, in a transaction of its own."""

        def put(row: int, content: bytes) -> None:
            with self._lmdb.begin(write=True) as txn:
                txn.put(row_key(row), content)

        self._row("lmdb", put)

    def log_key(self) -> None:
        """One key into LevelDB, synced. Its log is small, so that tables are written and merged meanwhile."""
        self._row("leveldb", lambda row, content: self._leveldb.put(row_key(row), content, sync=True))

    def link_of_chain(self) -> None:
        """Unsynced operations whose order shows afterwards: a directory, then the token moves to its number."""
        number = self._chain + 1
        chain = self._directory / "chain"

        def call() -> None:
            os.mkdir(chain / f"d{number}")
            os.rename(chain / f"token{number - 1}", chain / f"token{number}")

        self._do("chain", call, number=number)
        self._chain = number

    def run(self) -> None:
        """Go on for ever."""
        steps: list[Callable[[], None]] = [
            lambda: self.put(True),
            lambda: self.put(False),
            lambda: self.replace(True),
            lambda: self.replace(False),
            self.append,
            self.append,
            self.slot,
            self.slot,
            self.unlink,
            self.move,
            self.commit,
            self.commit,
            self.transact,
            self.log_key,
            self.link_of_chain,
        ]
        while True:
            self._random.choice(steps)()


def main() -> None:
    """Set up, wait for the word, run."""
    workload = Workload(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    print("ready", flush=True)
    sys.stdin.readline()
    workload.run()


if __name__ == "__main__":
    main()
