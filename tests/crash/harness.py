"""Starts the workload, and judges what a crash has left of its files."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.crash.verify import Log, verify

if TYPE_CHECKING:
    from pathlib import Path


class Running:
    """A workload in a process of its own, writing into *directory*, which it makes; end it with stop()."""

    def __init__(self, directory: Path, log: Path, seed: int) -> None:
        self.directory = directory
        self.log = log
        self.seed = seed
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.workload", str(directory), str(log), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the workload could not set up its files"

    def start(self) -> None:
        """Let it run."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def is_running(self) -> bool:
        """Tell whether no call of its has failed yet."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it, if the crash has not."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def judge(directory: Path, running: Running, crash_s: float, lazy_s: float | None) -> int:
    """Fail unless *directory* is as the promises say; return how many operations were promised."""
    log = Log(running.log, crash_s, lazy_s)
    wrong = verify(directory, log)
    assert not wrong, f"seed {running.seed}, {len(log.begun)} operations, {log.n_promised()} promised: " + "; ".join(
        wrong[:8]
    )
    return log.n_promised()
