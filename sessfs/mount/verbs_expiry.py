"""The control verbs `expire`, `trash_list`, `trash_restore` and `trash_empty`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from sessfs.sessions.usage import rfc3339

if TYPE_CHECKING:
    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.policies import Policies
    from sessfs.sessions.trash import Trashed


class ExpiryVerbs:
    """Retention and trash."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {
            "expire": self._expire,
            "trash_list": self._list,
            "trash_restore": self._restore,
            "trash_empty": self._empty,
        }

    async def _expire(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        done = await self._policies.retention.round(
            dry_run=bool(params.get("dry_run")), trust_clock=bool(params.get("trust_clock"))
        )
        answer: dict[str, Any] = msgspec.to_builtins(done)
        return answer

    async def _list(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return {"trash": [self._row(one) for one in await self._policies.trash.entries()]}

    def _row(self, one: Trashed) -> dict[str, Any]:
        return {
            "name": os.fsdecode(one.name),
            "entry": os.fsdecode(one.entry),
            "removed": rfc3339(one.removed_ns),
            "gone_for_good": rfc3339(self._policies.retention.purged_ns(one)),
            "logical_bytes": self._policies.logical_bytes(one.session),
        }

    async def _restore(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """*name*: its name before, or in the trash; *as_name*: its name from now on, None for the one before."""
        as_name = os.fsencode(params["as_name"]) if params.get("as_name") is not None else None
        name = await self._policies.trash.restore(os.fsencode(params["name"]), as_name)
        return {"name": os.fsdecode(name)}

    async def _empty(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """*name*: only what had that name; None for all."""
        wanted = os.fsencode(params["name"]) if params.get("name") is not None else None
        gone = await self._policies.trash.purge(wanted=wanted)
        return {"gone": [os.fsdecode(one.name) for one in gone]}
