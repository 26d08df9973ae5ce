"""Control verbs behind `sessfs check`: whether a session is in use, and noting what a check of a snapshot found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.lives_side import LivesSide


class CheckVerbs:
    """Both take the session's name as `session`."""

    def __init__(self, side: LivesSide) -> None:
        self._history = side.history
        self._lives = side.lives

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {"in_use": self._in_use, "judge": self._judge}

    async def _in_use(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        name = os.fsencode(params["session"])
        await self._lives.locate(name)
        return {"in_use": self._lives.in_use(name)}

    async def _judge(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """*sequence* is *verdict*: "good" or "bad"; durable on return."""
        session = await self._lives.locate(os.fsencode(params["session"]))
        self._history.judge(session, params["sequence"], params["verdict"])
        await self._lives.settled()
        return {}
