"""Killed at each step of a rollback: the session is as it was, or as the snapshot was, whole; and so is its history."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from sessfs.sync.keeping import Policy
from tests.support.lives import Local
from tests.support.memorystore import MemoryStore
from tests.support.volumes import assert_clean, open_box, open_machine, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.volumes import Box

BODY = random.Random(3).randbytes(150_000)
PLENTY = Policy(100, 0, 0)


class Grave:
    """Copies state and bucket when *box*, once it is given, comes to *step* for the first time."""

    def __init__(self, path: Path, step: str, store: MemoryStore | None = None) -> None:
        self.state = path / "left"
        self.store = MemoryStore()
        self.box: Box | None = None
        self._step = step
        self._from = store

    def __call__(self, step: str) -> None:
        if step != self._step or self.box is None or self.state.exists():
            return
        self.box.copy_state(self.state)
        for key, body in self._from.objects.items() if self._from is not None else ():
            self.store.objects[key] = body
            self.store.set_age(key, 0)


async def fill(box: Box, marker: bytes) -> None:
    if box.find(b"s") is None:
        box.mkdir(b"s")
        box.mkdir(b"s/dir")
    await box.write(b"s/dir/large", marker, 40_000)
    await box.write(b"s/" + marker, BODY[:50_000])
    await box.write(b"s/small", marker)


@pytest.mark.parametrize("step", ["replace", "replaced", "settled"])
async def test_rollback_killed_without_a_remote(tmp_path: Path, step: str) -> None:
    grave = Grave(tmp_path, step)
    async with open_box(tmp_path / "a") as box:
        local = Local(box, PLENTY, crash_point=grave)
        grave.box = box
        await fill(box, b"first")
        await box.write(b"s/dir/large", BODY)
        old = await snapshot(box, b"s")
        info = await local.history.take(box.get(b"s").ino)
        await fill(box, b"second")
        new = await snapshot(box, b"s")
        await local.lives.rollback(b"s", info.sequence)
        assert await snapshot(box, b"s") == old
        await box.drop_dead()
    assert_clean(tmp_path / "a")
    async with open_box(grave.state) as box:
        local = Local(box, PLENTY)
        assert await snapshot(box, b"s") == (old if step == "settled" else new)
        infos = local.history.list(box.get(b"s").ino)
        assert [i.mark for i in infos] == ["", "before rollback"]
        assert local.snapshots.due() == []
        await local.lives.rollback(b"s", infos[1].sequence)
        assert await snapshot(box, b"s") == new
        await local.lives.rollback(b"s", infos[0].sequence)
        assert await snapshot(box, b"s") == old
        await box.drop_dead()
    assert_clean(grave.state)


@pytest.mark.parametrize("step", ["replace", "replaced", "settled", "cut", "outbox", "state"])
async def test_rollback_killed_with_a_remote(tmp_path: Path, step: str) -> None:
    store = MemoryStore()
    grave = Grave(tmp_path, step, store)
    async with open_machine(tmp_path / "a", store, policy=PLENTY, crash_point=grave) as machine:
        await fill(machine, b"first")
        await machine.write(b"s/dir/large", BODY)
        old = await snapshot(machine, b"s")
        await machine.publish()
        await fill(machine, b"second")
        new = await snapshot(machine, b"s")
        await machine.publish()
        if step in ("replace", "replaced", "settled"):
            grave.box = machine
            await machine.lives.rollback(b"s", 1)
        else:
            await machine.lives.rollback(b"s", 1)
            grave.box = machine
        await machine.publish()
    assert_clean(tmp_path / "a")
    is_old = step not in ("replace", "replaced")
    async with open_machine(tmp_path / "b", copy(grave.store), name="b", take_over=True, policy=PLENTY) as machine:
        await machine.load_all()
        assert await snapshot(machine, b"s") == (old if step == "state" else new)
        found = machine.history.list(machine.get(b"s").ino)
        assert [i.sequence for i in found] == ([1, 2, 3] if step == "state" else [1, 2])
        assert found[1].mark == "before rollback"
    async with open_machine(grave.state, grave.store, policy=PLENTY) as machine:
        assert await snapshot(machine, b"s") == (old if is_old else new)
        await machine.publish()
        found = machine.history.list(machine.get(b"s").ino)
        assert [i.sequence for i in found][:3] == [1, 2, 3][: len(found)]
        await machine.lives.rollback(b"s", 2)
        assert await snapshot(machine, b"s") == new
        await machine.publish()
    assert_clean(grave.state)
    async with open_machine(tmp_path / "c", grave.store, name="c", policy=PLENTY) as machine:
        await machine.load_all()
        assert await snapshot(machine, b"s") == new


def copy(store: MemoryStore) -> MemoryStore:
    twin = MemoryStore()
    for key, body in store.objects.items():
        twin.objects[key] = body
        twin.set_age(key, 0)
    return twin
