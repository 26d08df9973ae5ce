"""Plays a trace (bench/trace.py) against session directories: `python -m bench.replay`, started by bench/crowd.py.

One thread a session. Pauses of the trace are stretched until it takes as long as asked; bursts keep the speed that
Chrome had. A session that is through is checked byte by byte, removed and begun anew with other contents, until the
time is up.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench import trace
from bench.trace import Content, Node, Op
from bench.workloads import PAGE, make_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAUSE_US: Final = 50_000
"""Gaps from here on are pauses of Chrome, and stretched; shorter ones are within a burst."""
BUCKET: Final = math.log(1.05)
"""Latencies are counted in steps of 5 %."""
ERRORS_MAX: Final = 20
_SWITCH_S: Final = 0.0005


class Task(NamedTuple):
    """What one process does: sessions *first* to *last* - 1 of *total*, for *duration_s* from *start_s* of the
    monotonic clock on. A trace takes *cycle_s*; the sessions' starts are spread evenly over one.
    """

    trace: str
    root: str
    first: int
    last: int
    total: int
    cycle_s: float
    duration_s: float
    start_s: float


class Position(NamedTuple):
    """How far a session got: *done* operations of its *round*-th life."""

    session: int
    round: int
    done: int


@dataclass
class Counts:
    """Latencies by kind of operation, as numbers of calls by bucket, and the longest, ms."""

    buckets: dict[str, dict[int, int]] = field(default_factory=dict)
    longest_ms: dict[str, float] = field(default_factory=dict)
    late_s: float = 0.0
    """The most that an operation came after its time."""

    def add(self, kind: str, took_s: float) -> None:
        """Count one call."""
        bucket = math.ceil(math.log(max(took_s * 1e3, 1e-3)) / BUCKET)
        of_kind = self.buckets.setdefault(kind, {})
        of_kind[bucket] = of_kind.get(bucket, 0) + 1
        self.longest_ms[kind] = max(self.longest_ms.get(kind, 0.0), took_s * 1e3)

    def merge(self, other: Counts) -> None:
        """Add what another counted."""
        for kind, of_kind in other.buckets.items():
            mine = self.buckets.setdefault(kind, {})
            for bucket, count in of_kind.items():
                mine[bucket] = mine.get(bucket, 0) + count
            self.longest_ms[kind] = max(self.longest_ms.get(kind, 0.0), other.longest_ms[kind])
        self.late_s = max(self.late_s, other.late_s)

    def total(self, kinds: Sequence[str] | None = None) -> int:
        """How many calls."""
        return sum(sum(self.buckets[kind].values()) for kind in kinds or self.buckets)

    def percentile_ms(self, percent: float, kinds: Sequence[str] | None = None) -> float:
        """The upper end of the bucket in which the *percent*-th percentile of *kinds* (of all) lies."""
        whole: dict[int, int] = {}
        for kind in kinds or self.buckets:
            for bucket, count in self.buckets[kind].items():
                whole[bucket] = whole.get(bucket, 0) + count
        wanted = math.ceil(sum(whole.values()) * percent / 100)
        for bucket in sorted(whole):
            wanted -= whole[bucket]
            if wanted <= 0:
                return math.exp(bucket * BUCKET)
        return 0.0

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return {"buckets": self.buckets, "longest_ms": self.longest_ms, "late_s": self.late_s}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Counts:
        """Inverse of `to_json`."""
        buckets = {kind: {int(b): n for b, n in each.items()} for kind, each in record["buckets"].items()}
        return Counts(buckets, record["longest_ms"], record["late_s"])


def schedule(ops: Sequence[Op], cycle_s: float) -> list[float]:
    """Seconds from the start at which each operation is due, so that the last is due after *cycle_s*; the trace's own
    speed when that is longer.
    """
    gaps = [now.at_us - before.at_us for before, now in zip(ops[:1] + list(ops), ops, strict=False)]
    pauses = sum(gap for gap in gaps if gap >= PAUSE_US)
    bursts = sum(gaps) - pauses
    stretch = max((cycle_s * 1e6 - bursts) / pauses, 1.0) if pauses else 1.0
    due, times = 0.0, []
    for gap in gaps:
        due += gap * (stretch if gap >= PAUSE_US else 1.0) / 1e6
        times.append(due)
    return times


# -- one session


class Session:
    """One session's directory, and the files that are open there."""

    def __init__(self, root: Path, content: Content) -> None:
        self.profile = root / "session"
        self._content = content
        self._fds: dict[int, int] = {}

    def close(self) -> None:
        """Close what is open."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def play(self, index: int, op: Op) -> Callable[[], str | None]:
        """The call to make for *op*, ready made; it returns what is wrong with the answer."""
        return _PLAYERS[op.kind](self, index, op)

    def _path(self, op: Op) -> str:
        return f"{self.profile}/{op.path}" if op.path else str(self.profile)

    def open(self, index: int, op: Op) -> Callable[[], str | None]:
        """Keep the descriptor as the trace's handle."""
        path = self._path(op)

        def call() -> None:
            self._fds[op.handle] = os.open(path, op.x, 0o600)

        return call

    def close_one(self, index: int, op: Op) -> Callable[[], str | None]:
        """Close a handle."""
        fd = self._fds.pop(op.handle)
        return lambda: os.close(fd)

    def read(self, index: int, op: Op) -> Callable[[], str | None]:
        """Read; the length must be the recorded one. The bytes are compared at the end."""
        fd = self._fds[op.handle]

        def call() -> str | None:
            got = len(os.pread(fd, op.y, op.x))
            return None if got == op.z else f"read {got} bytes instead of {op.z}"

        return call

    def write(self, index: int, op: Op) -> Callable[[], str | None]:
        """Write."""
        fd, piece = self._fds[op.handle], self._content.piece(index, 0, op.y, shared=bool(op.z))

        def call() -> str | None:
            done = os.pwrite(fd, piece, op.x)
            return None if done == op.y else f"wrote {done} bytes instead of {op.y}"

        return call

    def list_names(self, index: int, op: Op) -> Callable[[], str | None]:
        """List; there must be as many names as recorded."""
        fd = self._fds[op.handle]

        def call() -> str | None:
            found = len(os.listdir(fd))
            return None if found == op.z else f"lists {found} names instead of {op.z}"

        return call

    def map(self, index: int, op: Op) -> Callable[[], str | None]:
        """Map, and touch each page that the file has."""
        fd = self._fds[op.handle]

        def call() -> None:
            length = min(op.y, os.fstat(fd).st_size - op.x)
            if length > 0:
                with mmap.mmap(fd, length, prot=mmap.PROT_READ, offset=op.x) as mapped:
                    mapped[::PAGE]

        return call

    def on_fd(self, action: Callable[[int, Op], object]) -> Callable[[int, Op], Callable[[], str | None]]:
        """A player for a call on an open file that answers nothing of interest."""

        def play(index: int, op: Op) -> Callable[[], str | None]:
            fd = self._fds[op.handle]

            def call() -> None:
                action(fd, op)

            return call

        return play

    def on_path(self, action: Callable[[str], object]) -> Callable[[int, Op], Callable[[], str | None]]:
        """A player for a call on a path."""

        def play(index: int, op: Op) -> Callable[[], str | None]:
            path = self._path(op)

            def call() -> None:
                action(path)

            return call

        return play

    def rename(self, index: int, op: Op) -> Callable[[], str | None]:
        """Rename."""
        old, new = self._path(op), f"{self.profile}/{op.other}"
        return lambda: os.rename(old, new)


def _access(path: str) -> None:
    os.stat(path)  # os.access() would not say why


def _on_fd(action: Callable[[int, Op], object]) -> Callable[[Session, int, Op], Callable[[], str | None]]:
    return lambda session, index, op: session.on_fd(action)(index, op)


def _on_path(action: Callable[[str], object]) -> Callable[[Session, int, Op], Callable[[], str | None]]:
    return lambda session, index, op: session.on_path(action)(index, op)


_PLAYERS: Final[dict[str, Callable[[Session, int, Op], Callable[[], str | None]]]] = {
    "open": Session.open,
    "close": Session.close_one,
    "read": Session.read,
    "write": Session.write,
    "list": Session.list_names,
    "map": Session.map,
    "rename": Session.rename,
    "truncate": _on_fd(lambda fd, op: os.ftruncate(fd, op.x)),
    "fsync": _on_fd(lambda fd, _: os.fsync(fd)),
    "fdatasync": _on_fd(lambda fd, _: os.fdatasync(fd)),
    "fstat": _on_fd(lambda fd, _: os.fstat(fd)),
    "chown": _on_fd(lambda fd, _: os.fchown(fd, os.getuid(), os.getgid())),
    "allocate": _on_fd(lambda fd, op: os.posix_fallocate(fd, op.x, op.y)),
    "stat": _on_path(os.stat),
    "lstat": _on_path(os.lstat),
    "access": _on_path(_access),
    "mkdir": _on_path(lambda path: os.mkdir(path, 0o700)),
    "rmdir": _on_path(os.rmdir),
    "unlink": _on_path(os.unlink),
    "symlink": _on_path(lambda path: os.symlink("target", path)),
    "readlink": _on_path(os.readlink),
    "statfs": _on_path(os.statvfs),
}


def compare(profile: Path, tree: dict[str, Node], content: Content) -> list[str]:
    """What in *profile* is not as in *tree*: names, kinds, sizes, bytes."""
    there = {str(path.relative_to(profile)): path for path in profile.rglob("*")}
    wrong = [
        f"{path or profile} is {'there' if path in there else 'missing'}"
        for path in there.keys() ^ (tree.keys() - {""})
    ]
    for path, node in tree.items():
        if node.kind == "file" and path in there:
            found = there[path].read_bytes()
            if found != node.content(content):
                wrong.append(f"{path}, of {len(found)} bytes, has not the {node.size} bytes that were written")
    return wrong


# -- one process


class Player:
    """All sessions of one task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._ops, _ = trace.load(Path(task.trace))
        self._due = schedule(self._ops, task.cycle_s)
        self._tree = trace.tree_after(self._ops)
        self._pool = make_pool()
        # On a busy machine what is above may take longer than the start was away.
        self._start_s = max(task.start_s, time.monotonic())
        self._end_s = self._start_s + task.duration_s
        self._lock = threading.Lock()
        self.counts = Counts()
        self.errors: list[str] = []
        self.positions: list[Position] = []
        self.lives = 0

    def run(self) -> None:
        """Play all sessions to the end of the time."""
        threads = [threading.Thread(target=self._session, args=(n,)) for n in range(self._task.first, self._task.last)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _session(self, number: int) -> None:
        task = self._task
        begin = self._start_s + task.cycle_s * number / task.total
        counts = Counts()
        life = done = 0
        try:
            while begin < self._end_s and not self._failed():
                done = self._life(number, life, begin, counts)
                if done < len(self._ops):
                    break
                self._finish(number, life)
                begin, life, done = max(begin + task.cycle_s, time.monotonic()), life + 1, 0
        except Exception as exc:
            self._report(f"session {number}, life {life}: {exc!r}")
        with self._lock:
            self.counts.merge(counts)
            self.positions.append(Position(number, life, done))
            self.lives += life

    def _failed(self) -> bool:
        return len(self.errors) >= ERRORS_MAX

    def _report(self, error: str) -> None:
        with self._lock:
            self.errors.append(error)

    def _life(self, number: int, life: int, begin: float, counts: Counts) -> int:
        """Play one life; returns how many operations were done before the time was up."""
        time.sleep(max(begin - time.monotonic(), 0))
        root = session_root(self._task.root, number)
        (root / "session").mkdir(parents=True)
        session = Session(root, content_of(self._pool, number, life))
        try:
            for index, op in enumerate(self._ops):
                wait = begin + self._due[index] - time.monotonic()
                if wait > 0.001:
                    time.sleep(min(wait, max(self._end_s - time.monotonic(), 0)))
                counts.late_s = max(counts.late_s, -wait)
                if time.monotonic() >= self._end_s or self._failed():
                    return index
                self._one(session, index, op, counts, f"session {number}, life {life}, operation {index}")
            return len(self._ops)
        finally:
            session.close()

    def _one(self, session: Session, index: int, op: Op, counts: Counts, where: str) -> None:
        call = session.play(index, op)
        error, wrong = 0, None
        start = time.perf_counter()
        try:
            wrong = call()
        except OSError as exc:
            error = exc.errno or -1
        counts.add(op.kind, time.perf_counter() - start)
        if error != op.errno:
            wrong = f"failed with {error} instead of {op.errno}"
        if wrong is not None:
            self._report(f"{where}, {op.kind} {op.path}: {wrong}")

    def _finish(self, number: int, life: int) -> None:
        root = session_root(self._task.root, number)
        for wrong in compare(root / "session", self._tree, content_of(self._pool, number, life)):
            self._report(f"session {number}, life {life}, at its end: {wrong}")
        shutil.rmtree(root)


def make_pool() -> bytes:
    """What all contents are cut from."""
    return make_text(trace.POOL_BYTES)


def content_of(pool: bytes, number: int, life: int) -> Content:
    """Contents of one life of one session."""
    return Content(pool, f"{number} {life}")


def session_root(root: str, number: int) -> Path:
    """The session's directory."""
    return Path(root) / f"user{number:03d}"


def verify(trace_path: Path, root: str, positions: Sequence[Position]) -> list[str]:
    """What of sessions that were stopped at *positions* is not as it was written."""
    ops, _ = trace.load(trace_path)
    pool = make_pool()
    wrong = []
    for number, life, done in positions:
        if done:
            tree = trace.tree_after(ops[:done])
            found = compare(session_root(root, number) / "session", tree, content_of(pool, number, life))
            wrong += [f"session {number} after {done} operations: {each}" for each in found]
        elif session_root(root, number).exists():
            wrong.append(f"session {number} is there, and should not be")
    return wrong


def main() -> None:
    """Read a task from standard input, play it, print what was found as JSON."""
    sys.setswitchinterval(_SWITCH_S)
    player = Player(Task(**json.load(sys.stdin)))
    player.run()
    json.dump(
        {
            "counts": player.counts.to_json(),
            "errors": player.errors[:ERRORS_MAX],
            "positions": player.positions,
            "lives": player.lives,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
