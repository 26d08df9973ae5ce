"""The small workloads. Each returns figures by row key, per second of wall clock, as this process sees them."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.targets import BenchError, open_sessfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MIB: Final = 1 << 20
PAGE: Final = 4096
SEED: Final = 4


class Sizes(NamedTuple):
    """How much each workload does."""

    files: int
    fsyncs: int
    stream_mib: int
    cold_mib: int
    replay_sessions: int
    replay_s: int
    many_sessions: int
    upload_mib: int
    probe_s: int


def _rate(count: float, action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return count / (time.perf_counter() - start)


def _each(action: Callable[[str], object], names: Iterable[str]) -> Callable[[], None]:
    def run() -> None:
        for name in names:
            action(name)

    return run


def _create(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    os.write(fd, bytes(PAGE))
    os.close(fd)


def _open_read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    if len(os.read(fd, PAGE)) != PAGE:
        raise BenchError(f"{path} does not have the 4 KiB that were written")
    os.close(fd)


def _stat_missing(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    raise BenchError(f"{path} is there, and should not be")


def files(directory: Path, sizes: Sizes) -> dict[str, float]:
    """Small files in one directory: create, stat, open, list, rename, unlink."""
    n = sizes.files
    place = directory / "files"
    place.mkdir()
    names = [f"{place}/file-{number:06d}" for number in range(n)]
    renamed = [f"{place}/renamed-{number:06d}" for number in range(n)]
    missing = f"{place}/missing"

    def rename_all() -> None:
        for old, new in zip(names, renamed, strict=True):
            os.rename(old, new)

    found = {"create": _rate(n, _each(_create, names))}
    found["stat"] = _rate(n, _each(os.stat, names))
    found["stat_missing"] = _rate(n, _each(_stat_missing, [missing] * n))
    found["open"] = _rate(n, _each(_open_read, names))
    found["listdir"] = _rate(n, lambda: os.listdir(place))
    if len(os.listdir(place)) != n:
        raise BenchError(f"{place} does not list the {n} files that were made")
    found["rename"] = _rate(n, rename_all)
    found["unlink"] = _rate(n, _each(os.unlink, renamed))
    return found


def _write_and_sync(path: Path, count: int, ready: Callable[[], object]) -> None:
    page = os.urandom(PAGE)
    with path.open("wb", buffering=0) as file:
        ready()
        for _ in range(count):
            file.write(page)
            os.fsync(file.fileno())


def fsyncs(directory: Path, sizes: Sizes) -> dict[str, float]:
    """Appends of 4 KiB, each followed by fsync: by one writer, then by eight processes, each in a file of its own."""
    found = {"fsync1": _rate(sizes.fsyncs, lambda: _write_and_sync(directory / "alone", sizes.fsyncs, lambda: None))}
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(9)
    each = max(sizes.fsyncs // 4, 1)
    writers = [
        context.Process(target=_write_and_sync, args=(directory / f"writer{n}", each, barrier.wait)) for n in range(8)
    ]
    for writer in writers:
        writer.start()
    barrier.wait(30)

    def join() -> None:
        for writer in writers:
            writer.join()

    found["fsync8"] = _rate(8 * each, join)
    if any(writer.exitcode != 0 for writer in writers):
        raise BenchError(f"a writer failed: {[writer.exitcode for writer in writers]}")
    return found


def _read_all(path: Path) -> int:
    total = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(MIB):
            total += len(block)
    return total


def _read_map(path: Path) -> int:
    """Read a whole file through a fresh mapping; returns its length."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        return sum(len(mapped[start : start + MIB]) for start in range(0, len(mapped), MIB))


def streams(directory: Path, sizes: Sizes) -> dict[str, float]:
    """One large file: written, with and without fsync before close; read from the page cache; mapped."""
    path = directory / "stream"
    block = os.urandom(MIB)

    def write(to: Path, *, sync: bool) -> None:
        with to.open("wb", buffering=0) as file:
            for _ in range(sizes.stream_mib):
                file.write(block)
            if sync:
                os.fsync(file.fileno())

    def read_twice() -> None:
        for _ in range(2):
            if _read_all(path) != sizes.stream_mib * MIB:
                raise BenchError(f"{path} does not have the bytes that were written")

    found = {"seq_write": _rate(sizes.stream_mib, lambda: write(path, sync=False))}
    os.sync()
    found["seq_write_sync"] = _rate(sizes.stream_mib, lambda: write(directory / "synced", sync=True))
    _read_all(path)
    found["cached_read"] = _rate(2 * sizes.stream_mib, read_twice)
    found["mmap_read"] = _rate(sizes.stream_mib, lambda: _read_map(path))
    return found


def drop_caches() -> None:
    """Forget all clean pages of this machine's page cache; root only."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def make_text(length: int) -> bytes:
    """*length* bytes that compress about as JavaScript does, and hold nothing twice; the same at each call."""
    random_words = random.Random(SEED)
    words = [random_words.randbytes(4).hex()[: random_words.randint(2, 8)] for _ in range(1500)]
    text = " ".join(random_words.choices(words, k=length // 4)).encode()
    return text[:length]


def cold_plain(directory: Path, text: bytes) -> float:
    """MiB/s of reading a file whose pages are not in memory, by way of a plain directory or passthrough_ll."""
    path = directory / "cold"
    path.write_bytes(text)
    drop_caches()
    return _rate(len(text) / MIB, lambda: _expect(path, len(text)))


def cold_sealed(base: Path, text: bytes) -> float:
    """MiB/s of reading a sealed file right after mounting, with nothing in memory: from LMDB, unpacked and verified."""
    with open_sessfs(base, ["--seal-idle", "1s"]) as mounted:
        path = mounted.path / "user" / "cold"
        path.parent.mkdir()
        with path.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mounted.wait_sealed()
        mounted.umount()
        drop_caches()
        mounted.mount()
        return _rate(len(text) / MIB, lambda: _expect(path, len(text)))


def _expect(path: Path, length: int) -> None:
    if _read_all(path) != length:
        raise BenchError(f"{path} is shorter than what was written")


def idle_memory(base: Path) -> float:
    """MB of resident memory of a new mount, daemon and seal process together."""
    with open_sessfs(base) as mounted:
        return float(mounted.status()["memory_bytes"]) / 1e6


def tree_bytes(path: Path) -> int:
    """Sizes of all files below *path*."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
