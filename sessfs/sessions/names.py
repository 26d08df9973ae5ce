"""What a session may be called."""

from __future__ import annotations

import os

from sessfs.errors import UsageError
from sessfs.format.wire import is_name
from sessfs.local.reserved import RESERVED_PREFIX, is_reserved


def check_name(name: bytes, remedy: str = "choose another") -> None:
    """Raises UsageError, which says *remedy*, unless a session may be called so: it is the name of a directory, and
    none of the product's own.
    """
    shown = os.fsdecode(name)
    if not is_name(name):
        raise UsageError(f"{shown!r} can't be the name of a session: {remedy}")
    if is_reserved(name):
        own = RESERVED_PREFIX.decode()
        raise UsageError(
            f"{shown!r} can't be the name of a session, since what begins with {own} is sessfs's: {remedy}"
        )
