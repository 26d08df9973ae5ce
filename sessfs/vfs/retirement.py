"""When a hot file goes: not before the batch that no longer names it is durable, nor while a snapshot reads it."""

from __future__ import annotations

import trio

from sessfs.types import Ino

HotFile = tuple[Ino, int]


class Retirement:
    """Hot files that are no longer needed, and those that a snapshot keeps as they are. The request loop alone."""

    def __init__(self) -> None:
        self._retired: list[HotFile] = []
        self._frozen: dict[int, trio.Event] = {}

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

    def freeze(self, number: int) -> None:
        """The hot file of that number keeps its bytes until `thaw`."""
        self._frozen[number] = trio.Event()

    def thaw(self, number: int) -> None:
        """The hot file has been read; fine when it is not frozen."""
        event = self._frozen.pop(number, None)
        if event is not None:
            event.set()

    def is_frozen(self, number: int) -> bool:
        """True between `freeze` and `thaw`."""
        return number in self._frozen

    async def wait_thawed(self, number: int) -> None:
        """Return once the hot file is not frozen."""
        event = self._frozen.get(number)
        if event is not None:
            await event.wait()
