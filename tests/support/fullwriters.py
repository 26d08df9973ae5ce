"""Programs that go on writing through errors, and say what they were told is durable: `python -m ... DIR KIND...`.

Each line on standard input is a command, answered by one line of JSON:

- `write N`: each writer tries N records. Answer: writer → [ids that were acknowledged, errors by name].
- `reopen`: the writers whose name ends in `-reopens` close and open their files.
- `check`: writer → what is wrong with its file, as it reads now. Pages of files that are synced are dropped before.

A record is RECORD_BYTES long, says its id in each 8 bytes, and lies in the file where the writer put it. What was
acknowledged must be there, and no record may be zeros: such would be data that somebody was told of, lost in the
middle.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import sqlite3
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD_BYTES = 6000
"""Not a multiple of a page: the kernel writes bytes that are durable again with those that come behind them."""
MAP_BYTES = 4096


def record(number: int) -> bytes:
    return b"%07d\n" % number * (RECORD_BYTES // 8)


def outcome(attempt: Callable[[], object]) -> str:
    """Empty for a success, else the name of the error."""
    try:
        attempt()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    except sqlite3.Error as exc:
        return str(exc)
    return ""


class Writer:
    """Writes records and syncs each; *acked* are those of which it was told so."""

    def __init__(self, directory: str, name: str) -> None:
        self.name = name
        self.path = os.path.join(directory, name)
        self.acked: dict[int, int] = {}
        """Record → where it is."""
        self.next = 1
        self.open()

    def open(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)

    def reopen(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)
        self.open()

    def sync(self) -> None:
        os.fsync(self.fd)

    def place(self) -> int:
        """Where the next record goes."""
        return os.fstat(self.fd).st_size

    def put(self, content: bytes, place: int) -> None:
        while content:
            n = os.pwrite(self.fd, content, place)
            content, place = content[n:], place + n

    def try_one(self) -> str:
        number, self.next = self.next, self.next + 1
        place = self.place()
        problem = outcome(lambda: self.put(record(number), place)) or outcome(self.sync)
        if not problem:
            self.acked = {n: at for n, at in self.acked.items() if at + RECORD_BYTES <= place or n == number}
            self.acked[number] = place
        return problem

    def check(self) -> list[str]:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            content = b"".join(iter(lambda: os.read(fd, 4096), b""))
        finally:
            os.close(fd)
        wrong = [f"{n} at {at}" for n, at in self.acked.items() if content[at : at + RECORD_BYTES] != record(n)]
        zeros = [at for at in range(0, len(content) - 7, 8) if content[at : at + 8] == bytes(8)]
        return [*(f"acknowledged, and gone: {w}" for w in wrong), *(f"zeros at {at}" for at in zeros[:3])]


class Appender(Writer):
    """By O_APPEND: it does not know where its records go, but finds out."""

    def open(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def put(self, content: bytes, place: int) -> None:
        while content:
            content = content[os.write(self.fd, content) :]

    def check(self) -> list[str]:
        content = b""
        with open(self.path, "rb") as file:
            content = file.read()
        # A record of which a part was refused stays in parts; what comes behind it is shifted.
        wrong = [n for n in self.acked if record(n) not in content]
        zeros = [f"zeros at {at}" for at in range(0, len(content) - 7, 8) if content[at : at + 8] == bytes(8)]
        return [*(f"acknowledged, and gone: {n}" for n in wrong), *zeros[:3]]


class Streamer(Appender):
    """By the descriptor's position, which goes on behind what was refused late."""

    def open(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.lseek(self.fd, 0, os.SEEK_END)


class Pair(Writer):
    """Two descriptors write in turns, and either syncs."""

    def open(self) -> None:
        super().open()
        self.other = os.open(self.path, os.O_RDWR)

    def reopen(self) -> None:
        os.close(self.other)
        super().reopen()

    def try_one(self) -> str:
        self.fd, self.other = self.other, self.fd
        return super().try_one()


class Blind(Writer):
    """At places of its own, as databases do, and again where the last attempt failed."""

    at = 0

    def place(self) -> int:
        return self.at

    def sync(self) -> None:
        super().sync()
        self.at += RECORD_BYTES


def page(number: int) -> bytes:
    return b"%07d\n" % number * (MAP_BYTES // 8)


class Mapped(Writer):
    """Through a mapping of a file that was made longer before, a page each time."""

    def try_one(self) -> str:
        number, self.next = self.next, self.next + 1
        at = os.fstat(self.fd).st_size

        def store() -> None:
            os.ftruncate(self.fd, at + MAP_BYTES)
            with mmap.mmap(self.fd, at + MAP_BYTES) as mapping:
                mapping[at:] = page(number)
                mapping.flush()

        problem = outcome(store) or outcome(self.sync)
        if not problem:
            self.acked[number] = at
        return problem

    def check(self) -> list[str]:
        with open(self.path, "rb") as file:
            return [f"page {n}" for n, at in self.acked.items() if os.pread(file.fileno(), MAP_BYTES, at) != page(n)]


class Database(Writer):
    """SQLite, which is told to be sure of each row."""

    mode, synchronous = "wal", "full"

    def open(self) -> None:
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=5)
        self.db.execute(f"pragma journal_mode={self.mode}")
        self.db.execute(f"pragma synchronous={self.synchronous}")
        self.db.execute("create table if not exists t(n integer primary key, content)")

    def reopen(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.db.close()
        self.open()

    def try_one(self) -> str:
        number, self.next = self.next, self.next + 1
        problem = outcome(lambda: self.db.execute("insert into t values (?, ?)", (number, record(number))))
        if not problem:
            self.acked[number] = 0
        return problem

    def check(self) -> list[str]:
        db = sqlite3.connect(self.path, timeout=5)
        try:
            verdict = db.execute("pragma integrity_check").fetchone()[0]
            rows = dict(db.execute("select n, content from t"))
        finally:
            db.close()
        lost = [str(n) for n in self.acked if rows.get(n) != record(n)]
        return [*([] if verdict == "ok" else [verdict]), *(f"row {n} is gone" for n in lost)]


class Journaled(Database):
    # With less, it does not wait until the journal's end is durable.
    mode, synchronous = "delete", "extra"


KINDS: dict[str, type[Writer]] = {
    "writer": Writer,
    "appender": Appender,
    "streamer": Streamer,
    "pair": Pair,
    "blind": Blind,
    "mapped": Mapped,
    "wal": Database,
    "journal": Journaled,
}


def main() -> None:
    """See the module."""
    writers = [KINDS[name](sys.argv[1], name + end) for name in sys.argv[2:] for end in ("", "-reopens")]
    print("ready", flush=True)
    for line in sys.stdin:
        command, _, count = line.strip().partition(" ")
        answer: dict[str, object] = {}
        for writer in writers:
            if command == "write":
                before = set(writer.acked)
                problems = [problem for _ in range(int(count)) if (problem := writer.try_one())]
                answer[writer.name] = [len(set(writer.acked) - before), sorted(set(problems))]
            elif command == "reopen" and writer.name.endswith("-reopens"):
                answer[writer.name] = outcome(writer.reopen)
            elif command == "check":
                try:
                    answer[writer.name] = writer.check()
                except (OSError, sqlite3.Error) as exc:
                    answer[writer.name] = [repr(exc)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
