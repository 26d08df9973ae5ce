"""A start with a remote: what of a state is distrusted, for how long, and what a remote must have that is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sessfs.errors import RemoteCorrupt, RemoteUnavailable, RemoteUnsuitable
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.repository import HOLDER_KEY, decode_holder
from sessfs.format.segment import state_key
from sessfs.mount.repository import CachedState, open_repository
from sessfs.remote.urls import RemoteSettings, open_remote
from sessfs.sync.bucket import read_truth
from sessfs.sync.keeping import Policy
from tests.support.faultystore import FaultyStore, timeout
from tests.support.memorystore import MemoryStore
from tests.support.volumes import open_machine

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.remote.objectstore import ObjectStore

KEEP = Policy(10, 24, 7)


async def fill(path: Path, store: ObjectStore, name: str, content: bytes) -> None:
    """A mount that writes *content* to the only file of session `s`, and is unmounted."""
    async with open_machine(path, store, name=name) as machine:
        if await machine.load(b"s") is None:
            machine.mkdir(b"s")
        await machine.write(b"s/f", content)


async def seen_by_another(path: Path, store: ObjectStore) -> dict[bytes, bytes]:
    async with open_machine(path, store, name="another") as machine:
        await machine.load_all()
        return await machine.contents()


@pytest.mark.parametrize("released", [True, False], ids=["unmounted", "killed"])
async def test_state_that_was_mounted_without_a_look_at_a_session_still_distrusts_it(
    tmp_path: Path, released: bool
) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, "a", b"first")
    await fill(tmp_path / "b", store, "b", b"later")
    async with open_machine(tmp_path / "a", store, name="a", release=released) as machine:
        assert machine.sessions.unverified == {machine.get(b"s").ino}
    async with open_machine(tmp_path / "a", store, name="a") as machine:
        assert machine.sessions.unverified == {machine.get(b"s").ino}
        await machine.load(b"s")
        assert not machine.sessions.unverified
        await machine.write(b"s/g", b"more")
    assert await seen_by_another(tmp_path / "c", store) == {b"s/f": b"later", b"s/g": b"more"}


async def test_state_that_held_the_prefix_last_is_trusted(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    await fill(tmp_path / "a", store, "a", b"content")
    for released in (False, True, True):
        async with open_machine(tmp_path / "a", store, name="a", release=released) as machine:
            assert not machine.sessions.unverified
            before = len(store.calls)
            assert await machine.read(b"s/f") == b"content"
            assert len(store.calls) == before


async def test_state_whose_claim_was_not_answered_distrusts_what_is_here(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    await fill(tmp_path / "a", store, "a", b"first")
    await fill(tmp_path / "b", store, "b", b"later")
    store.plan("put_if", None, timeout(after=True, keys=HOLDER_KEY))
    with pytest.RaisesGroup(RemoteUnavailable, flatten_subgroups=True):
        async with open_machine(tmp_path / "a", store, name="a"):
            pass
    async with open_machine(tmp_path / "a", store, name="a") as machine:
        await machine.load(b"s")
        assert await machine.contents() == {b"s/f": b"later"}


async def test_state_that_was_put_back_from_a_copy_distrusts_what_is_here(tmp_path: Path) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, "a", b"first")
    async with open_machine(tmp_path / "a", store, name="a") as machine:
        copy = machine.copy_state(tmp_path / "copy")
        await machine.write(b"s/f", b"later")
    async with open_machine(copy, store, name="a") as machine:
        await machine.load(b"s")
        assert await machine.contents() == {b"s/f": b"later"}


@pytest.mark.parametrize("changed", [True, False], ids=["another wrote", "another wrote nothing"])
async def test_snapshots_are_kept_when_another_node_had_the_prefix(tmp_path: Path, changed: bool) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, name="a", policy=KEEP) as machine:
        machine.mkdir(b"s")
        for number in range(4):
            await machine.write(b"s/f", b"%d" % number)
            await machine.history.take(machine.get(b"s").ino, "keep me" if number == 1 else "")
    async with open_machine(tmp_path / "b", store, name="b", policy=KEEP) as machine:
        if changed:
            await machine.load(b"s")
            await machine.write(b"s/f", b"5")
            await machine.history.take(machine.get(b"s").ino)
    async with open_machine(tmp_path / "a", store, name="a", policy=KEEP) as machine:
        await machine.load(b"s")
        await machine.write(b"s/f", b"6")
    async with open_machine(tmp_path / "c", store, name="c", policy=KEEP) as machine:
        await machine.load(b"s")
        found = {one.sequence: one.mark for one in machine.history.list(machine.get(b"s").ino)}
    assert found.keys() >= {1, 2, 3, 4, 5}
    assert found[2] == "keep me"


async def test_stub_of_a_session_that_another_node_removed_is_gone_at_the_first_look(tmp_path: Path) -> None:
    store = MemoryStore()
    await fill(tmp_path / "b", store, "b", b"content")
    async with open_machine(tmp_path / "a", store, name="a") as machine:
        await machine.sessions.list_all()
        assert machine.sessions.stubs
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        machine.unlink(b"s/f")
        machine.rmdir(b"s")
    async with open_machine(tmp_path / "a", store, name="a") as machine:
        stub = machine.get(b"s").ino
        assert await machine.load(b"s") is None
        assert stub not in machine.sessions.stubs
        assert await machine.load(b"s") is None
    assert await seen_by_another(tmp_path / "c", store) == {}
    async with open_machine(tmp_path / "a", store, name="a") as machine:
        assert not machine.walk()


async def test_repository_that_is_gone_is_not_made_anew_for_a_used_state(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "state").mkdir()
    async with open_remote(RemoteSettings((tmp_path / "bucket").as_uri())) as remote:
        opened = await open_repository(remote, None, CachedState(tmp_path / "state", None), 5)
    async with open_remote(RemoteSettings((tmp_path / "other").as_uri())) as remote:
        with pytest.raises(RemoteUnsuitable, match=r"there is no repository at file:.*other.*check --remote"):
            await open_repository(remote, None, CachedState(tmp_path / "state", opened.hash_key), 5)
        assert not await remote.store.list_page("")


@pytest.mark.parametrize("name", ["a", "b"], ids=["its own", "another's"])
async def test_state_of_the_holder_that_is_lost_is_damage(tmp_path: Path, name: str) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, name="a", release=False) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", b"released")
        await machine.publish()
        await machine.node.release()
        await machine.write(b"s/f", b"published")
        await machine.publish()
        segments = {key for key in store.objects if "/segments/" in key}
        holder = machine.node
    del store.objects[state_key("a")]
    with pytest.RaisesGroup(
        pytest.RaisesExc(RemoteCorrupt, match=r"nodes/a/state is missing.*--take-over"), flatten_subgroups=True
    ):
        async with open_machine(tmp_path / name, store, name=name):
            pass
    async with open_machine(tmp_path / name, store, name=name, take_over=True) as machine:
        if name == "a":
            assert machine.node.last_segment == holder.last_segment
            assert machine.node.incarnation > holder.incarnation
        await machine.load(b"s")
        await machine.write(b"s/g", b"more")
        before = {key: store.objects[key] for key in segments}
        await machine.publish()
        assert {key: store.objects[key] for key in segments} == before


async def test_bucket_whose_holder_has_no_state_is_damaged(tmp_path: Path) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, "a", b"content")
    del store.objects[state_key("a")]
    with pytest.raises(RemoteCorrupt, match="nodes/a/state is missing"):
        await read_truth(store, PlainEnvelope(), decode_holder(store.objects[HOLDER_KEY]))
