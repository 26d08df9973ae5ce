"""When a hot file goes: not before the batch that no longer names it is durable, nor while a snapshot reads it."""

from __future__ import annotations

import trio

from sessfs.types import Ino

HotFile = tuple[Ino, int]


class _Freeze:
    """One frozen hot file: who reads it, and the event of nobody doing so any more."""

    def __init__(self) -> None:
        self.tickets: set[int] = set()
        self.over = trio.Event()


class Retirement:
    """Hot files that are no longer needed, and those that a snapshot keeps as they are. The request loop alone."""

    def __init__(self) -> None:
        self._retired: list[HotFile] = []
        self._frozen: dict[int, _Freeze] = {}
        self._next_ticket = 1

    def retire(self, ino: Ino, number: int) -> None:
        """The hot file is not needed once the next batch is durable."""
        self._retired.append((ino, number))

    def take(self) -> list[HotFile]:
        """At a cut: the hot files to delete once the batch is durable; not those that a snapshot still reads."""
        taken = [item for item in self._retired if item[1] not in self._frozen]
        self._retired = [item for item in self._retired if item[1] in self._frozen]
        return taken

    def restore(self, retired: list[HotFile]) -> None:
        """The batch did not become durable."""
        self._retired.extend(retired)

    @property
    def is_empty(self) -> bool:
        """True when no hot file waits to be deleted."""
        return not self._retired

    def freeze(self, number: int) -> int:
        """The hot file of that number keeps its bytes until the ticket that is returned, and all others for the same
        file, are given to `thaw`: several snapshots may read it at once.
        """
        ticket = self._next_ticket
        self._next_ticket += 1
        self._frozen.setdefault(number, _Freeze()).tickets.add(ticket)
        return ticket

    def thaw(self, number: int, ticket: int) -> bool:
        """Who has the ticket has read the hot file. False when that was said before."""
        freeze = self._frozen.get(number)
        if freeze is None or ticket not in freeze.tickets:
            return False
        freeze.tickets.remove(ticket)
        if not freeze.tickets:
            del self._frozen[number]
            freeze.over.set()
        return True

    def is_frozen(self, number: int) -> bool:
        """True while anybody has a ticket."""
        return number in self._frozen

    async def wait_thawed(self, number: int) -> None:
        """Return once the hot file is not frozen."""
        freeze = self._frozen.get(number)
        if freeze is not None:
            await freeze.over.wait()
