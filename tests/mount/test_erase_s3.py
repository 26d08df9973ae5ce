"""`sessfs rm --purge` on real S3 servers, plain and encrypted: no object holds what was erased, also once opened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sessfs.format.chunk import FrameCodec
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.manifest import ManifestRef
from sessfs.format.repository import decode_format, open_format
from sessfs.format.segment import (
    decode_checkpoint,
    footer_of,
    open_frame,
    open_manifest,
    parse_checkpoint_key,
    parse_segment_key,
)
from sessfs.local.chunkstore import decode_frame_record
from tests.mount.test_erase import NAMES, SECRET, TWO, fill, find_patterns, purge, settle
from tests.support.posix import tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessfs.format.envelope import Envelope
    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

PATTERNS = (SECRET, *(name.encode() for name in NAMES))


@pytest.fixture(params=["moto", "rclone"])
def anywhere(request: pytest.FixtureRequest) -> tuple[Bucket, list[str]]:
    """A bucket of each server, and what a mount of it is to be told."""
    if request.param == "moto":
        return request.getfixturevalue("bucket"), []
    return request.getfixturevalue("plain_bucket"), ["--single-node"]


def opened(bucket: Bucket, secret: bytes | None) -> Iterator[tuple[str, bytes]]:
    """Every object as it lies there, and each thing in it that can be opened, opened."""
    objects = bucket.objects()
    _, envelope = open_format(decode_format(objects["format"]), secret)
    assert isinstance(envelope, PlainEnvelope) == (secret is None)
    for key, content in objects.items():
        yield key, key.encode() + content
        segment, checkpoint = parse_segment_key(key), parse_checkpoint_key(key)
        if segment is not None:
            yield from ((key, plain) for plain in _parts(content, *segment, envelope))
        elif checkpoint is not None:
            yield key, repr(decode_checkpoint(content, *checkpoint, envelope)).encode()
        elif key.startswith("sessions/"):
            yield key, envelope.open_name(key.removeprefix("sessions/"))


def _parts(content: bytes, node: str, number: int, envelope: Envelope) -> Iterator[bytes]:
    footer = footer_of(content, node, number, envelope)
    yield repr(footer).encode()
    for offset, length in footer.frames:
        record = open_frame(content[offset : offset + length], node, number, offset, envelope)
        yield FrameCodec().decode(decode_frame_record(record)[1])
    for one in footer.manifests:
        ref = ManifestRef(node, number, one.offset, one.length)
        manifest = open_manifest(content[one.offset : one.offset + one.length], ref, envelope)
        yield repr(manifest).encode()


def find_in_bucket(bucket: Bucket, secret: bytes | None) -> set[bytes]:
    """Which of the patterns are in any object, as it is or opened."""
    return {pattern for _, content in opened(bucket, secret) for pattern in PATTERNS if pattern in content}


@pytest.mark.parametrize("secret", [None, b"a passphrase of nobody"], ids=["plain", "encrypted"])
def test_purge_leaves_nothing_in_a_bucket(
    anywhere: tuple[Bucket, list[str]], tmp_path: Path, secret: bytes | None
) -> None:
    bucket, node_options = anywhere
    (tmp_path / "key").write_bytes(secret or b"")
    key_options = ["--key-file", str(tmp_path / "key")] if secret is not None else []
    options = ["--seal-idle", "1s", *node_options, *key_options]
    with bucket.mounted(*options, interval="600s") as mounted:
        fill(mounted)
        settle(mounted)
        expected = tree(mounted.path / TWO)
        assert find_in_bucket(bucket, secret) == set(PATTERNS)
        if secret is not None:
            assert not [key for key, content in bucket.objects().items() for p in PATTERNS if p in content]
        report = purge(mounted)
        assert report["shared_bytes"] == 500_000
        assert report["remote_segments"] >= 3
        assert find_in_bucket(bucket, secret) == set()
        assert find_patterns(mounted.state) == []
        assert tree(mounted.path / TWO) == expected
        mounted.remount()
        mounted.sessfs("sync", str(mounted.path))
        assert find_in_bucket(bucket, secret) == set()
        done = mounted.sessfs("fsck", *mounted.options[:4], *key_options, "--read-data", "100", "--json")
        assert json.loads(done.stdout)["problems"] == []
        mounted.umount()
        with bucket.mounted(*options) as elsewhere:
            assert {path.name for path in elsewhere.path.iterdir()} == {TWO}
            assert tree(elsewhere.path / TWO) == expected
        mounted.mount()
