"""What an erasure did. Apart from what does it, so that whoever only shows it need not import that."""

from __future__ import annotations

import msgspec


class ErasureReport(msgspec.Struct, frozen=True):
    """What is gone, and what stays because others have it. Sizes in bytes of content, before compression; those of the
    remote as stored.
    """

    session: str
    was_there: bool
    trash_copies: int
    erased_chunks: int
    erased_bytes: int
    shared_chunks: int
    shared_bytes: int
    """Chunks that others have, too; they remain."""
    remote_segments: int
    """Deleted, with *remote_bytes* in them, of which *moved_bytes* were uploaded anew, because others need them."""
    remote_bytes: int
    moved_bytes: int
    remote_versions: int
    notes: list[str]
    """What the operator must see to: what sessfs can't reach, or had to leave."""
