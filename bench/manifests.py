"""Makes a bucket of very many sessions out of one, by manifests alone.

This module, alone in bench/, imports sessfs: the encoders of sessfs.format. No mount could make 100,000 sessions in
minutes; what reads them is measured from outside all the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from sessfs.format.envelope import PlainEnvelope
from sessfs.format.manifest import merge
from sessfs.format.repository import (
    NodeState,
    SessionObject,
    decode_session_object,
    decode_state,
    encode_session_object,
    encode_state,
)
from sessfs.format.segment import SegmentBuilder, open_manifest, segment_key, session_key, state_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import Manifest, ManifestRef

NODE: Final = "maker-0123456789ab"
SEGMENT_BYTES: Final = 32 << 20


def session_name(number: int) -> str:
    """What the *number*-th session is called."""
    return f"user{number:06d}"


def _read(remote: Path, ref: ManifestRef, envelope: Envelope) -> Manifest:
    with (remote / segment_key(ref.node, ref.segment)).open("rb") as file:
        file.seek(ref.offset)
        return open_manifest(file.read(ref.length), ref, envelope)


def _latest(remote: Path, name: str, envelope: Envelope) -> Manifest:
    """The full manifest of a session that was released: from its own object, with its deltas applied."""
    record = decode_session_object((remote / session_key(envelope, name.encode())).read_bytes(), envelope)
    ref = record.manifest
    if ref is None:
        raise ValueError(f"session {name} was never published in {remote}")
    chain: list[Manifest] = []
    while ref is not None:
        chain.insert(0, _read(remote, ref, envelope))
        ref = chain[0].base
    return merge(chain[0], chain[1:])


def multiply(remote: Path, template: str, count: int) -> int:
    """Add *count* sessions like *template* to the bucket in *remote*, in which nothing is mounted and nothing is
    encrypted. Each has a manifest of its own; all share the template's chunks. Returns the files of each.
    """
    envelope = PlainEnvelope()
    full = _latest(remote, template, envelope)
    sessions = session_key(envelope, session_name(0).encode()).rpartition("/")[0]
    segment = 0
    for segment, names, builder in _segments(full, count, envelope):
        path = remote / segment_key(NODE, segment)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(builder.finish(time.time_ns()))
        for name, ref in names:
            record = SessionObject(name, None, ref, full.sequence, [])
            (remote / sessions / name.decode()).write_bytes(encode_session_object(record, envelope))
    state = NodeState(NODE, "bench", 1, last_segment=segment, last_checkpoint=segment, clean=True)
    (remote / state_key(NODE)).write_bytes(encode_state(state))
    decode_state((remote / state_key(NODE)).read_bytes())
    return sum(1 for node in full.nodes if node.recipe)


def _segments(
    full: Manifest, count: int, envelope: Envelope
) -> Iterator[tuple[int, list[tuple[bytes, ManifestRef]], SegmentBuilder]]:
    """Filled segments: number, what is in each, the segment."""
    number = 1
    builder, names = SegmentBuilder(NODE, number, 1, envelope), []
    for at in range(count):
        name = session_name(at).encode()
        names.append((name, builder.add_manifest(msgspec.structs.replace(full, session=name))))
        if builder.size_bytes >= SEGMENT_BYTES or at == count - 1:
            yield number, names, builder
            number += 1
            builder, names = SegmentBuilder(NODE, number, 1, envelope), []
