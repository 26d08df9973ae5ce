"""A remote of which one object is deleted, cut or flipped, in each state that its node can be in: what is then said.

The remote is made by real nodes, without volumes. Each trial is held against what must be true whichever object it is;
the table in docs/remote-faults.md says how that comes out for each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sessfs.errors import RemoteError, RemoteHeld
from sessfs.format.repository import HOLDER_KEY, decode_state
from sessfs.format.roster import ROSTER_KEY
from sessfs.format.segment import parse_checkpoint_key, parse_segment_key, state_key
from sessfs.remote.node import Identity, Node, open_node
from sessfs.sync.bucket import BucketChunks
from sessfs.sync.fsck_remote import Sampling, check_remote
from sessfs.sync.gc import Options, collect
from sessfs.sync.restore import load_manifest
from tests.support.bucket import HASH_KEY, PLAIN, Writer, files_of
from tests.support.memorystore import MemoryStore

ALL = Sampling(1.0, b"")
Contents = dict[tuple[bytes, bytes], bytes]
"""(session, file) → content."""
STATES = ("held", "released", "crashed", "taken over")
FAULTS = ("deleted", "cut", "flipped")
MOUNTS = ("the same state", "an empty state", "an empty state, --take-over")


def damaged(body: bytes, fault: str) -> list[bytes | None]:
    """What becomes of an object; None: it is gone. Nothing for what the fault does not change."""
    if fault == "deleted":
        return [None]
    if not body:
        return []
    if fault == "cut":
        return [body[: len(body) // 2]]
    # In the middle, and in the part that says what the rest is.
    places = sorted({len(body) // 2, max(0, len(body) - 30)})
    return [body[:at] + bytes([body[at] ^ 0x04]) + body[at + 1 :] for at in places]


@dataclass
class World:
    """A remote, and what a mount of it must show."""

    objects: dict[str, bytes]
    contents: Contents
    owner: str
    """The node that has, or had, the remote last."""


def now_s() -> float:
    """The clock of writers and stores: long after what `MemoryStore.set_age` makes old."""
    return 2e9


def _words(word: str, count: int) -> list[bytes]:
    """Contents of chunks that no other word gives."""
    return [f"{word} {number} ".encode() * 40 for number in range(count)]


async def _live(a: Writer, state: str) -> None:
    """Two lives of a node. Sessions: `carl` was only released, `anna` and `bert` were changed since, `dora` is new,
    `gone` was removed.
    """
    await a.start()
    for name in (b"anna", b"bert", b"carl", b"gone"):
        a.write(name, b"file", _words(f"{name!r} first", 3))
    a.write(b".", b"root", _words("root", 1))
    await a.publish()
    a.write(b"bert", b"other", _words("bert other", 2))
    await a.release()
    await a.start()
    a.write(b"anna", b"file", _words("anna second", 2))
    await a.publish()
    a.write(b"dora", b"file", _words("dora", 2))
    a.remove_session(b"gone")
    await a.publish()
    assert a.node is not None
    await a.node.checkpoint()
    a.write(b"bert", b"more", _words("bert more", 1))
    await a.publish()
    if state == "released":
        await a.release()
    elif state != "held":
        a.kill()


async def make_world(state: str, store: MemoryStore) -> tuple[World, Writer]:
    """A remote in that *state* of its node, and the node, which is at work only where it is held."""
    writer = Writer(store, "a", now_s, keep=2)
    await _live(writer, state)
    if state == "taken over":
        writer = Writer(store, "b", now_s, keep=2)
        await writer.start(take_over=True)
        writer.write(b"anna", b"third", _words("anna third", 1))
        await writer.publish()
        writer.kill()
    # So that marks are there, and condemned segments.
    await collect(store, PLAIN, Options("early", 0.0))
    await store.put("probe/left", b"left over")
    return World(dict(store.objects), _contents(writer), writer.name), writer


def _contents(writer: Writer) -> Contents:
    return {
        (session, name): b"".join(content)
        for session, files in writer.sessions.items()
        for name, content in files.items()
    }


def kind_of(key: str, world: World) -> str:
    """What sort of object it is, for people."""
    if key.startswith("nodes/"):
        return _kind_of_nodes_object(key, world)
    kinds = {HOLDER_KEY: "holder", ROSTER_KEY: "roster", "gc/clock": "gc/clock"}
    for prefix, kind in (("gc/mark-", "gc/mark-RUN"), ("probe/", "probe/…")):
        if key.startswith(prefix):
            return kind
    if key.startswith("sessions/"):
        return f"sessions/NAME, {'untouched' if key.endswith('/carl') else 'changed'} since the first release"
    return kinds[key]


def _kind_of_nodes_object(key: str, world: World) -> str:
    node = key.split("/")[1]
    whose = "its node" if node == world.owner else "a node that was replaced"
    if key == state_key(node):
        return f"state of {whose}"
    state = decode_state(world.objects[state_key(node)])
    segment, checkpoint = parse_segment_key(key), parse_checkpoint_key(key)
    if checkpoint is not None:
        is_last = state.has_checkpoint and checkpoint[1] == state.last_checkpoint
        return f"checkpoint of {whose}, {'the last' if is_last else 'an old one'}"
    assert segment is not None
    if node == world.owner and not state.clean and segment[1] > state.last_checkpoint:
        return "segment after the last checkpoint"
    return "segment"


class Trial:
    """One damaged object, seen by one mount and by checks and collections before and after it."""

    def __init__(
        self, world: World, store: MemoryStore, key: str, body: bytes | None, mount: str, writer: Writer | None = None
    ) -> None:
        """*store* holds the remote of *world*; *writer* is at work there, where it is held."""
        self._world = world
        self._store = store
        self._writer = writer
        self._key = key
        self._body = body
        self._mount = mount
        self._n_runs = 0
        self.said: dict[str, str] = {}
        self._is_needed = False
        """Something could not be had."""

    def _put(self, body: bytes | None) -> None:
        if body is None:
            self._store.objects.pop(self._key, None)
        else:
            self._store.objects[self._key] = body
            self._store.set_age(self._key, 10.0)

    async def run(self) -> dict[str, str]:
        """Who said what, in a few words. Asserts what must be true whichever object it is."""
        self._put(self._body)
        problems = await self._check()
        self.said["fsck"] = problems or "clean"
        self.said["gc"] = await self._collect()
        await self._try_mount()
        await self._collect()
        assert not self._is_needed or problems, f"{self.said}: fsck found nothing"
        if self._store.objects.get(self._key) == self._body:
            self._put(self._world.objects[self._key])
        if self._writer is not None:
            self._writer.write(b"carl", b"late", [b"written since"])
            await self._writer.release()
            self._world.contents[b"carl", b"late"] = b"written since"
        await self.check_whole()
        return self.said

    def _name(self, exc: RemoteError) -> None:
        """Every error has to say which object it is about."""
        if self._key not in str(exc):
            raise AssertionError(f"{self._key} is not named: {exc}") from exc

    async def _check(self) -> str:
        report = await check_remote(self._store, PLAIN, HASH_KEY, ALL)
        if report.clean:
            return ""
        told = " ".join(f"{problem.path} {problem.message}" for problem in report.problems)
        assert self._key in told, f"{self._key} is not named: {told}"
        named = {problem.session for problem in report.problems} - {""}
        return f"names it and {'a session' if len(named) == 1 else 'sessions'}" if named else "names it"

    async def _collect(self) -> str:
        """Two rounds: what the first condemns, the second deletes."""
        said = ""
        for _ in range(2):
            self._n_runs += 1
            try:
                report = await collect(self._store, PLAIN, Options(f"run{self._n_runs}", 0.0))
            except RemoteError as exc:
                self._name(exc)
                return f"refused ({exc.exit_code})"
            said = "collects" if not any("only marked" in note for note in report.notes) else "only marks"
            if any("whose manifest is gone" in note for note in report.notes):
                said += ", spares what may be needed"
        return said

    async def _open(self, name: str, *, take_over: bool) -> Node:
        identity = Identity(name, f"host-{name}", 1)
        return await open_node(self._store, PLAIN, identity, take_over=take_over, stale_s=0.0, monotonic_s=lambda: 0.0)

    async def _try_mount(self) -> None:
        name = self._world.owner if self._mount.startswith("the same") else "new"
        try:
            node = await self._open(name, take_over=self._mount.endswith("--take-over"))
        except RemoteHeld:
            self.said["mount"] = "held (37)"
        except RemoteError as exc:
            self._name(exc)
            self._is_needed = True
            self.said["mount"] = f"refused ({exc.exit_code})"
        else:
            self.said["mount"] = "mounts"
            self.said["ls"], self.said["read"] = await self._look(node)

    async def _look(self, node: Node) -> tuple[str, str]:
        """List and read everything: each name and each byte is as it was, or an error."""
        listed, read = "all", "all"
        try:
            names = [name async for page in node.iter_pages() for name in page]
        except RemoteError as exc:
            self._name(exc)
            listed, self._is_needed = "EIO", True
        else:
            expected = {session for session, _ in self._world.contents}
            # What a state that is lost said of a removal may be lost with it: unknown is not absent.
            back = {b"gone"} if self._key == state_key(self._world.owner) and self._body is None else set()
            assert len(names) == len(set(names))
            assert expected <= set(names) <= expected | back, f"listed {names}"
        for session in sorted({session for session, _ in self._world.contents}):
            try:
                found = await self._read(node, session)
            except RemoteError as exc:
                self._name(exc)
                read, self._is_needed = "EIO for what needs it", True
            else:
                wanted = {at: content for at, content in self._world.contents.items() if at[0] == session}
                assert found == wanted, f"{session!r} has {found}"
        return listed, read

    async def _read(self, node: Node, session: bytes) -> Contents:
        """What a look into the session gives."""
        found = await node.resolve(session)
        assert found is not None, f"{session!r} is absent"
        assert found[0] is not None, f"{session!r} is empty"
        manifest = await load_manifest(self._store, PLAIN, found[0])
        files = files_of(manifest)
        chunks = await BucketChunks(self._store, PLAIN, HASH_KEY, manifest).fetch(
            {cid for ids in files.values() for cid in ids}
        )
        return {(session, name): b"".join(chunks[cid] for cid in ids) for name, ids in files.items()}

    async def check_whole(self) -> None:
        """With the object where it was, everything is as it was."""
        assert await self._check() == ""
        node = await self._open("after", take_over=True)
        assert await self._look(node) == ("all", "all")
        await node.release()
        assert await self._collect() == "collects"
        assert await self._look(node) == ("all", "all")


class Said(NamedTuple):
    """What came of one trial."""

    kind: str
    fault: str
    mount: str
    said: dict[str, str]


async def try_all(state: str) -> list[Said]:
    """Every object, every fault, every mount, with the node in that *state*."""
    base = MemoryStore(now_s=now_s)
    world, _ = await make_world(state, base)
    mounts = MOUNTS if state != "held" else MOUNTS[1:2]
    found = []
    for key in sorted(world.objects):
        for fault in FAULTS:
            for nth in range(len(damaged(world.objects[key], fault))):
                for mount in mounts:
                    found.append(await _try_one(state, world, key, fault, nth, mount))
    return found


async def _try_one(state: str, world: World, key: str, fault: str, nth: int, mount: str) -> Said:
    store, writer = MemoryStore(now_s=now_s), None
    if state == "held":
        world, writer = await make_world(state, store)
    else:
        for at, content in world.objects.items():
            await store.put(at, content)
    for at in world.objects:
        store.set_age(at, 10.0)
    try:
        said = await Trial(world, store, key, damaged(world.objects[key], fault)[nth], mount, writer).run()
    except AssertionError as exc:
        raise AssertionError(f"{state}: {key} {fault}, {mount}: {exc}") from exc
    return Said(kind_of(key, world), fault, mount, said)


def _seen(said: dict[str, str]) -> str:
    """What a mount showed, in a cell."""
    if said["mount"] != "mounts":
        return said["mount"]
    if said["ls"] == said["read"] == "all":
        return "everything"
    return f"ls: {said['ls']}, read: {said['read']}"


def table(state: str, found: list[Said]) -> str:
    """The table of one state, for docs/remote-faults.md."""
    mounts = list(dict.fromkeys(one.mount for one in found))
    cells: dict[tuple[str, str], list[list[str]]] = {}
    for one in found:
        columns = cells.setdefault((one.kind, one.fault), [[] for _ in range(len(mounts) + 2)])
        columns[mounts.index(one.mount)].append(_seen(one.said))
        columns[-2].append(one.said["fsck"])
        columns[-1].append(one.said["gc"])
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (kind, fault), columns in cells.items():
        rows.setdefault((kind, tuple(" / ".join(sorted(set(column))) for column in columns)), []).append(fault)
    heads = ["object", "fault", *(f"mount with {mount}" for mount in mounts), "`fsck --remote`", "`gc`"]
    lines = [f"## {state.capitalize()}", "", f"| {' | '.join(heads)} |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for (kind, columns), faults in sorted(rows.items()):
        lines.append(f"| {' | '.join([kind, ', '.join(faults), *columns])} |")
    return "\n".join(lines) + "\n"
