"""Bringing here, before a cut, what programs wrote to files that they have not closed, where a cut must not miss it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sessfs.types import Ino
    from sessfs.vfs.replacing import Replacing


LOOKS = 5
LOOK_S = 0.001


class Unwritten:
    """What the kernel holds of files that stand in for others."""

    def __init__(self, replacing: Replacing) -> None:
        self._replacing = replacing
        self._bringing = trio.Lock()
        self.write_back: Callable[[Sequence[Ino]], Awaitable[None]] | None = None
        """Has the kernel hand over what it holds of files; None where there is no kernel that holds any."""

    async def bring(self) -> None:
        """Return when what programs wrote to files that stand in for others (`Contents.stand_in`) is here, though they
        have not closed them: before any cut, or it would have nothing in the place of something.
        """
        if self.write_back is None:
            return
        for _ in range(LOOKS):
            # Most are closed right after, which brings all of it.
            if not self._replacing.has_unwritten:
                break
            await trio.sleep(LOOK_S)
        while self._replacing.has_unwritten or self._bringing.locked():
            async with self._bringing:
                unwritten = self._replacing.take_unwritten()
                if unwritten:
                    await self.write_back([inode.ino for inode in unwritten])
