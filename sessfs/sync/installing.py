"""Turning a manifest into inodes of this state."""

from __future__ import annotations

import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sessfs.chrome import PathClass, classify
from sessfs.errors import RemoteCorrupt
from sessfs.format.recipe import Recipe
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessfs.format.manifest import Manifest, NodeRecord
    from sessfs.local.chunkstore import References
    from sessfs.local.inodes import Inode, Inodes


@contextmanager
def unnoted(inodes: Inodes) -> Iterator[None]:
    """What is done inside, without an await, is no change that is published."""
    changes, inodes.changes = inodes.changes, None
    try:
        yield
    finally:
        inodes.changes = changes


def make_session(inodes: Inodes, name: bytes, now_ns: int, path_class: PathClass = PathClass.TRAVELS) -> Inode:
    """An empty session of that free name, the root directory's owner its owner. Not noted as a change."""
    with unnoted(inodes):
        root = inodes.get(ROOT_INO)
        inode = inodes.create(stat.S_IFDIR | 0o755, root.uid, root.gid, now_ns)
        inode.session, inode.nlink, inode.path_class = inode.ino, 2, path_class
        inodes.set_dentry(ROOT_INO, name, inode)
        root.nlink += 1
        inodes.touch(root)
    return inode


def _class_of(name: bytes, directory: Inode) -> PathClass:
    """Class of a restored entry. One that its name says is its node's alone has, or had, another name that travels;
    unless nothing there travels.
    """
    if directory.path_class is PathClass.NODE_ONLY:
        return PathClass.NODE_ONLY
    found = classify(name, PathClass(directory.path_class))
    return PathClass.TRAVELS if found is PathClass.NODE_ONLY else found


class Installer:
    """Turns a full manifest into inodes of this state, under the session's inode, which is empty. The class of that
    inode is the class of what is in it. Raises RemoteCorrupt, having changed nothing.
    """

    def __init__(self, inodes: Inodes, references: References, session: Ino, manifest: Manifest) -> None:
        self._inodes = inodes
        self._references = references
        self._session = session
        self._manifest = manifest
        self._records = {record.ino: record for record in manifest.nodes}
        self._numbers: dict[int, Ino] = {manifest.root: session}
        self._children: dict[int, list[tuple[bytes, int]]] = {}
        for entry in manifest.names:
            self._children.setdefault(entry.parent, []).append((entry.name, entry.ino))
        self._validate()

    def _validate(self) -> None:
        """Nothing is installed of a manifest that does not hang together."""
        what = f"session {self._manifest.session.decode(errors='replace')}"
        directories = {self._manifest.root}
        for entry in self._manifest.names:
            name = entry.name.decode(errors="replace")
            if entry.ino not in self._records:
                raise RemoteCorrupt(f"{what}: {name} names inode {entry.ino}, not there")
            parent = self._records.get(entry.parent)
            if entry.parent != self._manifest.root and (parent is None or not stat.S_ISDIR(parent.mode)):
                raise RemoteCorrupt(f"{what}: {name} lies in inode {entry.parent}, which is no directory")
            if stat.S_ISDIR(self._records[entry.ino].mode):
                # With one name each, and none for the root, the directories are a tree.
                if entry.ino in directories:
                    raise RemoteCorrupt(f"{what}: {name} is not the only name of directory {entry.ino}")
                directories.add(entry.ino)
        for record in self._manifest.nodes:
            if stat.S_ISREG(record.mode) and Recipe(record.recipe).size != record.size:
                raise RemoteCorrupt(f"{what}: inode {record.ino} has {record.size} bytes and a recipe for another size")

    def run(self) -> None:
        """Install everything. Synchronous; not noted as changes."""
        with unnoted(self._inodes):
            self._run()

    def _run(self) -> None:
        root = self._inodes.get(self._session)
        record = self._records.get(self._manifest.root)
        if record is not None:
            self._fill(root, record)
            root.nlink = 2
        stack: list[tuple[int, Inode]] = [(self._manifest.root, root)]
        while stack:
            old, directory = stack.pop()
            for name, child in self._children.get(old, []):
                if directory.ino == ROOT_INO and self._inodes.find_dentry(ROOT_INO, name) is not None:
                    continue
                inode = self._place(directory, name, child)
                if stat.S_ISDIR(inode.mode):
                    stack.append((child, inode))
        self._inodes.touch(root)

    def _place(self, directory: Inode, name: bytes, old: int) -> Inode:
        known = self._numbers.get(old)
        record = self._records[old]
        if known is None:
            inode = self._inodes.create(record.mode, record.uid, record.gid, record.ctime_ns)
            self._numbers[old] = inode.ino
            inode.session = self._session
            inode.parent = directory.ino
            inode.path_class = _class_of(name, directory)
            self._fill(inode, record)
            if stat.S_ISDIR(record.mode):
                inode.nlink = 1
            else:
                self._inodes.account(self._session, 1, record.size, record.ctime_ns)
        else:
            inode = self._inodes.get(known)
            inode.path_class = min(inode.path_class, _class_of(name, directory))
        inode.nlink += 1
        if stat.S_ISDIR(record.mode):
            directory.nlink += 1
            self._inodes.touch(directory)
        self._inodes.set_dentry(directory.ino, name, inode)
        self._inodes.touch(inode)
        return inode

    def _fill(self, inode: Inode, record: NodeRecord) -> None:
        inode.mode, inode.uid, inode.gid, inode.rdev, inode.size = (
            record.mode,
            record.uid,
            record.gid,
            record.rdev,
            record.size,
        )
        inode.atime_ns, inode.mtime_ns, inode.ctime_ns = record.atime_ns, record.mtime_ns, record.ctime_ns
        if record.target is not None:
            self._inodes.set_target(inode.ino, record.target)
        for name, value in record.xattrs.items():
            self._inodes.set_xattr(inode.ino, name, value)
        if stat.S_ISREG(record.mode) and record.size:
            recipe = Recipe(record.recipe)
            self._references.add(recipe.iter_chunks())
            self._inodes.store_recipe(inode, recipe)
            inode.cold = [(0, record.size)]
            inode.allocated = recipe.allocated
