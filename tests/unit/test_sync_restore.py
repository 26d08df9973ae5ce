"""Restoring: what of a manifest is installed, what is refused, and which names a root has."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.chrome import PathClass
from sessfs.errors import RemoteCorrupt
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.manifest import Manifest, NameRecord, NodeRecord
from sessfs.format.segment import SegmentBuilder, segment_key
from sessfs.sync.restore import load_manifest
from tests.support.faultystore import FaultyStore
from tests.support.memorystore import MemoryStore
from tests.support.volumes import assert_clean, open_machine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.volumes import Machine

ROOT = 50
DIR, FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644


def node(ino: int, mode: int) -> NodeRecord:
    return NodeRecord(ino, mode, 1, 2, 1, 0, 0, 3, 4, 5, None, {}, b"")


async def put(machine: Machine, store: MemoryStore, nodes: list[NodeRecord], names: list[NameRecord]) -> None:
    """Publish a manifest of session `s` by hand."""
    number = machine.node.last_segment + 1
    manifest = Manifest(1, b"s", number, None, 0, 0, ROOT, nodes, names, [], [], [], [], b"")
    builder = SegmentBuilder(machine.node.name, number, machine.node.incarnation, PlainEnvelope())
    ref = builder.add_manifest(manifest)
    await store.put(segment_key(machine.node.name, number), builder.finish(0))
    await machine.node.publish(number, [(b"s", ref, number)])


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ([node(ROOT, DIR)], [NameRecord(ROOT, b"x", 99)]),
        ([node(ROOT, DIR), node(1000, DIR)], [NameRecord(ROOT, b"x", 1000), NameRecord(1000, b"up", ROOT)]),
        ([node(ROOT, DIR), node(1000, DIR)], [NameRecord(ROOT, b"x", 1000), NameRecord(1000, b"self", 1000)]),
        ([node(ROOT, DIR), node(1000, DIR)], [NameRecord(ROOT, b"x", 1000), NameRecord(ROOT, b"y", 1000)]),
        ([node(ROOT, DIR), node(1000, FILE)], [NameRecord(ROOT, b"x", 1000), NameRecord(1000, b"y", 1000)]),
    ],
    ids=["names nothing", "cycle to the root", "cycle", "directory with two names", "file as directory"],
)
async def test_restore_refuses_a_manifest_that_does_not_hang_together(
    tmp_path: Path, nodes: list[NodeRecord], names: list[NameRecord]
) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        await put(machine, store, nodes, names)
        with trio.fail_after(5), pytest.raises(RemoteCorrupt, match="session s"):
            await machine.load(b"s")
        assert machine.get(b"s").ino in machine.sessions.stubs
        assert machine.walk(b"s") == []
        await put(machine, store, [node(ROOT, DIR), node(1000, FILE)], [NameRecord(ROOT, b"good", 1000)])
        await machine.load(b"s")
        assert [path for path, _ in machine.walk(b"s")] == [b"s/good"]
    assert_clean(tmp_path / "a")


async def test_restore_what_travelled_by_another_name_still_travels(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        names = [NameRecord(ROOT, b"a.tmp", 1000), NameRecord(ROOT, b"b", 1000)]
        await put(machine, store, [node(ROOT, DIR), node(1000, FILE)], names)
        await machine.load(b"s")
        assert machine.get(b"s/b") is machine.get(b"s/a.tmp")
        assert machine.get(b"s/b").path_class is PathClass.TRAVELS
        assert machine.get(b"s/b").nlink == 2
    assert_clean(tmp_path / "a")


async def test_restore_looks_take_one_request_each_and_listing_pages(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    async with open_machine(tmp_path / "a", store) as machine:
        for i in range(30):
            machine.mkdir(b"s%02d" % i)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.sessions.load_root()
        before = len(store.calls)
        await machine.load(b"s07")
        assert len(store.calls) - before <= 3
        assert [path for path, _ in machine.walk()] == [b"s07"]
        await machine.load(b"missing")
        assert machine.find(b"missing") is None
        await machine.sessions.list_all()
        assert len(machine.walk()) == 30
        before = len(store.calls)
        await machine.load(b"missing too")
        assert len(store.calls) == before, "all names are known by now"
        assert len(machine.sessions.stubs) == 29
    assert_clean(tmp_path / "b")
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        assert len(machine.sessions.stubs) == 29
        assert (await machine.snapshots()).keys() == {b"s%02d" % i for i in range(30)}


@pytest.mark.parametrize("name", [b"x.tmp", b"Crashpad", b"GPUCache"])
async def test_session_travels_whatever_it_is_called(tmp_path: Path, name: bytes) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"old")
        await machine.write(b"old/f", b"content")
        machine.rename(b"old", name)
        machine.mkdir(name + b"-2")
        await machine.publish()
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load_all()
        assert await machine.contents() == {name + b"/f": b"content"}


async def test_restore_names_removed_or_renamed_here_do_not_come_back(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        for name in (b"kept", b"removed", b"renamed"):
            machine.mkdir(name)
        await machine.publish()
        machine.rmdir(b"removed")
        machine.rename(b"renamed", b"new")
        for name in (b"removed", b"renamed"):
            await machine.load(name)
            assert machine.find(name) is None
        await machine.load_all()
        assert [path for path, _ in machine.walk()] == [b"kept", b"new"]


async def test_restore_chain_of_manifests_is_merged_and_a_wrong_one_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f0", b"0")
        await machine.publish()
        for i in range(1, 4):
            await machine.write(b"s/f%d" % i, b"%d" % i)
            await machine.publish()
        found = await machine.node.resolve(b"s")
        assert found is not None
        assert found[0] is not None
        manifest = await load_manifest(store, PlainEnvelope(), found[0])
        assert sorted(entry.name for entry in manifest.names) == [b"f0", b"f1", b"f2", b"f3"]
        assert manifest.sequence == 4
        with pytest.raises(RemoteCorrupt):
            await load_manifest(store, PlainEnvelope(), found[0]._replace(segment=found[0].segment - 1))
