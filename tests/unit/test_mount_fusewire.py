"""What the kernel sends, unpacked."""

from __future__ import annotations

import pytest

from sessfs.mount import fusewire
from sessfs.types import TIME_MAX_NS, TIME_MIN_NS

ALL_TIMES = fusewire.FATTR_ATIME | fusewire.FATTR_MTIME | fusewire.FATTR_CTIME


@pytest.mark.parametrize(
    ("seconds", "nanoseconds", "kept"),
    [
        (0, 1, 1),
        (-1, 999_999_999, -1),
        (TIME_MAX_NS // fusewire.S_NS, TIME_MAX_NS % fusewire.S_NS, TIME_MAX_NS),
        (TIME_MAX_NS // fusewire.S_NS, TIME_MAX_NS % fusewire.S_NS + 1, TIME_MAX_NS),
        (TIME_MIN_NS // fusewire.S_NS, 0, TIME_MIN_NS),
        ((1 << 63) - 1, 999_999_999, TIME_MAX_NS),
        (-(1 << 63), 0, TIME_MIN_NS),
    ],
)
def test_times_are_clamped_to_what_an_inode_can_keep(seconds: int, nanoseconds: int, kept: int) -> None:
    body = fusewire.SETATTR_IN.pack(ALL_TIMES, 0, 0, 0, 0, *[seconds] * 3, *[nanoseconds] * 3, 0, 0, 0, 0, 0)
    wanted = fusewire.unpack_wanted(memoryview(body), 0)
    assert (wanted.atime_ns, wanted.mtime_ns, wanted.ctime_ns) == (kept, kept, kept)
