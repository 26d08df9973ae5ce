"""Who may write `chunks/`: one process at a time, for as long as it holds a lock that goes with it."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

from sessfs.errors import LocalStoreError, StateInUse

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

PAUSE_S = 0.02
PATIENCE_S = 30.0
"""How long one waits for the writer before it: a killed process lets go once the disk has ended what it was at."""


def lock_file(chunks: Path) -> Path:
    """The file beside the directory *chunks*: what is in there may be replaced, and the lock must outlast that."""
    return chunks.with_name(f"{chunks.name}.lock")


class WriteLock:
    """The right to write `chunks/`. Taken by the process that writes, before it opens the environment to do so, and
    kept until that process ends, however it ends. No other process inherits it.
    """

    def __init__(self, chunks: Path, *, create: bool, patience_s: float | None = None) -> None:
        """Take it, waiting for *patience_s* (PATIENCE_S) at most. With *create* the file is made: only whoever holds
        the state may do that. Raises StateInUse, with the pid, when another process keeps it, LocalStoreError when the
        state is gone.
        """
        self._path = lock_file(chunks)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except OSError as exc:
            raise LocalStoreError(f"{self._path} can't be opened: {exc.strerror}") from exc
        try:
            self._take(time.monotonic() + (PATIENCE_S if patience_s is None else patience_s))
            self.check()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, deadline_s: float) -> None:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise StateInUse(self._who_has_it()) from None
                time.sleep(PAUSE_S)
            else:
                return

    def _who_has_it(self) -> str:
        pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
        return (
            f"process {pid} still writes the chunks of {self._path.parent}, though its daemon is gone: end it "
            f"(kill -9 {pid}), and mount again; if it does not end, its disk does not answer"
        )

    def check(self) -> None:
        """Raises LocalStoreError when the lock no longer says anything: the state was removed, or replaced."""
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise LocalStoreError(f"the state {self._path.parent} was removed or replaced: nothing is written there")

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
