"""A session of an open volume as a Tree, for a thread that is not the volume's own."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Protocol, TypeVar

from sessfs.sessions.trees import XATTR_PREFIX, TreeNode, missing
from sessfs.types import Ino

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from sessfs.local.inodes import Inode
    from sessfs.vfs.volume import Volume

T = TypeVar("T")
PAGE = 200
"""Nodes that are looked up in one go."""


class Call(Protocol):
    """Runs an async function in the volume's loop, from another thread."""

    def __call__(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Return or raise what it does."""


class Do(Protocol):
    """Runs a plain function in the volume's loop, from another thread."""

    def __call__(self, function: Callable[..., T], *args: object) -> T:
        """Return or raise what it does."""


class VolumeTree:
    """Implements Tree. What changes meanwhile may be seen or not."""

    def __init__(self, volume: Volume, session: Ino, call: Call, do: Do) -> None:
        self._volume = volume
        self._session = session
        self._call = call
        self._do = do

    def walk(self) -> Iterator[TreeNode]:
        """See Tree."""
        stack = [(b"", self._session)]
        while stack:
            page, stack = self._do(self._walk_page, stack)
            yield from page

    def _walk_page(self, stack: list[tuple[bytes, Ino]]) -> tuple[list[TreeNode], list[tuple[bytes, Ino]]]:
        page: list[TreeNode] = []
        while stack and len(page) < PAGE:
            path, ino = stack.pop()
            inode = self._volume.inodes.find(ino)
            if inode is None:
                continue
            page.append(self._node(path, inode))
            if stat.S_ISDIR(inode.mode):
                below = [(os.path.join(path, name), d.ino) for name, d in self._volume.inodes.iter_dentries(ino)]
                stack.extend(sorted(below, reverse=True))
        return page, stack

    def find(self, path: bytes) -> TreeNode:
        """See Tree."""
        return self._do(self._find, path)

    def _find(self, path: bytes) -> TreeNode:
        ino = self._session
        for name in path.split(b"/") if path else ():
            dentry = self._volume.inodes.find_dentry(ino, name)
            if dentry is None:
                raise missing(path)
            ino = dentry.ino
        return self._node(path, self._volume.inodes.get(ino))

    def _node(self, path: bytes, inode: Inode) -> TreeNode:
        xattrs = {n: v for n, v in self._volume.inodes.iter_xattrs(inode.ino) if n.startswith(XATTR_PREFIX)}
        return TreeNode(
            path,
            inode.ino,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.nlink,
            inode.rdev,
            inode.size,
            self._volume.fileio.allocated_bytes(inode) if stat.S_ISREG(inode.mode) else 0,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
            self._volume.namespace.read_link(inode.ino) if stat.S_ISLNK(inode.mode) else None,
            xattrs,
        )

    def spans(self, node: TreeNode) -> Iterator[tuple[int, int]]:
        """See Tree."""
        return iter(self._do(self._spans, node))

    def _spans(self, node: TreeNode) -> list[tuple[int, int]]:
        """Of a sealed file the holes are known; of a hot one they read as zeros like the rest."""
        inode = self._volume.namespace.get(Ino(node.ino))
        if inode.hot_no or not inode.cold:
            return [(0, node.size)] if inode.hot_no and node.size else []
        found: list[tuple[int, int]] = []
        for extent in self._volume.inodes.load_recipe(inode):
            if extent.is_hole:
                continue
            if found and found[-1][1] == extent.start:
                found[-1] = (found[-1][0], extent.end)
            else:
                found.append((extent.start, extent.end))
        return found

    def read(self, node: TreeNode, offset: int, length: int) -> bytes:
        """See Tree."""
        return self._call(self._read, node, offset, length)

    async def _read(self, node: TreeNode, offset: int, length: int) -> bytes:
        return await self._volume.fileio.read(self._volume.namespace.get(Ino(node.ino)), offset, length)

    def warm(self, nodes: Sequence[TreeNode]) -> None:
        """See Tree: all that there is is here."""

    def close(self) -> None:
        """See Tree."""
