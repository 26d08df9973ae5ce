"""A user's Chrome on an empty machine: all that it needs comes from the bucket, by a local S3 service."""

from __future__ import annotations

import shutil
import statistics
import time
from typing import TYPE_CHECKING, Any

from bench import s3
from bench.chromes import LIFE_S, first_steps
from bench.targets import BenchError, open_sessfs, temporary
from tests.e2e.chromelife import RESTART, Life, LifeFailed, Page, User, run_life

if TYPE_CHECKING:
    from pathlib import Path

    from bench.targets import Sessfs


def _ready_ms(page: Page, user: User) -> float:
    """Milliseconds until the client says that it is ready; then the life goes on, and checks every record."""
    start = time.perf_counter()
    with Life(page, user, "ready", RESTART) as life:
        life.wait_event("ready", LIFE_S)
        took_ms = (time.perf_counter() - start) * 1000
        life.finish(LIFE_S).check()
    return took_ms


def empty_machine(base: Path, page: Page, rounds: int) -> dict[str, Any]:
    """In turn: a restart where everything is at hand, and mount and restart with an empty state directory. The ratio is
    that of the medians, since a state is made by many lives here and has no rounds of its own.
    """
    try:
        with temporary(base) as directory, s3.serve(directory) as options, open_sessfs(base, options) as mounted:
            user = User("user", "bench", mounted.path / "user")
            run_life(page, user, "qr", first_steps(), LIFE_S)
            run_life(page, user, "ready", RESTART, LIFE_S)  # a first restart rewrites much, and counts for nothing
            warm, cold, mounts, gets, received = [], [], [], [], []
            for _ in range(rounds):
                warm.append(_ready_ms(page, user))
                mount_ms, ready_ms, remote = _on_empty_machine(mounted, page, user)
                mounts.append(mount_ms)
                cold.append(mount_ms + ready_ms)
                gets.append(sum(count for kind, count in remote["requests"].items() if kind.startswith("get")))
                received.append(remote["downloaded_bytes"] / 1e6)
    except LifeFailed as exc:
        raise BenchError(f"Chrome failed: {str(exc)[:300]}") from exc
    return {
        "empty_warm": statistics.median(warm),
        "empty_mount": statistics.median(mounts),
        "empty_ready": statistics.median(cold),
        "empty_ratio": statistics.median(cold) / statistics.median(warm),
        "empty_gets": statistics.median(gets),
        "empty_received": statistics.median(received),
        "empty_each": {"warm_ms": warm, "cold_ms": cold, "mount_ms": mounts},
    }


def _on_empty_machine(mounted: Sessfs, page: Page, user: User) -> tuple[float, float, dict[str, Any]]:
    """Milliseconds of the mount and of Chrome until it is ready, and the remote's part of the status."""
    mounted.umount()
    shutil.rmtree(mounted.state)
    start = time.perf_counter()
    mounted.mount()
    mount_ms = (time.perf_counter() - start) * 1000
    ready_ms = _ready_ms(page, user)
    return mount_ms, ready_ms, mounted.status()["remote"]
