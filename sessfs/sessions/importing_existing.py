"""Is a session of the mount what is to be imported? Everything but contents, which the seal process compares."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from sessfs.chrome import PathClass
from sessfs.sessions.importing_scan import ROOT

if TYPE_CHECKING:
    from sessfs.format.manifest import NodeRecord
    from sessfs.local.inodes import Inode
    from sessfs.sessions.importing_scan import Path, Scan
    from sessfs.types import Ino
    from sessfs.vfs.volume import Volume

Recipes = dict[int, bytes]


def first_difference(volume: Volume, session: Ino, found: Scan) -> tuple[str, Recipes]:
    """(what differs first, or nothing; the packed recipes of the session's files by the number they have in *found*).
    Times of access and of status changes do not count, nor does what stays on its machine.
    """
    there = _walk(volume, session)
    here = _paths(found)
    for path in sorted(here.keys() | there.keys()):
        where = b"/".join(path).decode(errors="replace") or "its directory"
        inode, number = there.get(path), here.get(path)
        if inode is None or number is None:
            return f"{where} is only {'there' if number is None else 'in the source'}", {}
        what = _difference(volume, inode, found.nodes[number])
        if what:
            return f"{where} differs in its {what}", {}
    numbers: dict[int, Ino] = {}
    for path, number in here.items():
        if numbers.setdefault(number, there[path].ino) != there[path].ino:
            return f"{b'/'.join(path).decode(errors='replace')} is another hard link", {}
    recipes = {
        number: volume.inodes.load_recipe(there[path]).packed
        for path, number in here.items()
        if stat.S_ISREG(there[path].mode)
    }
    return "", recipes


def _difference(volume: Volume, inode: Inode, record: NodeRecord) -> str:
    """The attribute in which they differ, or nothing."""
    if inode.mode != record.mode:
        return "mode"
    if (inode.uid, inode.gid) != (record.uid, record.gid):
        return "owner"
    if inode.mtime_ns != record.mtime_ns:
        return "time"
    if stat.S_ISREG(inode.mode) and (inode.size != record.size or inode.hot_no):
        return "content"
    if stat.S_ISLNK(inode.mode) and volume.namespace.read_link(inode.ino) != record.target:
        return "target"
    xattrs = {name: value for name, value in volume.inodes.iter_xattrs(inode.ino) if name.startswith(b"user.")}
    return "extended attributes" if xattrs != record.xattrs else ""


def _walk(volume: Volume, session: Ino) -> dict[Path, Inode]:
    """Everything in the session by its path, but what stays on its machine."""
    found: dict[Path, Inode] = {(): volume.inodes.get(session)}
    stack: list[Path] = [()]
    while stack:
        path = stack.pop()
        for name, dentry in volume.inodes.iter_dentries(found[path].ino):
            inode = volume.inodes.get(dentry.ino)
            if inode.path_class is not PathClass.NODE_ONLY:
                found[*path, name] = inode
                if stat.S_ISDIR(dentry.kind):
                    stack.append((*path, name))
    return found


def _paths(found: Scan) -> dict[Path, int]:
    """Number of each entry by its path; names stand in the order of the walk, parents first."""
    paths: dict[int, Path] = {ROOT: ()}
    numbers: dict[Path, int] = {(): ROOT}
    for record in found.names:
        path = (*paths[record.parent], record.name)
        paths.setdefault(record.ino, path)
        numbers[path] = record.ino
    return numbers
