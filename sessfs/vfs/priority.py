"""The seal process's share of the CPUs, where others want them too.

Where Linux schedules by session (`sched_autogroup_enabled`, sched(7)), which it does by default, each session gets an
equal share, and nice values count only among processes of one session: beside the daemon. So the seal process has a
session of its own, with a nice value of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

NICE: Final = 15
"""A thirtieth of what another session has that wants all, and what nobody wants."""


def set_share(pid: int, *, is_urgent: bool) -> bool:
    """Give the session of *pid* the share of any other, or the small one. False when that can't be: Linux does not
    schedule by session, the process is gone, or such a call of a user but root is less than a tenth of a second ago.
    """
    try:
        Path(f"/proc/{pid}/autogroup").write_text("0\n" if is_urgent else f"{NICE}\n")
    except OSError:
        return False
    return True
