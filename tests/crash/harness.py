"""Starts the workload, kills what serves it, and judges what a crash has left of its files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.crash.verify import Log, verify
from tests.support.mounted import Process, wait_gone
from tests.support.posix import eventually

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.mounted import Mounted

BUSY_LOOPS = int(os.environ.get("SESSFS_TEST_BUSY_LOOPS", "3"))


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


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Other processes want all the CPUs meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_LOOPS)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


class Kill:
    """One way to kill a daemon with its children, and to begin anew at once: nothing is waited for in between."""

    def __init__(self, mounted: Mounted, source: random.Random) -> None:
        self._mounted = mounted
        self._source = source
        self._before: list[Process] = []
        self._children: list[Process] = []
        self.what = source.choice(
            ["the daemon", "children stopped", "children first", "while it mounts", "while it ends"]
        )
        """Which one."""

    def strike(self) -> float:
        """Kill the daemon; returns when (CLOCK_MONOTONIC)."""
        self._before = self._mounted.processes()
        self._children = [each for each in self._before if each.pid != self._mounted.pid]
        if self.what == "children stopped":
            self._signal(signal.SIGSTOP)
        if self.what == "children first":
            self._signal(signal.SIGKILL)
            time.sleep(self._source.uniform(0, 0.1))
        if self.what == "while it ends":
            return self._kill_while_it_ends()
        crash_s = time.monotonic()
        os.kill(self._mounted.pid, signal.SIGKILL)
        return crash_s

    def _kill_while_it_ends(self) -> float:
        crash_s = time.monotonic()
        os.kill(self._mounted.pid, signal.SIGTERM)
        time.sleep(self._source.uniform(0, 0.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._mounted.pid, signal.SIGKILL)
        return crash_s

    def begin_anew(self) -> None:
        """Mount; before that succeeds, another daemon may be killed while it recovers. What was stopped goes on then,
        and must end: on return nothing is left of the former daemons.
        """
        if self.what == "while it mounts":
            self._kill_while_it_mounts()
        self._mounted.mount()
        self._signal(signal.SIGCONT)
        left = wait_gone(self._before, 20)
        assert not left, f"{self.what}: processes outlive the daemon's SIGKILL: {left}"
        assert self._mounted.n_mounts() == 1

    def _kill_while_it_mounts(self) -> None:
        lock = self._mounted.state / "lock"
        command = self._mounted.start_mounting()
        former = f"{self._mounted.pid}\n"
        eventually(lambda: command.poll() is not None or lock.read_text() not in ("", former), 60)
        time.sleep(self._source.uniform(0, 0.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(lock.read_text()), signal.SIGKILL)
        command.wait(60)

    def _signal(self, number: signal.Signals) -> None:
        for each in self._children:
            if each.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, number)


def judge(directory: Path, running: Running, crash_s: float, lazy_s: float | None, what: str = "") -> int:
    """Fail unless *directory* is as the promises say after *what*; return how many operations were promised."""
    log = Log(running.log, crash_s, lazy_s)
    wrong = verify(directory, log)
    assert not wrong, (
        f"{what} seed {running.seed}, {len(log.begun)} operations, {log.n_promised()} promised: " + "; ".join(wrong[:8])
    )
    return log.n_promised()
