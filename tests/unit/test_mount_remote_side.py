"""The remote half of a mount: when it may begin to publish, and what it lives through."""

from __future__ import annotations

import errno
import operator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.chrome import PathClass
from sessfs.config import Settings
from sessfs.errors import RemoteUnavailable, Unsynced
from sessfs.mount import collecting, node_gate, remote_side
from sessfs.mount.node_gate import NodeGate
from sessfs.mount.remote_side import RemoteSide, flush_kernel
from sessfs.mount.repository import CachedState, open_repository
from sessfs.remote import node as node_module
from sessfs.remote.urls import RemoteSettings, open_remote
from sessfs.sync import evict, writeback
from sessfs.sync.fetch import RemoteChunks
from sessfs.vfs import background
from sessfs.vfs.volume import RemoteHooks
from tests.support.volumes import Box, open_box, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.places import Places


async def ignore(message: object) -> None:
    """Progress that nobody looks at."""


@asynccontextmanager
async def open_side(path: Path) -> AsyncIterator[tuple[Box, RemoteSide]]:
    """A volume that a directory is the remote of, and its remote half, which was not started."""
    (path / "bucket").mkdir()
    url = (path / "bucket").as_uri()
    settings = Settings(mountpoint=path, state_dir=path / "state", remote=url, single_node=True)
    made: list[RemoteChunks] = []
    async with open_remote(RemoteSettings(url)) as remote:
        repository = await open_repository(remote, None, CachedState(path, None), 5)

        def make_chunks(reader: ChunkReader, places: Places, references: References, key: bytes) -> RemoteChunks:
            made.append(RemoteChunks(reader, places, references, remote.store, repository.envelope, key, lambda: 0.0))
            return made[0]

        async with open_box(path / "state", remote=RemoteHooks(make_chunks, PathClass.TRAVELS)) as box:
            side = RemoteSide(repository, NodeGate("a"), made[0], box.volume, settings)
            box.mkdir(b"s")
            await box.write(b"s/f", b"content")
            yield box, side


async def test_nothing_is_published_before_the_node_is_open(tmp_path: Path) -> None:
    async with open_side(tmp_path) as (box, side):
        with pytest.raises(RemoteUnavailable, match="not been reached yet"):
            await side.writeback.publish()
        assert box.get(b"s").ino in box.volume.changes.sessions


async def test_nothing_is_published_before_it_is_known_what_was_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_side, "BEGIN_S", 0.05)
    async with open_side(tmp_path) as (box, side):
        await side.start()
        with pytest.raises(RemoteUnavailable, match="what was collected"):
            await side.writeback.publish()
        assert box.get(b"s").ino in box.volume.changes.sessions
        with pytest.raises(Unsynced):
            await side.syncs.sync(ignore, 0.05)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.run)
            with trio.fail_after(10):
                await side.syncs.sync(ignore, 10)
            nursery.cancel_scope.cancel()
        assert not box.volume.changes.sessions


async def test_flush_of_the_kernels_pages_survives_a_machine_without_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*args: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(trio, "run_process", refuse)
    await flush_kernel(Path("/nowhere"))
    assert "Resource temporarily unavailable" in caplog.text


BUG = "nobody has thought of this"


def bug(*args: object, **options: object) -> None:
    raise KeyError(BUG)


async def unreachable(*args: object, **options: object) -> None:
    raise RemoteUnavailable("the remote is away")


async def async_bug(*args: object) -> None:
    raise KeyError(BUG)


@asynccontextmanager
async def running(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Box, RemoteSide]]:
    monkeypatch.setattr(background, "RESTART_S", 0.001)
    async with open_side(path) as (box, side):
        await side.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.run)
            yield box, side
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("where", "what", "pause"),
    [
        ("writeback", "publish", (writeback, "POLL_S")),
        ("collector", "collect", (collecting, "FIRST_RUN_S")),
        ("_gate.node", "_swap", (node_module, "BEAT_S")),
        ("_volume.reader", "least_used", (evict, "TICK_S")),
        ("prefetcher", "_likely", None),
    ],
    ids=["write-back", "collection", "heartbeat", "eviction", "prefetching"],
)
async def test_bug_in_background_work_does_not_end_the_mount(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    what: str,
    pause: tuple[ModuleType, str] | None,
) -> None:
    if pause is not None:
        monkeypatch.setattr(*pause, 0.001)
    monkeypatch.setattr(evict, "START_SHARE", 0.0)
    async with running(tmp_path, monkeypatch) as (box, side):
        owner = operator.attrgetter(where)(side)
        side.writeback._interval_s = 0.001
        with monkeypatch.context() as patch:
            patch.setattr(type(owner), what, bug)
            await box.write(b"s/f", b"changed")
            for _ in range(3):
                before = caplog.text.count(BUG)
                side.prefetcher.loaded(box.get(b"s").ino)
                await wait_until(lambda before=before: caplog.text.count(BUG) > before)  # type: ignore[misc]
        with trio.fail_after(20):
            await side.syncs.sync(ignore, 20)


async def test_bug_in_a_publishing_is_told_to_who_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as (_, side):
        with monkeypatch.context() as patch:
            patch.setattr(side.syncs, "_publish", async_bug)
            with trio.fail_after(20), pytest.raises(Unsynced, match=BUG):
                await side.syncs.sync(ignore, 20)
        await side.syncs.sync(ignore, 20)


async def test_node_that_was_not_compared_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be compared with the remote must not be published over it."""
    monkeypatch.setattr(background, "RESTART_S", 0.001)
    async with open_side(tmp_path) as (_, side):
        with monkeypatch.context() as patch:
            patch.setattr(remote_side, "take_in", bug)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.run)
                await wait_until(lambda: caplog.text.count(BUG) >= 2)
                with pytest.raises(Unsynced, match="not been reached yet"):
                    await side.syncs.sync(ignore, 0.05)
                patch.undo()
                await wait_until(lambda: side.gate.node is not None)
                with trio.fail_after(20):
                    await side.syncs.sync(ignore, 20)
                nursery.cancel_scope.cancel()


async def test_sync_waits_for_the_node_of_a_remote_that_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is opened only now and then: who asks in between waits for it."""
    monkeypatch.setattr(node_gate, "REOPEN_S", 0.5)
    async with open_side(tmp_path) as (box, side):
        side.repository.is_new_here = False
        with monkeypatch.context() as away:
            away.setattr(node_gate, "open_node", unreachable)
            await side.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.run)
                with pytest.raises(Unsynced, match=r"longer than 0\.05 s \(the remote is away\)"):
                    await side.syncs.sync(ignore, 0.05)
                away.undo()
                with trio.fail_after(20):
                    await side.syncs.sync(ignore, 20)
                assert not box.volume.changes.sessions
                nursery.cancel_scope.cancel()
