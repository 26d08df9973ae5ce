"""What a file's content is made of, and its life: hot files, cold ranges, their order at a commit, their end.

`FileIO` adds the byte ranges. Synchronous throughout; the request loop alone.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from sessfs.vfs.ranges import subtract, total
from sessfs.vfs.replacing import Replacing
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
        self.replacing = Replacing()

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
            inode.carried = inode.times_unsynced = False
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
        if inode.carried:
            self.carry_times(inode)
        self._inodes.touch(inode, noted=False)

    def note_change(self, inode: Inode, size: int, *, soft: bool = False, is_timed: bool = True) -> None:
        """The content changed, and has *size* bytes now; *soft* as in `Inodes.touch`. Unless it *is_timed*, somebody
        else notes when: the kernel, which sends the times of what it has in its cache, and sends none where they are
        what they were. A time of ours would be seen once the kernel has forgotten its own.
        """
        now = self._clock_ns()
        delta = size - inode.size
        inode.size = size
        if is_timed:
            inode.mtime_ns = inode.ctime_ns = now
        inode.version += 1
        inode.unsynced = True
        inode.carried = False
        if self.replacing.awaits(inode):
            self.order(inode)
        self._inodes.touch(inode, soft=soft)
        self._inodes.account(inode.session, 0, delta if inode.nlink else 0, now)

    def carry_times(self, inode: Inode) -> bool:
        """Have the hot file carry the inode's mtime as its own, for a crash before the next batch; False if there is
        no hot file. A write to the hot file ends that: its mtime is then the time of the write.
        """
        if not inode.hot_no:
            return False
        inode.carried = inode.times_unsynced = True
        return self._hot.set_mtime(inode.ino, inode.hot_no, inode.mtime_ns)

    def ensure_carried(self, inode: Inode) -> None:
        """`carry_times`, if the hot file does not: when the inode's times are known to be right."""
        if not inode.carried:
            self.carry_times(inode)

    def drop_privileges(self, inode: Inode) -> None:
        """Clear set-user-id, and set-group-id where the group may execute, as a write or truncate by a user does."""
        inode.mode &= ~stat.S_ISUID
        if inode.mode & stat.S_IXGRP:
            inode.mode &= ~stat.S_ISGID
        self._inodes.touch(inode)

    # -- giving up content

    def discard(self, inode: Inode) -> None:
        """Give up all content: references go with the next batch, the hot file once that batch is durable."""
        self.replacing.end(inode)
        if inode.cold:
            self.drop_recipe(inode)
            inode.cold = []
        if inode.hot_no:
            self.retire_hot(inode)

    def retire_hot(self, inode: Inode) -> None:
        """The inode no longer needs its hot file; the file goes when the next batch is durable."""
        self.retirement.retire(inode.ino, inode.hot_no)
        inode.hot_no = 0
        inode.unsynced = inode.ordered = inode.carried = inode.times_unsynced = False
        self._ordered.pop(inode.ino, None)
        self.hot_inodes.pop(inode.ino, None)

    # -- durability

    def stand_in(self, inode: Inode) -> None:
        """The inode's content takes the place of one that may be durable, under its name or as its own: whatever a
        crash leaves is the one or the other. Does nothing for directories and the like.
        """
        if not stat.S_ISREG(inode.mode):
            return
        self.order(inode)
        if inode.opens:
            self.replacing.begin(inode, at_once=True)

    def note_handed_over(self, inode: Inode) -> None:
        """Somebody closed the file, or syncs it: the kernel has sent its pages and times before."""
        self.ensure_carried(inode)
        self.replacing.note_synced(inode)
        if not inode.opens and self.replacing.end(inode):
            self.order(inode)

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
        self.replacing.note_flushed(ordered)
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

    def take_mtime(self, inode: Inode, mtime_ns: int) -> None:
        """The hot file, after a crash, has this mtime. If that is later than all that the inode's record knows of, the
        file was synced, or at least written to, after the record was made: the time counts with the bytes.
        """
        if inode.ctime_ns < mtime_ns <= self._clock_ns():
            inode.mtime_ns = inode.ctime_ns = mtime_ns
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
