"""Bounding what the kernel may have of this mount's files that it has not handed over: `Space` keeps that much
ahead.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)
BDI = Path("/sys/class/bdi")
KEPT_PART = 2
"""The bound is this part of what is kept: the kernel goes beyond it a little, and each writer has a few pages."""


def bound_dirty_bytes(device: str, ahead_bytes: int) -> None:
    """Have the kernel keep at most a part of *ahead_bytes* dirty for the mount *device* (`major:minor`). Only root may,
    and Linux before 6.3 can't: then the bound is what the kernel thinks best, one percent of its memory for dirty
    pages.
    """
    folder = BDI / device
    try:
        limit = ahead_bytes // KEPT_PART
        if int((folder / "max_bytes").read_text()) > limit:
            (folder / "max_bytes").write_text(f"{limit}\n")
        (folder / "strict_limit").write_text("1\n")
    except (OSError, ValueError) as exc:
        log.info("what the kernel may have of this mount's files stays as it is: %s", exc)
