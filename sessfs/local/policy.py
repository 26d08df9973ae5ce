"""What the operator set and retention noted, to outlive a mount: the table `policy` of `meta/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sessfs.local.db import Database, TableName

if TYPE_CHECKING:
    from collections.abc import Mapping

POLICY = TableName("policy")
MOUNT_KEY = b"mount"
CLOCK_KEY = b"clock"
SESSION_PREFIX = b"session/"


class MountLimits(msgspec.Struct, frozen=True, array_like=True):
    """What `sessfs limit` set for the whole mount: None as the settings say, 0 off, else the limit."""

    max_sessions: int | None = None
    max_active: int | None = None
    max_session_bytes: int | None = None
    max_unique_bytes: int | None = None


class SessionLimits(msgspec.Struct, frozen=True, array_like=True):
    """What `sessfs limit` set for the session of one name: None as for the whole mount, 0 off, else the limit."""

    max_session_bytes: int | None = None
    max_unique_bytes: int | None = None


class ClockRecord(msgspec.Struct, frozen=True, array_like=True):
    """The wall clock (ns since 1970) when retention last looked at it; for how many seconds more it is not trusted."""

    seen_ns: int
    hold_s: int = 0


class PolicyTable:
    """The request loop alone."""

    def __init__(self, meta: Database) -> None:
        self._meta = meta

    def mount_limits(self) -> MountLimits:
        """What was set for the whole mount."""
        value = self._meta.get(POLICY, MOUNT_KEY)
        return MountLimits() if value is None else msgspec.msgpack.decode(value, type=MountLimits)

    def change_mount_limits(self, changes: Mapping[str, int | None]) -> None:
        """Set those of *changes*, by name; the others stay."""
        limits = msgspec.structs.replace(self.mount_limits(), **changes)
        self._meta.put(POLICY, MOUNT_KEY, msgspec.msgpack.encode(limits))

    def session_limits(self) -> dict[bytes, SessionLimits]:
        """Name → what was set for the session of that name, there or not."""
        return {
            key[len(SESSION_PREFIX) :]: msgspec.msgpack.decode(value, type=SessionLimits)
            for key, value in self._meta.scan(POLICY, SESSION_PREFIX)
        }

    def change_session_limits(self, name: bytes, changes: Mapping[str, int | None]) -> None:
        """Set those of *changes* for the session of that name; the others stay."""
        key = SESSION_PREFIX + name
        value = self._meta.get(POLICY, key)
        before = SessionLimits() if value is None else msgspec.msgpack.decode(value, type=SessionLimits)
        limits = msgspec.structs.replace(before, **changes)
        if limits == SessionLimits():
            self._meta.delete(POLICY, key)
        else:
            self._meta.put(POLICY, key, msgspec.msgpack.encode(limits))

    def clock(self) -> ClockRecord | None:
        """What retention last noted of the clock, None before the first time."""
        value = self._meta.get(POLICY, CLOCK_KEY)
        return None if value is None else msgspec.msgpack.decode(value, type=ClockRecord)

    def set_clock(self, record: ClockRecord) -> None:
        """Note the clock."""
        self._meta.put(POLICY, CLOCK_KEY, msgspec.msgpack.encode(record))
