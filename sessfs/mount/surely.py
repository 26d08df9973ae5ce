"""Publishing for those who rely on it: the remote is asked whether it has what it got."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sessfs.errors import RemoteCorrupt
from sessfs.vfs.background import failure_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.sync.looking import Looker

log = logging.getLogger(__name__)
LOOK_EVERY_S = 6 * 3600.0
"""Two requests each time, and a few more where something was uploaded: next to nothing beside a heartbeat of 20 s."""


class SurePublisher:
    """For `sync`, for an unmount, and now and then. The request loop alone."""

    def __init__(
        self,
        looker: Looker,
        publish: Callable[[], Awaitable[None]],
        checkpoint: Callable[[], Awaitable[None]],
        where: str,
    ) -> None:
        """*publish* is the write-back's, *checkpoint* the node's; *where* is the remote's URL, for people."""
        self.looker = looker
        self._publish = publish
        self._checkpoint = checkpoint
        self._where = where
        self.problem = ""
        """Why the remote is known not to have everything that it says it has; empty while nothing speaks for that."""

    async def publish(self) -> None:
        """As `Writeback.publish`; and what the remote has not of what was uploaded since it was asked last, is sent
        once more. Raises RemoteCorrupt where it has not that either.
        """
        await self.looker.take_notes()
        await self._publish()
        if not await self.looker.look_at_new():
            self.problem = (
                f"{self._where} does not keep what is sent, though it says so: look at the proxy or the endpoint; "
                "everything stays here until it does"
            )
            await self._publish()
            if not await self.looker.look_at_new():
                raise RemoteCorrupt(self.problem)
        self.problem = ""
        if self.looker.owes_checkpoint:
            await self._checkpoint()
            self.looker.owes_checkpoint = False

    async def run(self) -> None:
        """Take over what checks have found, then publish surely now and then, for ever."""
        problem = await failure_of(self.looker.take_notes)
        while True:
            if problem:
                log.warning("whether the remote has everything is not known: %s", problem)
            await trio.sleep(LOOK_EVERY_S)
            problem = await failure_of(self.publish)
