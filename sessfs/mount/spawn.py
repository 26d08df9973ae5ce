"""Starting the daemon's process. It imports for a third of a second before it asks for its settings, so the command
starts it first of all, and finds out meanwhile what they are.

Imports nothing of sessfs, for the same reason.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DAEMON_ARGV = (sys.executable, "-P", "-m", "sessfs.mount.daemon")


@dataclass
class Started:
    """A daemon that waits for its settings, until the end of its standard input; without any it ends."""

    process: subprocess.Popen[bytes]
    ready: int
    """The read end of its ready pipe."""
    is_waiting: bool = True

    def tell(self, settings: bytes) -> None:
        """Give it its settings, as JSON; fine for one that has ended already."""
        self.is_waiting = False
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(settings)

    def drop(self) -> None:
        """End it if it still waits for settings."""
        if self.is_waiting:
            self.is_waiting = False
            os.close(self.ready)
            self.process.kill()
            self.process.communicate()


def start(argv: Sequence[str], output: IO[bytes] | None) -> Started:
    """Start *argv*, a daemon's command without `--ready-fd`, detached. What it has to say goes to *output*, by default
    to the standard error of this process.
    """
    ready, ready_write = os.pipe()
    try:
        process = subprocess.Popen(
            [*argv, "--ready-fd", str(ready_write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if output is None else output,
            stderr=output,
            cwd="/",
            start_new_session=True,
            pass_fds=(ready_write,),
        )
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(ready_write)
    return Started(process, ready)
