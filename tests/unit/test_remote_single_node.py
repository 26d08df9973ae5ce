"""Endpoints without conditional writes, where the operator vouches for one node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from sessfs.cli.remote_commands import rotate_key
from sessfs.config import load
from sessfs.errors import RemoteConflict, RemoteMissing, RemoteUnsuitable
from sessfs.format.repository import FORMAT_KEY
from sessfs.mount.node_gate import NodeGate, open_gate
from sessfs.mount.repository import CachedState, open_repository
from sessfs.remote import urls
from sessfs.remote.single_node import SingleNodeStore
from sessfs.remote.urls import RemoteSettings, open_remote
from tests.support.faultystore import FaultyStore, timeout
from tests.support.memorystore import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.remote.objectstore import ObjectStore

URL = "s3://bucket/prefix"
WITHOUT = pytest.mark.parametrize("conditions", ["refused", "ignored", "kept if there"])


def serve(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    """What every remote leads to."""

    async def open_base(settings: object, health: object) -> ObjectStore:
        await trio.lowlevel.checkpoint()
        return store

    monkeypatch.setattr(urls, "_open_base", open_base)


def cached_state(path: Path) -> CachedState:
    path.mkdir(exist_ok=True)
    return CachedState(path, None)


async def mount(state: Path, *, single_node: bool, secret: bytes | None = None) -> None:
    """As a mount does: open the repository, take the prefix, publish nothing, and release."""
    settings = cast("Any", SimpleNamespace(take_over=False, stale_s=1.0))
    async with open_remote(RemoteSettings(URL, single_node=single_node)) as remote:
        repository = await open_repository(remote, secret, cached_state(state), 5.0)
        gate = NodeGate(state.name)
        node = await open_gate(repository, settings, gate, 5.0)
        await node.checkpoint()
        await node.release()


@WITHOUT
async def test_one_node_mounts_where_it_is_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditions: str
) -> None:
    store = MemoryStore(conditions)
    serve(monkeypatch, store)
    for name in ("a", "b", "a"):
        await mount(tmp_path / name, single_node=True)
    assert {"format", "holder", "nodes/a/state", "nodes/b/state"} <= store.objects.keys()


@WITHOUT
async def test_without_that_nothing_is_written_and_the_error_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditions: str
) -> None:
    store = MemoryStore(conditions)
    serve(monkeypatch, store)
    with pytest.raises(RemoteUnsuitable, match="--single-node"):
        await mount(tmp_path / "a", single_node=False)
    assert not store.objects
    await mount(tmp_path / "a", single_node=True)
    with pytest.raises(RemoteUnsuitable, match="--single-node"):
        await mount(tmp_path / "a", single_node=False)


async def test_endpoint_with_conditional_writes_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = FaultyStore(MemoryStore())
    serve(monkeypatch, faulty)
    async with open_remote(RemoteSettings(URL, single_node=True)) as remote:
        await remote.require_conditional_writes()
        before = faulty.count("put_if"), faulty.count("put")
        etag = await remote.store.put_if("key", b"one", None)
        await remote.store.put_if("key", b"two", etag)
        assert (faulty.count("put_if"), faulty.count("put")) == (before[0] + 2, before[1])


async def test_key_is_rotated_where_one_node_is_vouched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("refused")
    serve(monkeypatch, store)
    await mount(tmp_path / "a", single_node=True, secret=b"old secret")
    before = store.objects[FORMAT_KEY]
    (tmp_path / "key").write_bytes(b"old secret")
    flags = {"remote": URL, "key_file": str(tmp_path / "key"), "single_node": True}
    await rotate_key(load(tmp_path, flags, file=None, env={}, uid=1), b"new secret")
    assert store.objects[FORMAT_KEY] != before
    await mount(tmp_path / "a", single_node=True, secret=b"new secret")


# -- the store itself


async def test_single_node_compares_before_it_writes() -> None:
    inner = MemoryStore("refused")
    store = SingleNodeStore(inner)
    with pytest.raises(RemoteUnsuitable):
        await store.put_if("key", b"one", None)
    store.stand_in()
    first = await store.put_if("key", b"one", None)
    second = await store.put_if("key", b"two", first)
    for etag in (None, first):
        with pytest.raises(RemoteConflict):
            await store.put_if("key", b"three", etag)
    with pytest.raises(RemoteConflict):
        await store.put_if("absent", b"three", second)
    with pytest.raises(RemoteMissing):
        await store.get("absent")
    assert (await store.get("key")).body == b"two"


async def test_single_node_of_writes_at_once_one_succeeds() -> None:
    store = SingleNodeStore(MemoryStore("ignored"))
    store.stand_in()
    won: list[bytes] = []

    async def write(body: bytes) -> None:
        try:
            await store.put_if("key", body, None)
        except RemoteConflict:
            return
        won.append(body)

    async with trio.open_nursery() as nursery:
        for i in range(5):
            nursery.start_soon(write, b"%d" % i)
    assert len(won) == 1
    assert (await store.get("key")).body == won[0]


async def test_single_node_recognises_its_own_write_behind_a_lost_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = FaultyStore(MemoryStore("refused"))
    serve(monkeypatch, faulty)
    async with open_remote(RemoteSettings(URL, single_node=True)) as remote:
        await remote.require_conditional_writes()
        faulty.plan("put", timeout(after=True))
        etag = await remote.store.put_if("key", b"one", None)
        assert (await remote.store.get("key")).etag == etag
