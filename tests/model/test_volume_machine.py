"""A volume without FUSE against a dictionary: writing, sealing, freezing, committing, killing, all in any order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sessfs.local.inodes import KEPT_REFS
from sessfs.sync.keeping import Policy
from sessfs.vfs import fileio
from tests.support.lives import Local
from tests.support.triothread import Task, TrioThread
from tests.support.volumes import Box, Clock, assert_clean, examples, open_box

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.format.recipe import Recipe
    from sessfs.local.inodes import Inode
    from sessfs.types import Ino
    from sessfs.vfs.frozen import FrozenFile

NAMES = [b"s/a", b"s/b", b"s/d/c", b"t/e"]
UNIT = 7_919
"""Offsets are multiples of it: chunk and page borders are met, and missed."""
OFFSETS = st.integers(0, 40).map(lambda n: n * UNIT) | st.integers(0, 3)
LENGTHS = st.sampled_from([1, 100, 4096, 8191, 30_000, 140_000, 300_000])
SEEDS = st.integers(0, 5)


def content_of(seed: int, length: int) -> bytes:
    """Few kinds, so that files share chunks; kind 0 is zeros."""
    if seed == 0:
        return bytes(length)
    unit = b"".join(b"%d.%d;" % (seed * 7919 + i * i, i) for i in range(length // 6 + 1))
    return unit[:length]


class VolumeMachine(RuleBasedStateMachine):
    """`files` is what reading gives: path → index into `bodies`, since hard links share one."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="sessfs-machine-"))
        self.loop = TrioThread()
        self.clock = Clock()
        self.n_states = 0
        self.state = self.directory / "state0"
        self.files: dict[bytes, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.next_body = 0
        self.sealing: list[Task[None]] = []
        self.frozen: list[tuple[list[FrozenFile], dict[int, bytes]]] = []
        self.committed: tuple[dict[bytes, int], dict[int, bytes]] | None = None
        self.snapshots: dict[int, tuple[dict[bytes, int], dict[int, bytes]]] = {}
        """Of session `s`: its files, and what all bodies were."""
        self.leave: Callable[[], None]
        self.box: Box
        self.copy_max, fileio.COPY_MAX_BYTES = fileio.COPY_MAX_BYTES, 200_000

    def teardown(self) -> None:
        try:
            self.finish()
            self.leave()
            assert_clean(self.state)
        finally:
            fileio.COPY_MAX_BYTES = self.copy_max
            self.loop.end()
            shutil.rmtree(self.directory)

    def finish(self) -> None:
        """Wait for what is under way."""
        for frozen in list(self.frozen):
            self.seal_frozen_of(frozen)
        for task in self.sealing:
            self.loop.call(task.wait)
        self.sealing = []

    def open(self) -> None:
        self.box, self.leave = self.loop.hold(open_box(self.state, clock=self.clock))
        self.local = Local(self.box, Policy(4, 0, 0))

    @initialize()
    def begin(self) -> None:
        self.open()
        for path in (b"s", b"s/d", b"t"):
            self.loop.do(self.box.mkdir, path)

    # -- changing

    @rule(path=st.sampled_from(NAMES), offset=OFFSETS, seed=SEEDS, length=LENGTHS)
    def write(self, path: bytes, offset: int, seed: int, length: int) -> None:
        if self.is_waited_for(path):
            return
        content = content_of(seed, length)
        self.loop.call(self.box.write, path, content, offset)
        if path not in self.files:
            self.files[path] = self.new_body(b"")
        old = self.bodies[self.files[path]]
        old += bytes(max(offset - len(old), 0))
        self.bodies[self.files[path]] = old[:offset] + content + old[offset + length :]

    @rule(path=st.sampled_from(NAMES), size=OFFSETS)
    def truncate(self, path: bytes, size: int) -> None:
        if path in self.files and not (size and self.is_waited_for(path)):
            self.loop.call(self.box.truncate, path, size)
            old = self.bodies[self.files[path]]
            self.bodies[self.files[path]] = old[:size] + bytes(max(size - len(old), 0))

    @rule(path=st.sampled_from(NAMES))
    def unlink(self, path: bytes) -> None:
        if path in self.files:
            self.loop.do(self.box.unlink, path)
            del self.files[path]

    @rule(old=st.sampled_from(NAMES[:3]), new=st.sampled_from(NAMES[:3]))
    def rename(self, old: bytes, new: bytes) -> None:
        if old in self.files and old != new:
            self.loop.do(self.box.rename, old, new)
            if self.files.get(new) != self.files[old]:
                self.files[new] = self.files.pop(old)

    @rule(old=st.sampled_from(NAMES[:3]), new=st.sampled_from(NAMES[:3]))
    def link(self, old: bytes, new: bytes) -> None:
        if old in self.files and new not in self.files:
            self.loop.do(self.box.link, old, new)
            self.files[new] = self.files[old]

    def new_body(self, content: bytes) -> int:
        self.next_body += 1
        self.bodies[self.next_body] = content
        return self.next_body

    def is_waited_for(self, path: bytes) -> bool:
        """True when a write would wait for a frozen file that nobody is sealing."""
        inode = self.loop.do(self.box.find, path)
        if inode is None or not inode.hot_no or not self.box.volume.fileio.retirement.is_frozen(inode.hot_no):
            return False
        allocated = self.box.volume.hot.allocated_bytes
        return self.loop.do(allocated, inode.ino, inode.hot_no) > fileio.COPY_MAX_BYTES

    # -- sessions as wholes

    def mine(self) -> dict[bytes, int]:
        return {path: body for path, body in self.files.items() if path.startswith(b"s/")}

    def note_snapshots(self) -> None:
        """One more may be there, of this moment; the policy may have dropped others."""
        infos = self.loop.do(self.local.history.list, self.loop.do(self.box.get, b"s").ino)
        there = {info.sequence for info in infos}
        for sequence in there - self.snapshots.keys():
            self.snapshots[sequence] = (self.mine(), dict(self.bodies))
        self.snapshots = {n: snapshot for n, snapshot in self.snapshots.items() if n in there}

    @rule()
    def take_snapshot(self) -> None:
        self.loop.call(self.local.history.take, self.loop.do(self.box.get, b"s").ino)
        self.note_snapshots()
        self.committed = (dict(self.files), dict(self.bodies))

    @rule(data=st.data())
    @precondition(lambda self: self.snapshots)
    def roll_back(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.snapshots)))
        files, bodies = self.snapshots[sequence]
        self.loop.call(self.local.lives.rollback, b"s", sequence)
        self.note_snapshots()
        for path in self.mine():
            del self.files[path]
        fresh = {body: self.new_body(bodies[body]) for body in set(files.values())}
        self.files.update({path: fresh[body] for path, body in files.items()})
        self.committed = (dict(self.files), dict(self.bodies))

    @rule()
    def clone_and_remove(self) -> None:
        """A clone has what the session has, whatever is under way; its end takes nothing from the session."""
        self.loop.call(self.local.lives.clone, b"s", b"clone")
        found = self.loop.call(self.box.contents)
        cloned = {path: content for path, content in found.items() if path.startswith(b"clone/")}
        assert cloned == {b"clone" + path[1:]: self.bodies[body] for path, body in self.mine().items()}
        self.loop.call(self.local.lives.remove, b"clone")
        self.committed = (dict(self.files), dict(self.bodies))

    # -- in the background

    @rule()
    def seal(self) -> None:
        self.loop.call(self.box.seal)

    @rule()
    def begin_seal(self) -> None:
        """A seal whose answer is on its way while other things happen."""
        self.sealing.append(self.loop.start(self.box.seal))

    @rule()
    def commit(self) -> None:
        self.loop.call(self.box.commit)
        self.committed = (dict(self.files), dict(self.bodies))

    @rule()
    def drop_dead(self) -> None:
        self.loop.call(self.box.drop_dead)
        self.committed = (dict(self.files), dict(self.bodies))

    @rule()
    @precondition(lambda self: not self.frozen)
    def freeze(self) -> None:
        """What a cut does: from here on the frozen files' content is kept."""

        def freeze() -> tuple[list[FrozenFile], dict[int, bytes]]:
            found: dict[Ino, tuple[Inode, bytes]] = {}
            for path, body in self.files.items():
                inode = self.box.get(path)
                if inode.hot_no and inode.size:
                    found[inode.ino] = (inode, self.bodies[body])
            inodes = [inode for inode, _ in found.values()]
            return self.box.volume.sealer.freeze(inodes), {ino: content for ino, (_, content) in found.items()}

        self.frozen.append(self.loop.do(freeze))

    @rule()
    @precondition(lambda self: self.frozen)
    def seal_frozen(self) -> None:
        self.seal_frozen_of(self.frozen[0])

    def seal_frozen_of(self, frozen: tuple[list[FrozenFile], dict[int, bytes]]) -> None:
        files, contents = frozen
        self.frozen.remove(frozen)
        recipes = self.loop.call(self.box.volume.sealer.seal_frozen, files)
        self.loop.call(self.box.drop_dead)
        for ino, recipe in recipes.items():
            assert self.loop.do(self.bytes_of, recipe) == contents[ino]
            self.loop.do(self.box.volume.references.unpin, list(recipe.iter_chunks()))
        self.committed = (dict(self.files), dict(self.bodies))

    def bytes_of(self, recipe: Recipe) -> bytes:
        parts = []
        for extent in recipe:
            chunk = bytes(extent.end - extent.start) if extent.is_hole else self.box.volume.reader.find(extent.chunk)
            assert chunk is not None
            parts.append(chunk)
        return b"".join(parts)

    # -- ends

    @rule()
    def close_and_open(self) -> None:
        self.finish()
        self.leave()
        assert_clean(self.state)
        self.open()
        assert self.box.volume.state.was_clean
        self.committed = (dict(self.files), dict(self.bodies))

    @rule()
    def crash_after_commit(self) -> None:
        """Kill -9 right after a commit: everything is there."""
        for task in self.sealing:
            self.loop.call(task.wait)
        self.sealing = []
        self.commit()
        self.n_states += 1
        left = self.directory / f"state{self.n_states}"
        self.loop.do(self.box.copy_state, left)
        self.finish()
        self.leave()
        shutil.rmtree(self.state)
        self.state = left
        assert self.committed is not None
        self.files, self.bodies = self.committed
        self.frozen = []
        self.open()
        assert not self.box.volume.state.was_clean

    @rule()
    def dead_chunks_go(self) -> None:
        """Once nothing is under way, exactly the chunks that recipes name are stored."""
        self.finish()
        self.loop.call(self.box.seal)
        self.loop.call(self.box.drop_dead)

        def named_and_stored() -> tuple[set[bytes], set[bytes]]:
            inodes = self.box.volume.inodes
            named = {
                bytes(cid)
                for path in self.files
                for cid in inodes.load_recipe(self.box.get(path)).iter_chunks()
                if self.box.get(path).cold
            }
            named |= {cid for cid, _ in self.box.volume.meta.scan(KEPT_REFS)}
            return named, {bytes(cid) for cid in self.box.volume.reader.iter_ids()}

        named, stored = self.loop.do(named_and_stored)
        if self.box.volume.state.was_clean:
            assert named == stored
        else:
            assert named <= stored
        self.committed = (dict(self.files), dict(self.bodies))

    @invariant()
    def contents_are_right(self) -> None:
        if hasattr(self, "box"):
            found = self.loop.call(self.box.contents)
            assert found == {path: self.bodies[body] for path, body in self.files.items()}


TestVolume = VolumeMachine.TestCase
TestVolume.settings = settings(max_examples=examples(12), stateful_step_count=25)
