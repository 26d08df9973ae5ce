"""In which order a directory is listed: by a position that is the name's own.

A program may read a directory in parts, and come back to any position with any handle, also after a restart, while
names come and go. So a position depends on nothing but the name: a name that stays is listed exactly once, and one that
is removed and made again, or replaced, is where it was. Nothing of it is stored.

Names of the same position, one in 2**45 pairs, are moved up to the next free one; that lasts as long as the listing is
kept, which is while anybody has the directory open.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessfs.types import Ino

POSITION_BITS: Final = 49
_PRIME: Final = 45_917_362_085_401
"""Two names have the same home only if their difference as numbers is a multiple of it: never those that differ in
nothing but five neighbouring bytes.
"""
_SPARE_BITS: Final = 3
"""Room between two homes."""


def home_of(name: bytes) -> int:
    """The position of the name, unless another name is there already: above 2, below 2**POSITION_BITS."""
    return (int.from_bytes(name, "big") % _PRIME + 1) << _SPARE_BITS


class Listing:
    """The names of one directory in the order of their positions, as they are now."""

    __slots__ = ("_moved", "inos", "kinds", "names", "positions")

    def __init__(self, names: Sequence[bytes], values: Sequence[tuple[int, int]]) -> None:
        """*names* in any order, each once, and for each (inode, file type as the S_IFMT bits of a mode)."""
        from_bytes = int.from_bytes
        # As `home_of` has it: a call for each name would take as long as all the rest.
        homes = [(from_bytes(name, "big") % _PRIME + 1) << _SPARE_BITS for name in names]
        order = sorted(range(len(names)), key=homes.__getitem__)
        have_twins = len(set(homes)) < len(homes)
        if have_twins:
            order.sort(key=lambda at: (homes[at], names[at]))
        self.positions = array("Q", [homes[at] for at in order])
        self.names = [names[at] for at in order]
        self.inos = array("Q", [values[at][0] for at in order])
        self.kinds = bytearray([values[at][1] >> 12 for at in order])
        """File types as d_type has them."""
        self._moved: dict[bytes, int] = {}
        """Positions of the names that are not at home."""
        if have_twins:
            self._spread()

    def _spread(self) -> None:
        last = 0
        for index, position in enumerate(self.positions):
            if position <= last:
                self.positions[index] = self._moved[self.names[index]] = position = last + 1
            last = position

    def __len__(self) -> int:
        return len(self.names)

    def after(self, position: int) -> int:
        """Index of the first name whose position is greater."""
        return bisect_right(self.positions, position)

    def put(self, name: bytes, ino: Ino, kind: int) -> None:
        """The name is there from now on, or stands for another inode; *kind* are the S_IFMT bits of its mode."""
        position = self._moved.get(name) or home_of(name)
        index = bisect_left(self.positions, position)
        while index < len(self.names) and self.positions[index] == position:
            if self.names[index] == name:
                self.inos[index], self.kinds[index] = ino, kind >> 12
                return
            index, position = index + 1, position + 1
        if position != home_of(name):
            self._moved[name] = position
        self.positions.insert(index, position)
        self.names.insert(index, name)
        self.inos.insert(index, ino)
        self.kinds.insert(index, kind >> 12)

    def remove(self, name: bytes) -> None:
        """The name is there no more; fine when it was not."""
        position = self._moved.pop(name, 0) or home_of(name)
        index = bisect_left(self.positions, position)
        if index < len(self.names) and self.names[index] == name:
            del self.positions[index], self.names[index], self.inos[index], self.kinds[index]


class Unchanged:
    """A time in which no name of one directory came, went or changed. *is_settled* is its owner's."""

    __slots__ = ("is_settled",)

    def __init__(self, *, is_settled: bool) -> None:
        self.is_settled = is_settled


class Listings:
    """The listings that somebody reads, one for each directory however many read it, kept up to date."""

    def __init__(self, read: Callable[[Ino], tuple[Sequence[bytes], Sequence[tuple[int, int]]]]) -> None:
        """*read* gives a directory's names and what they stand for, as `Listing` takes them."""
        self._read = read
        self._kept: dict[Ino, Listing] = {}
        self.unchanged: dict[Ino, Unchanged] = {}
        """Directories in which no name came, went or changed since they were put in here."""

    def get(self, directory: Ino) -> Listing:
        """The directory's listing, from now on up to date until `drop`."""
        listing = self._kept.get(directory)
        if listing is None:
            listing = self._kept[directory] = Listing(*self._read(directory))
        return listing

    def drop(self, directory: Ino) -> None:
        """Nobody reads the directory any more."""
        self._kept.pop(directory, None)

    def note_name(self, directory: Ino, name: bytes, ino: Ino, kind: int) -> None:
        """The name is there from now on, or stands for another inode."""
        self.unchanged.pop(directory, None)
        listing = self._kept.get(directory)
        if listing is not None:
            listing.put(name, ino, kind)

    def note_gone(self, directory: Ino, name: bytes) -> None:
        """The name is there no more."""
        self.unchanged.pop(directory, None)
        listing = self._kept.get(directory)
        if listing is not None:
            listing.remove(name)
