"""Scrubbing: what was dropped is in no byte of the state directory, and all else is as it was, also after a crash."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import StoreFull
from sessfs.format.chunk import FrameCodec
from sessfs.local.chunkstore import CHUNK_TABLES, FRAMES, decode_frame_record
from sessfs.local.db import Database
from sessfs.vfs import scrubbing
from tests.support.volumes import assert_clean, open_box

if TYPE_CHECKING:
    from tests.support.volumes import Box

SECRET = b"secret of user one: "
PATTERNS = (SECRET, b"secret-name", b"secret-target", b"secret-xattr")


class Crash(Exception):
    pass


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def secret_noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, with the pattern in every chunk, so that it is stored as it is."""
    source, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        parts += [source.randbytes(3000), SECRET]
    return b"".join(parts)[:length]


def find_patterns(state: Path, patterns: tuple[bytes, ...] = PATTERNS) -> list[tuple[str, bytes]]:
    """Where any of *patterns* is: in a file's bytes, in its name, or in what a frame decompresses to."""
    found = []
    for path in sorted(state.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found += [(path.name, p) for p in patterns if p in content or p in path.name.encode()]
    with tempfile.TemporaryDirectory() as place:  # a copy: a process can't open an environment twice
        db = Database(shutil.copytree(state / "chunks", Path(place, "chunks")), CHUNK_TABLES, 1 << 30, readonly=True)
        for key, record in db.scan(FRAMES):
            plain = FrameCodec().decode(decode_frame_record(record)[1])
            found += [(f"frame {key.hex()}", p) for p in patterns if p in plain]
        db.close()
    return found


async def fill(box: Box) -> dict[bytes, bytes]:
    """Two users who share content and frames; the contents of the one who stays."""
    for name in (b"one", b"two"):
        box.mkdir(name)
    shared = noise(1, 300_000)
    for n in range(40):
        # Small files side by side: they share frames.
        await box.write(b"two/f%d" % n, noise(100 + n, 9_000))
        await box.write(b"one/f%d" % n, secret_noise(200 + n, 9_000))
    await box.write(b"one/shared", shared)
    await box.write(b"two/shared", shared)
    await box.write(b"one/compressible", SECRET * 20_000)
    await box.write(b"one/secret-name", b"")
    await box.write(b"one/tiny", SECRET)
    box.symlink(b"one/link", b"secret-target")
    box.volume.xattrs.set(box.get(b"one/tiny").ino, b"user.x", b"secret-xattr")
    await box.seal()
    await box.commit()
    # Old contents, dropped long ago, leave dead chunks in frames that live on, and traces in pages.
    await box.write(b"one/f3", secret_noise(999, 9_000))
    await box.write(b"one/hot", SECRET * 1000)
    await box.drop_dead()
    await box.seal()
    await box.write(b"one/hot", SECRET * 1000)
    await box.commit()
    return {path: content for path, content in (await box.contents()).items() if path.startswith(b"two/")}


def remove(box: Box, name: bytes) -> None:
    box.volume.namespace.drop_session_tree(box.get(name).ino)


async def test_scrub_leaves_no_byte_of_what_was_dropped(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_box(state) as box:
        others = await fill(box)
        assert {p for _, p in find_patterns(state)} == set(PATTERNS)
        remove(box, b"one")
        await box.drop_dead()
        assert find_patterns(state), "dropping alone erases it: then this test shows nothing"
        before = box.volume.reader.totals()
        assert await scrubbing.scrub(box.volume) == 0
        assert find_patterns(state) == []
        assert await box.contents() == others
        assert box.volume.reader.totals().plain_bytes == before.plain_bytes
        assert sorted(path.name for path in state.iterdir() if path.name.endswith(".new")) == []
        # It goes on as if nothing had been: committing, sealing, dropping, another scrub.
        await box.write(b"two/later", noise(7, 200_000))
        await box.seal()
        await box.drop_dead()
        await scrubbing.scrub(box.volume)
        assert await box.read(b"two/later") == noise(7, 200_000)
        others[b"two/later"] = noise(7, 200_000)
    assert_clean(state)
    assert find_patterns(state) == []
    async with open_box(state) as box:
        assert await box.contents() == others


@pytest.mark.parametrize("point", ["chunks", "copied", "meta"])
async def test_scrub_that_crashes_is_finished_by_the_next(tmp_path: Path, point: str) -> None:
    state = tmp_path / "state"
    async with open_box(state) as box:
        others = await fill(box)
        remove(box, b"one")
        await box.commit()

        def crash(name: str) -> None:
            if name == point:
                raise Crash

        with pytest.raises(Crash):
            await scrubbing.scrub(box.volume, crash)
        box.copy_state(tmp_path / "left")
    left = tmp_path / "left"
    async with open_box(left) as box:
        assert not (left / "meta.new").exists()
        assert await box.contents() == others
        await scrubbing.scrub(box.volume)
        assert find_patterns(left) == []
    assert_clean(left)


async def test_scrub_without_room_says_how_much_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_box(tmp_path / "state") as box:
        others = await fill(box)
        monkeypatch.setattr(scrubbing, "DISK_RESERVE_BYTES", 1 << 60)
        with pytest.raises(StoreFull, match="make room"):
            await scrubbing.scrub(box.volume)
        assert others.items() <= (await box.contents()).items()
