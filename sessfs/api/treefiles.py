"""A Tree as what the checks of a profile read."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from sessfs.errors import SessfsError
from sessfs.sessions.checking_files import Entry

if TYPE_CHECKING:
    from sessfs.sessions.trees import Tree, TreeNode


class TreeFiles:
    """Implements Files over *tree*, which it lists once."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._nodes: dict[bytes, TreeNode] = {}
        self._entries: dict[bytes, list[Entry]] = {}
        for node in tree.walk():
            self._nodes[node.path] = node
            if node.is_dir:
                self._entries[node.path] = []
            if node.path and (node.is_dir or node.is_file or node.is_symlink):
                directory, name = os.path.split(node.path)
                self._entries[directory].append(Entry(name, node.is_dir, node.size, node.target or b""))

    def entries(self, directory: bytes) -> list[Entry]:
        """See Files."""
        if directory not in self._entries:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._entries[directory]

    def read(self, path: bytes, length: int | None = None) -> bytes:
        """See Files."""
        node = self._nodes.get(path)
        if node is None or not node.is_file:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            return self._tree.read(node, 0, node.size if length is None else length)
        except SessfsError as exc:
            raise OSError(exc.errno, str(exc)) from exc
