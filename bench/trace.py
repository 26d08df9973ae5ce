"""Recorded file operations of a Chrome: the trace file, and the tree that they make of an empty profile.

A trace is a list of operations on a profile directory, with handles for open files. Every operation in it fits the tree
that those before it made (`Model` drops the few that don't), so a replay knows what each must answer and what must be
in the files at any point. Contents are not recorded, only sizes: `Content` makes them up.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
import random
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

VERSION: Final = 1
KINDS: Final = (
    "open", "close", "read", "write", "truncate", "fsync", "fdatasync", "stat", "lstat", "access", "fstat", "chown",
    "list", "map", "allocate", "mkdir", "rmdir", "unlink", "rename", "symlink", "readlink", "statfs",
)  # fmt: skip
SHARED_BY_USERS: Final = ("/CacheStorage/", "/Cache/", "/Code Cache/")
"""Where all users' Chromes keep the same bytes: the page's scripts."""
POOL_BYTES: Final = 8 << 20
STRIDE: Final = 40_503
AT_END: Final = -1
"""Offset of a write that appends, until the model has said where that is."""


class Op(NamedTuple):
    """One operation, *at_us* after the trace's start. *path* and *other* are relative to the profile, "" is the profile
    itself. *x*, *y*, *z* by kind: open: flags of open(2); read: offset, bytes asked, bytes got; write: offset, bytes,
    1 when all users have the same; truncate: size; list: z names; map, allocate: offset, bytes. *errno* is 0 or what
    the call fails with.
    """

    at_us: int
    kind: str
    handle: int = -1
    path: str = ""
    other: str = ""
    x: int = 0
    y: int = 0
    z: int = 0
    errno: int = 0


def save(path: Path, ops: Sequence[Op], about: dict[str, Any]) -> None:
    """Write a trace: columns, names once, compressed."""
    names = sorted({name for op in ops for name in (op.path, op.other)})
    index = {name: number for number, name in enumerate(names)}
    times = [op.at_us for op in ops]
    columns = {
        "at_us": [now - before for now, before in zip(times, [0, *times], strict=False)],
        "kind": [KINDS.index(op.kind) for op in ops],
        "path": [index[op.path] for op in ops],
        "other": [index[op.other] for op in ops],
        **{name: [getattr(op, name) for op in ops] for name in ("handle", "x", "y", "z", "errno")},
    }
    record = {"version": VERSION, "about": about, "kinds": KINDS, "names": names, "columns": columns}
    path.write_bytes(lzma.compress(json.dumps(record, separators=(",", ":")).encode(), preset=9))


def load(path: Path) -> tuple[list[Op], dict[str, Any]]:
    """The trace at *path*, and what it says of itself. Raises ValueError for another version."""
    record = json.loads(lzma.decompress(path.read_bytes()))
    if record["version"] != VERSION:
        raise ValueError(f"{path} has version {record['version']}, not {VERSION}: record it anew")
    columns, names, kinds = record["columns"], record["names"], record["kinds"]
    rows = zip(*(columns[name] for name in ("at_us", "kind", "handle", "path", "other", "x", "y", "z", "errno")))  # noqa: B905
    at_us = 0
    ops = []
    for delta, kind, handle, name, other, *numbers in rows:
        at_us += delta
        ops.append(Op(at_us, kinds[kind], handle, names[name], names[other], *numbers))
    return ops, record["about"]


# -- contents


class Content:
    """What one user's writes contain: the same at each call, and nobody else's unless it is shared."""

    def __init__(self, pool: bytes, user: str) -> None:
        table = list(range(256))
        random.Random(user).shuffle(table)
        self._pool = pool
        self._table = bytes(table)

    def piece(self, op_index: int, offset: int, length: int, *, shared: bool) -> bytes:
        """Bytes [offset, offset + length) of what operation *op_index* writes."""
        start = (op_index * STRIDE) % (len(self._pool) // 2) + offset
        piece = self._pool[start : start + length]
        if len(piece) != length:
            raise ValueError(f"operation {op_index} writes more than is in the pool")
        return piece if shared else piece.translate(self._table)


# -- the tree


class Extent(NamedTuple):
    """Bytes [start, end) of a file: what operation *op* wrote, from its byte *skip* on."""

    start: int
    end: int
    op: int
    skip: int
    shared: bool


@dataclass
class Node:
    """One file, directory or symlink, as it is at some point of the trace; *extents* in order, zeros between them."""

    kind: Literal["file", "directory", "symlink"]
    size: int = 0
    extents: list[Extent] = field(default_factory=list)
    shared: bool = False

    def cut(self, start: int, end: int) -> None:
        """Forget what bytes [start, end) contain."""
        if not self.extents or self.extents[-1].end <= start:
            return
        first = max(bisect_right(self.extents, start, key=lambda each: each.start) - 1, 0)
        kept = self.extents[:first]
        for each in self.extents[first:]:
            if each.start < start:
                kept.append(each._replace(end=min(each.end, start)))
            if each.end > end:
                skipped = max(end - each.start, 0)
                kept.append(each._replace(start=each.start + skipped, skip=each.skip + skipped))
        self.extents = [each for each in kept if each.start < each.end]

    def write(self, op: int, offset: int, length: int) -> None:
        """Take what operation *op* writes."""
        self.cut(offset, offset + length)
        self.extents.append(Extent(offset, offset + length, op, 0, self.shared))
        if len(self.extents) > 1 and self.extents[-2].start > offset:
            self.extents.sort()
        self.size = max(self.size, offset + length)

    def resize(self, size: int) -> None:
        """Cut or extend with zeros."""
        if size < self.size:
            self.cut(size, self.size)
        self.size = size

    def content(self, content: Content) -> bytes:
        """All bytes of a file."""
        whole = bytearray(self.size)
        for each in self.extents:
            length = each.end - each.start
            whole[each.start : each.end] = content.piece(each.op, each.skip, length, shared=each.shared)
        return bytes(whole)


class Model:
    """The tree that operations make of an empty profile."""

    def __init__(self) -> None:
        self.tree: dict[str, Node] = {"": Node("directory")}
        self._handles: dict[int, Node] = {}
        self._rules: dict[str, Callable[[int, Op], Op | None]] = {
            "open": self._open,
            "close": self._close,
            "rename": self._rename,
            "mkdir": lambda _, op: self._make(op, Node("directory")),
            "symlink": lambda _, op: self._make(op, Node("symlink")),
            "unlink": lambda _, op: self._remove(op, ("file", "symlink")),
            "rmdir": lambda _, op: self._remove(op, ("directory",)),
            "readlink": self._readlink,
            "lstat": lambda _, op: self._look(op, ("file", "directory", "symlink")),
            **dict.fromkeys(("stat", "access", "statfs"), lambda _, op: self._look(op, ("file", "directory"))),
        }

    def apply(self, index: int, op: Op) -> Op | None:
        """Do *op*, the *index*-th of the trace, and return it with what the tree knows better; None when it does not
        fit, then nothing is changed.
        """
        rule = self._rules.get(op.kind)
        return rule(index, op) if rule is not None else self._on_handle(index, op)

    def names_in(self, directory: str) -> list[str]:
        """Names in *directory*."""
        prefix = f"{directory}/" if directory else ""
        return [
            path[len(prefix) :]
            for path in self.tree
            if path and path.startswith(prefix) and "/" not in path[len(prefix) :]
        ]

    def _fails(self, op: Op) -> int | None:
        """ENOENT when a directory on the way to *op*'s path is missing; None when something else is in the way."""
        parent = self.tree.get(op.path.rpartition("/")[0])
        if parent is None:
            return errno.ENOENT
        return 0 if parent.kind == "directory" else None

    def _open(self, index: int, op: Op) -> Op | None:
        node = self.tree.get(op.path)
        expected = self._fails(op)
        if expected == 0:
            if node is None:
                expected = 0 if op.x & os.O_CREAT else errno.ENOENT
            elif op.x & os.O_CREAT and op.x & os.O_EXCL:
                expected = errno.EEXIST
        if expected != op.errno or (node is not None and node.kind == "symlink"):
            return None
        if op.errno:
            return op
        if node is not None and node.kind == "directory":
            op = op._replace(x=os.O_DIRECTORY)
        if node is None:
            shared = any(part in f"/{op.path}" for part in SHARED_BY_USERS)
            node = self.tree[op.path] = Node("file", shared=shared)
        if op.x & os.O_TRUNC:
            node.resize(0)
        self._handles[op.handle] = node
        return op

    def _close(self, index: int, op: Op) -> Op | None:
        return op if self._handles.pop(op.handle, None) is not None else None

    def _make(self, op: Op, node: Node) -> Op | None:
        expected = self._fails(op) or (errno.EEXIST if op.path in self.tree else 0)
        if expected != op.errno:
            return None
        if not op.errno:
            self.tree[op.path] = node
        return op

    def _look(self, op: Op, kinds: tuple[str, ...]) -> Op | None:
        node = self.tree.get(op.path)
        if node is not None and node.kind not in kinds:
            return None
        return op if op.errno == (errno.ENOENT if node is None else 0) else None

    def _readlink(self, index: int, op: Op) -> Op | None:
        node = self.tree.get(op.path)
        is_other = node is not None and node.kind != "symlink"
        expected = errno.EINVAL if is_other else errno.ENOENT if node is None else 0
        return op if op.errno == expected else None

    def _remove(self, op: Op, kinds: tuple[str, ...]) -> Op | None:
        node = self.tree.get(op.path)
        if node is None:
            return op if op.errno == errno.ENOENT else None
        if node.kind not in kinds or not op.path:
            return None
        full = node.kind == "directory" and bool(self.names_in(op.path))
        if op.errno != (errno.ENOTEMPTY if full else 0):
            return None
        if not op.errno:
            del self.tree[op.path]
        return op

    def _rename(self, index: int, op: Op) -> Op | None:
        node, over = self.tree.get(op.path), self.tree.get(op.other)
        if node is None:
            return op if op.errno == errno.ENOENT else None
        if op.errno or self.tree.get(op.other.rpartition("/")[0]) is None:
            return None
        if over is not None and (over.kind != node.kind or self.names_in(op.other)):
            return None
        below = [path for path in self.tree if path.startswith(f"{op.path}/")]
        self.tree[op.other] = self.tree.pop(op.path)
        for path in below:
            self.tree[op.other + path[len(op.path) :]] = self.tree.pop(path)
        return op

    def _on_handle(self, index: int, op: Op) -> Op | None:
        node = self._handles.get(op.handle)
        if node is None or op.errno:
            return None
        if op.kind == "list":
            if node.kind != "directory":
                return None
            path = next((path for path, each in self.tree.items() if each is node), None)
            return None if path is None else op._replace(z=len(self.names_in(path)))
        if node.kind != "file":
            return op if op.kind in ("fsync", "fdatasync", "fstat") else None
        return self._on_file(index, op, node)

    def _on_file(self, index: int, op: Op, node: Node) -> Op:
        if op.kind == "read":
            return op._replace(z=max(min(op.y, node.size - op.x), 0))
        if op.kind == "write":
            offset = node.size if op.x == AT_END else op.x
            node.write(index, offset, op.y)
            return op._replace(x=offset, z=int(node.shared))
        if op.kind == "truncate":
            node.resize(op.x)
        elif op.kind == "allocate":
            node.resize(max(node.size, op.x + op.y))
        return op


def fitting(ops: Iterable[Op]) -> Iterator[Op]:
    """Those of *ops* that fit what those before them made, with what the tree knows better of them."""
    model = Model()
    index = 0
    for op in ops:
        fits = model.apply(index, op)
        if fits is not None:
            index += 1
            yield fits


def tree_after(ops: Sequence[Op]) -> dict[str, Node]:
    """The tree that *ops* of a trace make. Raises ValueError when one of them does not fit."""
    model = Model()
    for index, op in enumerate(ops):
        if model.apply(index, op) is None:
            raise ValueError(f"operation {index} of the trace does not fit: {op}")
    return model.tree
