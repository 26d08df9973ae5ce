"""A user's Chrome on an empty machine: all that it needs comes from the bucket, by a local S3 service."""

from __future__ import annotations

import shutil
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import s3
from bench.chromes import LIFE_S, first_steps
from bench.targets import BenchError, open_sessfs, temporary
from tests.e2e.chromelife import RESTART, Life, LifeFailed, Page, User, run_life

if TYPE_CHECKING:
    from pathlib import Path

    from bench.targets import Sessfs


class _Started(NamedTuple):
    """Milliseconds from the start of a life: until the client says that it is ready, and until the page has run its
    scripts, too. The two race each other, on any filesystem: scripts keep the page busy for a second, and ready comes
    before or after that.
    """

    ready_ms: float
    scripts_ms: float


def _start(page: Page, user: User) -> _Started:
    """One life; after its start it goes on, and checks every record."""
    start = time.perf_counter()
    with Life(page, user, "ready", RESTART) as life:
        life.wait_event("ready", LIFE_S)
        ready_ms = (time.perf_counter() - start) * 1000
        life.wait_event("scripts", LIFE_S)
        scripts_ms = (time.perf_counter() - start) * 1000
        life.finish(LIFE_S).check()
    return _Started(ready_ms, scripts_ms)


def empty_machine(base: Path, page: Page, rounds: int) -> dict[str, Any]:
    """In turn: a restart where everything is at hand, and mount and restart with an empty state directory. The ratios
    are those of the medians, since a state is made by many lives here and has no rounds of its own.
    """
    warm: list[_Started] = []
    cold: list[_Started] = []
    mounts, gets, received = [], [], []
    try:
        with temporary(base) as directory, s3.serve(directory) as options, open_sessfs(base, options) as mounted:
            user = User("user", "bench", mounted.path / "user")
            run_life(page, user, "qr", first_steps(), LIFE_S)
            run_life(page, user, "ready", RESTART, LIFE_S)  # a first restart rewrites much, and counts for nothing
            for _ in range(rounds):
                warm.append(_start(page, user))
                mount_ms, started, remote = _on_empty_machine(mounted, page, user)
                mounts.append(mount_ms)
                cold.append(_Started(mount_ms + started.ready_ms, mount_ms + started.scripts_ms))
                gets.append(sum(count for kind, count in remote["requests"].items() if kind.startswith("get")))
                received.append(remote["downloaded_bytes"] / 1e6)
    except LifeFailed as exc:
        raise BenchError(f"Chrome failed: {str(exc)[:300]}") from exc
    at_hand = _Started(*map(statistics.median, zip(*warm, strict=True)))
    empty = _Started(*map(statistics.median, zip(*cold, strict=True)))
    return {
        "empty_warm": at_hand.ready_ms,
        "empty_warm_scripts": at_hand.scripts_ms,
        "empty_mount": statistics.median(mounts),
        "empty_ready": empty.ready_ms,
        "empty_scripts": empty.scripts_ms,
        "empty_ratio": empty.ready_ms / at_hand.ready_ms,
        "empty_scripts_ratio": empty.scripts_ms / at_hand.scripts_ms,
        "empty_gets": statistics.median(gets),
        "empty_received": statistics.median(received),
        "empty_each": {"warm": [one._asdict() for one in warm], "cold": [one._asdict() for one in cold]},
    }


def _on_empty_machine(mounted: Sessfs, page: Page, user: User) -> tuple[float, _Started, dict[str, Any]]:
    """Milliseconds of the mount, Chrome's start, and the remote's part of the status."""
    mounted.umount()
    shutil.rmtree(mounted.state)
    start = time.perf_counter()
    mounted.mount()
    mount_ms = (time.perf_counter() - start) * 1000
    started = _start(page, user)
    return mount_ms, started, mounted.status()["remote"]
