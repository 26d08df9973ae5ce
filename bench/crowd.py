"""Many recorded sessions replayed at once: bench/replay.py in a few processes, the mount's memory watched meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench import recorder
from bench.memory import Watch, cpu_seconds
from bench.replay import Counts, Position, Task, verify
from bench.targets import BenchError, open_sessfs, temporary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.rows import Target

PROCESSES: Final = 2
CYCLE_S_A_SESSION: Final = 3.0
"""A trace is played so slowly that one begins every so many seconds: a full run has 100 in five minutes."""
FEW_CALLS: Final = 100
"""A kind with fewer calls has no percentile of its own."""
_GRACE_S: Final = 300.0


class Load(NamedTuple):
    """How many sessions, for how long."""

    sessions: int
    duration_s: float

    @property
    def cycle_s(self) -> float:
        """How long one life of a session takes; half the time, so that the second half has them all."""
        return min(self.sessions * CYCLE_S_A_SESSION, self.duration_s / 2)


class Played(NamedTuple):
    """What all processes found."""

    counts: Counts
    errors: list[str]
    positions: list[Position]
    lives: int


def replay(base: Path, target: Target, load: Load) -> dict[str, Any]:
    """Replay *load* on *target*, sessfs with a remote (a directory); figures by row. Raises BenchError at any error:
    a call that answers otherwise than it did to Chrome, or a byte that is not as it was written.
    """
    if not recorder.TRACE.exists():
        recorder.record(base)
    with contextlib.ExitStack() as stack:
        if target != "sessfs":
            root = stack.enter_context(temporary(base))
            played = _play(root, load)
            _check(played, root)
            return _latencies(played)
        remote = stack.enter_context(temporary(base))
        mounted = stack.enter_context(open_sessfs(base, ["--remote", f"file://{remote}"]))
        before = mounted.status()
        pid = int(before["pid"])
        with Watch(pid) as watch:
            played = _play(mounted.path, load)
            cpu_s = cpu_seconds(pid)
        after = mounted.status()
        _check(played, None)
        # Once more from the state, with nothing in the kernel's memory.
        mounted.umount()
        mounted.mount()
        _check(played, mounted.path)
        requests = sum(after["requests"].values()) - sum(before["requests"].values())
        return {
            **_latencies(played),
            "replay_memory": watch.peak.anonymous,
            "replay_resident": watch.peak.resident,
            "replay_growth": watch.growth(),
            "replay_requests": requests / load.duration_s,
            "replay_cpu": 100 * cpu_s / load.duration_s,
            "replay_curve": watch.curve(),
        }


def _play(root: Path, load: Load) -> Played:
    start_s = time.monotonic() + 3  # workers load the trace before
    bounds = [load.sessions * n // PROCESSES for n in range(PROCESSES + 1)]
    tasks = [
        Task(str(recorder.TRACE), str(root), first, last, load.sessions, load.cycle_s, load.duration_s, start_s)
        for first, last in pairwise(bounds)
        if first < last
    ]
    counts, errors, positions, lives = Counts(), [], [], 0
    with _workers(tasks) as workers:
        for worker in workers:
            try:
                out, _ = worker.communicate(timeout=load.duration_s + _GRACE_S)
            except subprocess.TimeoutExpired as exc:
                raise BenchError(f"the replay did not end {_GRACE_S:.0f} s after its time: a call hangs") from exc
            if worker.returncode != 0:
                raise BenchError(f"a process of the replay ended with {worker.returncode}")
            record = json.loads(out)
            counts.merge(Counts.from_json(record["counts"]))
            errors += record["errors"]
            positions += [Position(*each) for each in record["positions"]]
            lives += record["lives"]
    return Played(counts, errors, sorted(positions), lives)


@contextlib.contextmanager
def _workers(tasks: list[Task]) -> Iterator[list[subprocess.Popen[str]]]:
    """One process for each task; killed when it still runs at the end."""
    command = [sys.executable, "-m", "bench.replay"]
    workers: list[subprocess.Popen[str]] = []
    try:
        for task in tasks:
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
            )
            workers.append(worker)
            assert worker.stdin is not None
            json.dump(task._asdict(), worker.stdin)
            worker.stdin.flush()
            worker.stdin.close()
            worker.stdin = None
        yield workers
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()


def _check(played: Played, root: Path | None) -> None:
    errors = list(played.errors)
    if root is not None:
        errors += verify(recorder.TRACE, str(root), played.positions)
    if errors:
        raise BenchError(f"{len(errors)} errors in the replay, the first: {'; '.join(errors[:3])}")


def _latencies(played: Played) -> dict[str, Any]:
    counts = played.counts
    kinds = [kind for kind in counts.buckets if counts.total([kind]) >= FEW_CALLS]
    by_kind = {
        kind: {
            "calls": counts.total([kind]),
            "p50_ms": round(counts.percentile_ms(50, [kind]), 3),
            "p99_ms": round(counts.percentile_ms(99, [kind]), 3),
            "max_ms": round(counts.longest_ms[kind], 1),
        }
        for kind in sorted(counts.buckets, key=lambda kind: -counts.total([kind]))
    }
    return {
        "replay_sessions": float(len(played.positions)),
        "replay_p50": counts.percentile_ms(50),
        "replay_p99": counts.percentile_ms(99),
        "replay_p99_kind": max(counts.percentile_ms(99, [kind]) for kind in kinds),
        "replay_max": max(counts.longest_ms.values()),
        "replay_late": counts.late_s * 1000,
        "replay_by_kind": {"lives": played.lives, "calls": counts.total(), **by_kind},
    }
