"""Chrome's lives on each target, and what they cost: requests, memory, bytes stored and sent."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

from bench.targets import BenchError, open_sessfs, temporary
from bench.workloads import tree_bytes
from tests.e2e.chromelife import FIRST_LIFE, RESTART, LifeFailed, Page, User, run_life, run_lives

if TYPE_CHECKING:
    from pathlib import Path

    from bench.rows import Target
    from bench.targets import Sessfs, Targets

RECORDS: Final = 20_000
SIX: Final = 6
PUBLISHED: Final = 6
LIFE_S: Final = 600.0
_Planned = tuple[User, Literal["qr", "ready"], list[str]]
RESTARTS: Final = 2


def first_steps() -> list[str]:
    """Steps of a first life of full size."""
    return [step.format(records=RECORDS) for step in FIRST_LIFE]


def _live(page: Page, user: User) -> dict[str, Any]:
    """One first life and two restarts: figures by row, and the milliseconds of each phase under "phases"."""
    try:
        first = run_life(page, user, "qr", first_steps(), LIFE_S).timings_ms
        restarts = [run_life(page, user, "ready", RESTART, LIFE_S).timings_ms for _ in range(RESTARTS)]
    except LifeFailed as exc:
        raise BenchError(f"Chrome failed: {str(exc)[:300]}") from exc
    return {
        "chrome_first": first["total_ms"],
        "chrome_restart": statistics.mean(each["total_ms"] for each in restarts),
        "phases": {"first": first, "restarts": restarts},
    }


def lives(targets: Targets, target: Target, page: Page) -> dict[str, Any]:
    """One first life and two restarts (their mean) on *target*; on sessfs also requests and memory."""
    if target != "sessfs":
        with targets.open(target) as directory:
            return _live(page, User("user", "bench", directory))
    os.sync()
    with open_sessfs(targets.base) as mounted:
        before = mounted.status()["requests"]
        found = _live(page, User("user", "bench", mounted.path / "user"))
        status = mounted.status()
    kinds = {kind: count - before.get(kind, 0) for kind, count in status["requests"].items()}
    found["chrome_requests"] = float(sum(kinds.values()))
    found["memory_chrome"] = status["memory_bytes"] / 1e6
    found["requests_by_kind"] = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    return found


def _users(root: Path) -> list[User]:
    return [User(f"user{n}", f"bench-{n}", root / f"user{n}") for n in range(1, SIX + 1)]


def warm_up(targets: Targets, page: Page) -> None:
    """One life on ext4 that counts for nothing: the first one reads Chromium itself from the disk."""
    with targets.open("ext4") as directory:
        run_life(page, User("user", "warm-up", directory), "qr", ["pair", "worker", "caches"], LIFE_S)


def six(targets: Targets, target: Target, page: Page, *, compare: bool) -> dict[str, Any]:
    """First lives of six users, one after another; then all six restart at once, until the last is done.

    On sessfs also what the six take; with *compare* (on ext4) what restic and borg make of the same profiles.
    """
    if target == "sessfs":
        with open_sessfs(targets.base) as mounted:
            found = _six_restart(page, mounted.path)
            found["stored_six"] = _stored(mounted)
            return found
    with targets.open(target) as directory:
        found = _six_restart(page, directory)
        return found | (_backups(targets.base, directory) if compare else {})


def _six_restart(page: Page, root: Path) -> dict[str, Any]:
    users = _users(root)
    try:
        for user in users:
            run_life(page, user, "qr", first_steps(), LIFE_S)
        start = time.perf_counter()
        run_lives(page, users, "ready", RESTART, LIFE_S)
        return {"chrome_six": (time.perf_counter() - start) * 1000}
    except LifeFailed as exc:
        raise BenchError(f"Chrome failed: {str(exc)[:300]}") from exc


def _stored(mounted: Sessfs) -> float:
    os.sync()  # without a remote there is nothing for `sessfs sync`; this hands the kernel's pages over
    mounted.wait_sealed(120)
    return float(mounted.status()["stored_bytes"]) / 1e6


def _backups(base: Path, root: Path) -> dict[str, float]:
    """MB that restic and borg store of everything below *root*."""
    with temporary(base) as directory:
        restic, borg = directory / "restic", directory / "borg"
        env = {**os.environ, "RESTIC_PASSWORD": "bench", "BORG_BASE_DIR": str(directory / "home")}
        for command in (
            ["restic", "-q", "-r", str(restic), "--cache-dir", str(directory / "cache"), "init"],
            ["restic", "-q", "-r", str(restic), "--cache-dir", str(directory / "cache"), "backup", str(root)],
            ["borg", "init", "-e", "none", str(borg)],
            ["borg", "create", "-C", "zstd,3", f"{borg}::six", str(root)],
        ):
            done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode not in (0, 1):  # borg ends with 1 on a warning, as for a socket
                raise BenchError(f"{command[0]} failed: {done.stderr[-300:]}")
        return {"stored_six_restic": tree_bytes(restic) / 1e6, "stored_six_borg": tree_bytes(borg) / 1e6}


def sent(base: Path, page: Page) -> dict[str, float]:
    """MB that reach a remote (a directory) with one user's first life, with another user's, and with a restart.

    Each user restarts twice: the first restart sends more, likely since LevelDB rewrites its tables then.
    """
    with temporary(base) as remote, open_sessfs(base, ["--remote", f"file://{remote}"]) as mounted:
        users = _users(mounted.path)[:2]
        marks = [tree_bytes(remote)]
        first_lives: list[_Planned] = [(user, "qr", first_steps()) for user in users]
        restarts: list[_Planned] = [(user, "ready", list(RESTART)) for user in (*users, *users)]
        try:
            for user, expect, steps in (*first_lives, *restarts):
                run_life(page, user, expect, steps, LIFE_S)
                mounted.sync()
                marks.append(tree_bytes(remote))
        except LifeFailed as exc:
            raise BenchError(f"Chrome failed: {str(exc)[:300]}") from exc
        puts = _puts_an_interval(mounted)
    first, second, *each = [(after - before) / 1e6 for before, after in pairwise(marks)]
    return {
        "sent_first": first,
        "sent_second": second,
        "sent_restart1": statistics.mean(each[:2]),
        "sent_restart": statistics.mean(each[2:]),
        "sent_puts": puts,
    }


def _puts_an_interval(mounted: Sessfs) -> float:
    """PUTs by which a change of two sessions reaches the remote. The median: a heartbeat may come in between."""
    counts = []
    for number in range(PUBLISHED):
        for user in _users(mounted.path)[:2]:
            (user.data_path / "changing").write_text(f"{number}")
        mounted.sync()
        requests = mounted.status()["remote"]["requests"]
        counts.append(requests.get("put", 0) + requests.get("put_if", 0))
    return statistics.median(after - before for before, after in pairwise(counts))
