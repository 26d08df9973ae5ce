"""Memory of a mount's daemon and of the processes that it started, sampled while something else happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.replay import Content, make_pool
from bench.targets import BenchError, open_sessfs, temporary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.targets import Sessfs

EVERY_S: Final = 0.5
MIB: Final = 1 << 20
FILE_MIB: Final = 4


class Sample(NamedTuple):
    """MB of all processes together: anonymous, and resident (which counts pages of files that they map, each time);
    and resident of the daemon alone.
    """

    at_s: float
    anonymous: float
    resident: float
    daemon: float


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Anonymous and resident bytes of one process; 0 when it is gone."""
    fields = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmRSS"):
                fields[name] = int(value.split()[0]) * 1024
    return fields.get("RssAnon", 0), fields.get("VmRSS", 0)


def measure(pid: int, at_s: float = 0.0) -> Sample:
    """The memory now of process *pid* and its children."""
    each = [_memory(one) for one in (pid, *_children(pid))]
    return Sample(at_s, sum(one[0] for one in each) / 1e6, sum(one[1] for one in each) / 1e6, each[0][1] / 1e6)


class Watch:
    """Samples while it is open; the figures are there afterwards."""

    def __init__(self, pid: int, every_s: float = EVERY_S) -> None:
        self._pid = pid
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[Sample] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while True:
            self.samples.append(measure(self._pid, time.monotonic() - start))
            if self._ended.wait(self._every_s):
                return

    @property
    def peak(self) -> Sample:
        """The most of each."""
        return Sample(*(max(values) for values in zip(*self.samples, strict=True)))

    def growth(self) -> float:
        """Anonymous memory in the last quarter of the time, divided by that in the quarter before it."""
        end = self.samples[-1].at_s
        third = [s.anonymous for s in self.samples if end / 2 <= s.at_s < end * 3 / 4]
        fourth = [s.anonymous for s in self.samples if s.at_s >= end * 3 / 4]
        if not third:
            raise BenchError(f"{end:.1f} s are too short to say whether memory grows")
        return statistics.mean(fourth) / statistics.mean(third)

    def curve(self, points: int = 60) -> list[list[float]]:
        """At most about *points* of the samples, as [s, anonymous MB, resident MB, of it the daemon], for a plot."""
        step = max(len(self.samples) // points, 1)
        return [[round(value, 1) for value in sample] for sample in self.samples[::step]]


# -- memory while a lot is sent and restored


def _files(mib: int, pool: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files, together *mib* MiB that compress as text does, and hold nothing twice."""
    for number in range(max(mib // FILE_MIB, 1)):
        yield f"file{number:05d}", Content(pool, f"upload {number}").piece(number, 0, FILE_MIB * MIB, shared=False)


def upload_and_restore(base: Path, mib: int) -> dict[str, Any]:
    """Memory and speed while *mib* MiB of new data are written, sealed and sent to a remote (a directory), and while an
    empty machine reads them all from there.
    """
    with temporary(base) as remote:
        options = ["--remote", f"file://{remote}"]
        pool = make_pool()
        with open_sessfs(base, options) as mounted:
            upload, took_s = _watched(mounted, lambda: _write_and_sync(mounted, mib, pool))
            found = {"upload_mib": float(mib), **_figures("upload", upload, mib / took_s)}
            mounted.umount()
            shutil.rmtree(mounted.state)
            mounted.mount()
            restore, took_s = _watched(mounted, lambda: _read_all(mounted, mib, pool))
            return found | _figures("restore", restore, mib / took_s)


def _figures(what: str, watch: Watch, rate: float) -> dict[str, Any]:
    return {
        f"{what}_rate": rate,
        f"{what}_memory": watch.peak.anonymous,
        f"{what}_resident": watch.peak.resident,
        f"{what}_curve": watch.curve(),
    }


def _watched(mounted: Sessfs, action: Any) -> tuple[Watch, float]:
    start = time.monotonic()
    with Watch(int(mounted.status()["pid"])) as watch:
        action()
    return watch, time.monotonic() - start


def _write_and_sync(mounted: Sessfs, mib: int, pool: bytes) -> None:
    session = mounted.path / "user"
    session.mkdir()
    for name, data in _files(mib, pool):
        (session / name).write_bytes(data)
    mounted.sync(timeout_s=600)


def _read_all(mounted: Sessfs, mib: int, pool: bytes) -> None:
    for name, data in _files(mib, pool):
        if (mounted.path / "user" / name).read_bytes() != data:
            raise BenchError(f"{name} came back with other bytes")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its children have taken so far."""
    ticks = 0
    for one in (pid, *_children(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
