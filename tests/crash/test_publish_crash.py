"""Killed at each step of publishing: nothing is lost, and nothing is uploaded twice where the state knows better.

The daemon's death is what it leaves: the state directory and the bucket, copied at that instant.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import RemoteUnavailable
from tests.support.faultystore import FaultyStore, timeout
from tests.support.memorystore import MemoryStore
from tests.support.volumes import assert_clean, open_machine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.volumes import Attributes, Machine

STEPS = ["cut", "segments", "outbox", "state"]
BODY = random.Random(1).randbytes(700_000)


class Grave:
    """Copies state and bucket when publishing comes to *step* for the *nth* time."""

    def __init__(self, path: Path, store: MemoryStore, step: str, nth: int) -> None:
        self.state = path / "left"
        self.store = MemoryStore()
        self._source = path / "a"
        self._from = store
        self._step = step
        self._left = nth
        self.machine: Machine | None = None

    def __call__(self, step: str) -> None:
        if step != self._step:
            return
        self._left -= 1
        if self._left == 0:
            assert self.machine is not None
            self.machine.copy_state(self.state)
            self.store = copy_of(self._from)


def copy_of(store: MemoryStore) -> MemoryStore:
    twin = MemoryStore()
    for key, body in store.objects.items():
        twin.objects[key] = body
        twin.set_age(key, 0)
    return twin


async def live(path: Path, step: str, nth: int) -> tuple[Grave, list[dict[bytes, dict[bytes, Attributes]]]]:
    """A life of three publishes, and what was there at each cut."""
    store = MemoryStore()
    grave = Grave(path, store, step, nth)
    cuts: list[dict[bytes, dict[bytes, Attributes]]] = [{}]
    async with open_machine(path / "a", store, crash_point=grave) as machine:
        grave.machine = machine
        machine.mkdir(b"s")
        machine.mkdir(b"gone")
        machine.mkdir(b"old")
        await machine.write(b"s/large", BODY)
        await machine.write(b"gone/f", b"f")
        await machine.write(b"root", b"1")
        await machine.commit()
        cuts.append(await machine.snapshots())
        await machine.publish()
        await machine.write(b"s/large", b"second", 300_000)
        await machine.write(b"s/new", BODY[:100_000] + b"!")
        machine.unlink(b"gone/f")
        machine.rmdir(b"gone")
        machine.rename(b"old", b"renamed")
        await machine.commit()
        cuts.append(await machine.snapshots())
        await machine.publish()
        machine.unlink(b"s/new")
        machine.mkdir(b"gone")
        await machine.write(b"gone/again", BODY[100_000:200_000])
        await machine.commit()
        cuts.append(await machine.snapshots())
        await machine.publish()
    return grave, cuts


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
async def test_publish_killed_at_each_step_loses_nothing(tmp_path: Path, step: str, nth: int) -> None:
    grave, cuts = await live(tmp_path, step, nth)
    published = cuts[nth] if step == "state" else cuts[nth - 1]
    async with open_machine(tmp_path / "b", copy_of(grave.store), name="b", take_over=True) as machine:
        assert await machine.snapshots() == published, "the remote has one whole snapshot or the other"
    store = FaultyStore(grave.store)
    async with open_machine(grave.state, store) as machine:
        assert await machine.snapshots() == cuts[nth]
        before = len(store.calls)
        await machine.publish()
        sent = sum(call.n_bytes for call in store.calls[before:] if call.method == "put")
        if step == "state":
            assert sent < 20_000, "the outbox knows that the chunks are there"
        assert machine.volume.places.outbox() is None
        await machine.write(b"s/after", b"life goes on")
        await machine.publish()
        expected = await machine.snapshots()
    assert_clean(grave.state)
    async with open_machine(tmp_path / "c", grave.store, name="c") as machine:
        assert await machine.snapshots() == expected


@pytest.mark.parametrize("after", [False, True], ids=["not landed", "landed"])
@pytest.mark.parametrize("crash", ["none", "segments", "outbox", "state"])
async def test_publish_again_after_an_unknown_outcome(tmp_path: Path, after: bool, crash: str) -> None:
    """The reply of the state swap is lost. The next publishing may not write over what may count, and may die, too."""
    inner = MemoryStore()
    store = FaultyStore(inner)
    grave = Grave(tmp_path, inner, crash, 2 if crash in ("segments", "outbox") else 1)
    async with open_machine(tmp_path / "a", store, crash_point=grave) as machine:
        grave.machine = machine
        machine.mkdir(b"s")
        await machine.write(b"s/f", BODY)
        store.plan("put_if", None, timeout(after=after, keys="nodes/*"))
        with pytest.raises(RemoteUnavailable):
            await machine.publish()
        await machine.write(b"s/f", b"changed", 1000)
        await machine.write(b"s/g", b"new")
        await machine.commit()
        expected = await machine.snapshots()
        before = len(store.calls)
        await machine.publish()
        puts = [call for call in store.calls[before:] if call.method == "put"]
        if after:
            assert sum(call.n_bytes for call in puts) < 200_000, "what landed is not sent again"
            assert machine.node.last_segment == 2
        assert await read_all(tmp_path / "b", copy_of(inner)) == expected
        await machine.write(b"s/h", b"more")
        await machine.publish()
        expected_later = await machine.snapshots()
        assert await read_all(tmp_path / "c", copy_of(inner)) == expected_later
    if crash == "none":
        return
    async with open_machine(grave.state, grave.store) as machine:
        assert await machine.snapshots() == expected
        await machine.write(b"s/i", b"after the crash")
        await machine.publish()
        expected = await machine.snapshots()
    assert_clean(grave.state)
    assert await read_all(tmp_path / "d", grave.store) == expected


async def read_all(path: Path, store: MemoryStore) -> dict[bytes, dict[bytes, Attributes]]:
    async with open_machine(path, store, name="reader", take_over=True, release=False) as machine:
        found = await machine.snapshots()
    return found
