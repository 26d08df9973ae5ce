"""The seal process's share of the CPUs, where others want them too.

Where Linux schedules by session (`sched_autogroup_enabled`, sched(7)), which it does by default, each session gets an
equal share, and nice values count only among processes of one session: beside the daemon. So the seal process has a
session of its own, with a nice value of its own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

NICE: Final = 15
"""A thirtieth of what another session has that wants all, and what nobody wants. Who waits longer gets more: see
`set_share`.
"""


def give_way() -> None:
    """Have what belongs to other sessions go before this process, which begins one of its own. Called at its start."""
    os.nice(NICE)
    with contextlib.suppress(PermissionError):  # it was started as the leader of a group, by hand
        os.setsid()
        set_share(os.getpid(), is_urgent=False)


def set_share(pid: int, *, is_urgent: bool) -> None:
    """Give the session of *pid* the share of any other, or the small one. Does nothing where Linux does not schedule by
    session, for a process that is gone, and for the tenth of a second after such a call of another user but root.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("0\n" if is_urgent else f"{NICE}\n")
