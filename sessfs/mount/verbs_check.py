"""Control verbs behind `sessfs check`: whether a session is in use, and noting what a check of a snapshot found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sessfs.sync.history import GOOD

if TYPE_CHECKING:
    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.lives_side import LivesSide
    from sessfs.mount.policies import Policies


class CheckVerbs:
    """All take the session's name as `session`."""

    def __init__(self, side: LivesSide, policies: Policies) -> None:
        self._suspects = policies.suspects
        self._history = side.history
        self._lives = side.lives

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {"in_use": self._in_use, "judge": self._judge, "checked": self._checked}

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

    async def _checked(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """The session as it is was checked, with this *verdict*: a good one takes back what made it suspect."""
        session = await self._lives.locate(os.fsencode(params["session"]))
        if params["verdict"] == GOOD:
            self._suspects.clear(session)
            await self._lives.settled()
        return {}
