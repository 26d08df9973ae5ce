"""Read the footers of segments without reading the segments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessfs.format.segment import (
    TAIL_BYTES,
    NeedMoreTail,
    parse_segment_key,
    read_footer,
    segment_key,
    segments_prefix,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sessfs.format.envelope import Envelope
    from sessfs.format.segment import Footer
    from sessfs.remote.objectstore import ObjectStore

PAGE = 1000


async def read_segment_footer(
    store: ObjectStore, node: str, number: int, size_bytes: int, envelope: Envelope
) -> Footer:
    """The footer of a segment of *size_bytes* bytes (from a listing), in one request or two. Raises RemoteError."""
    key = segment_key(node, number)
    wanted = min(size_bytes, TAIL_BYTES)
    while True:
        blob = await store.get(key, size_bytes - wanted, wanted)
        try:
            return read_footer(blob.body, size_bytes, node, number, envelope)
        except NeedMoreTail as more:
            wanted = more.length


async def iter_segments(store: ObjectStore, node: str, after: int) -> AsyncGenerator[tuple[int, int], None]:
    """(number, size in bytes) of the node's segments beyond number *after*, in order. Raises RemoteError."""
    start_after = segment_key(node, after)
    while True:
        entries = await store.list_page(segments_prefix(node), start_after, PAGE)
        for entry in entries:
            parsed = parse_segment_key(entry.key)
            if parsed is not None:
                yield parsed[1], entry.size
        if len(entries) < PAGE:
            return
        start_after = entries[-1].key
