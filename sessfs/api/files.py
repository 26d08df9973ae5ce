"""A session's file as Python's file object: seekable, read piece by piece."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

from sessfs.errors import PosixError
from sessfs.sessions.trees import show

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from sessfs.sessions.trees import Tree, TreeNode

BUFFER_BYTES = 256 << 10


class _RawFile(io.RawIOBase):
    """Reads one node of a tree, which it closes with itself."""

    def __init__(self, tree: Tree, node: TreeNode) -> None:
        super().__init__()
        self._tree = tree
        self._node = node
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._node.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        part = self._tree.read(self._node, self._at, len(view))
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._tree.close()
        super().close()


def open_file(tree: Tree, path: bytes) -> io.BufferedReader:
    """A file object over the regular file at *path*, which closes *tree* when it is closed. Raises PosixError: ENOENT,
    EISDIR, ELOOP for a symlink, EINVAL for others.
    """
    node = tree.find(path)
    if node.is_dir:
        raise PosixError(errno.EISDIR, f"{show(path)} is a directory")
    if node.is_symlink:
        raise PosixError(errno.ELOOP, f"{show(path)} is a symlink to {show(node.target or b'')}: open that")
    if not node.is_file:
        raise PosixError(errno.EINVAL, f"{show(path)} is no regular file")
    return io.BufferedReader(_RawFile(tree, node), BUFFER_BYTES)
