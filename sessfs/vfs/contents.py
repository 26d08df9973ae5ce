"""What a file's content is made of, and its life: hot files, cold ranges, their order at a commit, their end.

`FileIO` adds the byte ranges. Synchronous throughout; the request loop alone.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from sessfs.vfs.ranges import subtract, total
from sessfs.vfs.retirement import Retirement

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.chunkstore import References
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.types import Ino


class Contents:
    """The contents of all inodes."""

    def __init__(
        self,
        inodes: Inodes,
        hot: HotFiles,
        references: References,
        clock_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._monotonic_s = monotonic_s
        self._inodes = inodes
        self._hot = hot
        self._references = references
        self._clock_ns = clock_ns
        self._ordered: dict[Ino, Inode] = {}
        self.hot_inodes: dict[Ino, Inode] = {}
        """Every inode that has a hot file, in the order of its last change."""
        self.retirement = Retirement()

    def make_hot(self, inode: Inode, start: int, end: int) -> None:
        """[start, end) is in the hot file from now on, and no longer cold."""
        inode.cold = subtract(inode.cold, start, end)
        inode.version += 1
        inode.unsynced = True
        self.order(inode)
        self._inodes.touch(inode)
        if not inode.cold:
            self.drop_recipe(inode)

    def drop_recipe(self, inode: Inode) -> None:
        """Nothing of the content is in chunks any more."""
        recipe = self._inodes.load_recipe(inode)
        self._references.remove(recipe.iter_chunks())
        self._inodes.store_recipe(inode, None)

    def ensure_hot(self, inode: Inode) -> None:
        """Give the inode a hot file of its size, unless it has one; it counts as just changed."""
        if not inode.hot_no:
            number = self._inodes.allocate_number()
            self._hot.create(inode.ino, number, inode.size)
            inode.hot_no = number
            self._inodes.touch(inode)
        inode.changed_s = self._monotonic_s()
        self.hot_inodes.pop(inode.ino, None)
        self.hot_inodes[inode.ino] = inode

    def replace_hot(self, inode: Inode, number: int) -> None:
        """The content is in hot file *number* as well, which is the inode's from now on; the other is the caller's. The
        copy stands in for bytes that may be durable in the original.
        """
        inode.hot_no = number
        inode.unsynced = True
        self.order(inode)
        self._inodes.touch(inode, noted=False)

    def note_change(self, inode: Inode, size: int, *, soft: bool = False) -> None:
        """The content changed, and has *size* bytes now; *soft* as in `Inodes.touch`."""
        now = self._clock_ns()
        delta = size - inode.size
        inode.size = size
        inode.mtime_ns = inode.ctime_ns = now
        inode.version += 1
        inode.unsynced = True
        self._inodes.touch(inode, soft=soft)
        self._inodes.account(inode.session, 0, delta if inode.nlink else 0, now)

    def drop_privileges(self, inode: Inode) -> None:
        """Clear set-user-id, and set-group-id where the group may execute, as a write or truncate by a user does."""
        inode.mode &= ~stat.S_ISUID
        if inode.mode & stat.S_IXGRP:
            inode.mode &= ~stat.S_ISGID
        self._inodes.touch(inode)

    # -- giving up content

    def discard(self, inode: Inode) -> None:
        """Give up all content: references go with the next batch, the hot file once that batch is durable."""
        if inode.cold:
            self.drop_recipe(inode)
            inode.cold = []
        if inode.hot_no:
            self.retire_hot(inode)

    def retire_hot(self, inode: Inode) -> None:
        """The inode no longer needs its hot file; the file goes when the next batch is durable."""
        self.retirement.retire(inode.ino, inode.hot_no)
        inode.hot_no = 0
        inode.unsynced = inode.ordered = False
        self._ordered.pop(inode.ino, None)
        self.hot_inodes.pop(inode.ino, None)

    # -- durability

    def order(self, inode: Inode) -> None:
        """The next commit flushes the inode's hot file first."""
        if inode.unsynced and inode.hot_no:
            inode.ordered = True
            self._ordered[inode.ino] = inode

    def take_ordered(self) -> list[Inode]:
        """At a cut: the inodes whose hot files must be flushed before the batch; they count as flushed from here on,
        so a commit that fails must `restore_ordered` them.
        """
        ordered = [inode for inode in self._ordered.values() if inode.hot_no]
        self._ordered.clear()
        for inode in ordered:
            inode.ordered = inode.unsynced = False
        return ordered

    def restore_ordered(self, inodes: list[Inode]) -> None:
        """Their flush did not happen."""
        for inode in inodes:
            inode.unsynced = True
            self.order(inode)

    # -- at start

    def adopt(self, inode: Inode) -> None:
        """An inode whose hot file was there when the volume was opened: counts as just changed."""
        inode.changed_s = self._monotonic_s()
        inode.unsynced = True
        self.hot_inodes[inode.ino] = inode

    def take_length(self, inode: Inode, length: int) -> None:
        """The hot file, after a crash, has *length* bytes, and so has the file. Sealed content that reaches beyond is
        given up; the extent that the end divides was brought into the hot file before that was cut.
        """
        if inode.nlink:
            self._inodes.account(inode.session, 0, length - inode.size, inode.mtime_ns)
        inode.size = length
        if inode.cold and inode.cold[-1][1] > length:
            whole = [extent.end for extent in self._inodes.load_recipe(inode) if extent.end <= length]
            inode.cold = subtract(inode.cold, whole[-1] if whole else 0, inode.cold[-1][1])
            if not inode.cold:
                self.drop_recipe(inode)
        self._inodes.touch(inode)

    def adopt_hot_files(self) -> None:
        """Adopt every hot file of a state that was closed cleanly."""
        for ino, number, _ in self._hot.iter_files():
            inode = self._inodes.find(ino)
            if inode is not None and inode.hot_no == number:
                self.adopt(inode)

    # -- measures

    def allocated_bytes(self, inode: Inode) -> int:
        """Bytes of content that are not holes, as `du` counts them (a hot file by what it takes on its disk)."""
        if not inode.hot_no:
            return inode.allocated
        return self._hot.last_allocated_bytes(inode.ino, inode.hot_no) + total(inode.cold)

    def hot_bytes(self) -> int:
        """Bytes of disk that all hot files take."""
        return sum(self._hot.allocated_bytes(i.ino, i.hot_no) for i in self.hot_inodes.values())
