"""Top-level names that are the product's own: users neither see nor make them."""

from __future__ import annotations

RESERVED_PREFIX = b".sessfs-"
VIEW_PREFIX = b".sessfs-view-"
"""A snapshot made visible for reading: found by exact look-up, never published, gone at the next start."""
TRASH_PREFIX = b".sessfs-trash-"
"""A removed session that rests: an ordinary one, but not found by look-ups of the kernel."""


def is_reserved(name: bytes) -> bool:
    """True for a top-level name that users can neither make nor list."""
    return name.startswith(RESERVED_PREFIX)


def is_view(name: bytes) -> bool:
    """True for the name of a snapshot that is open for reading."""
    return name.startswith(VIEW_PREFIX)
