"""What is asked of an import, how far it is, and what became of it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from sessfs.errors import SessfsError

GROUP_BYTES = 512 << 20


class Outcome(StrEnum):
    """What became of one session."""

    IMPORTED = "imported"
    THERE = "already there"
    PLANNED = "would be imported"
    REFUSED = "refused"


class ImportOptions(NamedTuple):
    """*as_name* is the one session's name. *verify*: compare every byte before it counts as imported. *skip_unsafe*:
    leave out what would refuse a session, links that lead out of it and devices. Sessions are stored, compared and
    installed in groups of *group_bytes*: what an import that is killed does again.
    """

    as_name: bytes | None = None
    verify: bool = True
    dry_run: bool = False
    skip_unsafe: bool = False
    group_bytes: int = GROUP_BYTES


class SessionReport(msgspec.Struct):
    """One session. *new_bytes* of its content were not stored before, as they are before compression."""

    name: str
    source: str
    outcome: Outcome = Outcome.IMPORTED
    reason: str = ""
    files: int = 0
    total_bytes: int = 0
    new_bytes: int = 0


class ImportReport(msgspec.Struct):
    """The whole. *data_path* is what whatsapp-web.js's dataPath has to be for these sessions, with MOUNTPOINT for the
    place of a mount that is not known; by *stored_bytes* the store grew.
    """

    source: str
    kind: str
    data_path: str
    verified: bool
    sessions: list[SessionReport] = []
    left_out: list[str] = []
    files: int = 0
    total_bytes: int = 0
    stored_bytes: int = 0
    elapsed_seconds: float = 0.0

    @property
    def n_refused(self) -> int:
        """Sessions that were refused."""
        return sum(session.outcome is Outcome.REFUSED for session in self.sessions)


class ImportProgress(NamedTuple):
    """How far it is: *done_bytes* of *total_bytes* (0: unknown), each byte counted for each time that it is read."""

    stage: str
    session: str
    done_bytes: int
    total_bytes: int


class Refused(SessfsError):
    """This session is not imported; others are."""
