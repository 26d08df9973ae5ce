"""Who waits for a remote that is away is told so, and what was begun can be done again."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from sessfs.errors import RemoteConflict, RemoteUnavailable
from sessfs.mount import showing
from sessfs.mount.repository import ANSWER_DEADLINE_S
from sessfs.mount.showing import while_answering
from sessfs.mount.verbs_erase import EraseVerbs
from sessfs.mount.verbs_history import HistoryVerbs
from sessfs.mount.verbs_remote import RemoteVerbs
from sessfs.remote.retrying import Health
from tests.unit.test_mount_remote_side import ignore, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sessfs.mount.remote_side import RemoteSide
    from sessfs.types import Ino
    from tests.support.volumes import Box

AWAY = RemoteUnavailable("nobody answers")


async def test_work_that_the_remote_never_answers_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    health = Health()
    health.failed(AWAY)
    await trio.sleep(1000)
    start_s = trio.current_time()
    with pytest.raises(RemoteUnavailable, match="nobody answers"):
        await while_answering(health.report, trio.sleep_forever)
    assert ANSWER_DEADLINE_S <= trio.current_time() - start_s < ANSWER_DEADLINE_S + 1


async def test_work_goes_on_while_the_remote_answers(autojump_clock: trio.testing.MockClock) -> None:
    health = Health()

    async def work() -> str:
        for _ in range(10):
            health.failed(AWAY)
            await trio.sleep(ANSWER_DEADLINE_S - 1)
            health.answered()
            await trio.sleep(1000)
        return "done"

    assert await while_answering(health.report, work) == "done"


async def test_error_of_the_work_comes_out_as_it_is() -> None:
    async def work() -> None:
        raise RemoteConflict("other")

    with pytest.raises(RemoteConflict, match="other"):
        await while_answering(Health().report, work)


class _Lives:
    """Sessions that are here."""

    def __init__(self, box: Box) -> None:
        self._box = box

    async def locate(self, name: bytes) -> Ino:
        return self._box.get(name).ino


Verbs = dict[str, Any]


def verbs_of(box: Box, side: RemoteSide, path: Path) -> Verbs:
    lives = cast("Any", SimpleNamespace(history=side.history, lives=_Lives(box)))
    return {**HistoryVerbs(lives, side, path).verbs(), **RemoteVerbs(side).verbs()}


def take_away(side: RemoteSide, patch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object) -> None:
        raise RemoteUnavailable("nobody answers")

    for what in ("get", "put", "put_if", "list_page", "delete"):
        patch.setattr(type(cast("Any", side.repository.remote.store)._inner), what, fail)


@pytest.mark.parametrize("verb", ["snapshot", "gc"])
async def test_verb_of_a_remote_that_is_away_ends_and_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(showing, "ANSWER_DEADLINE_S", 0.2)
    monkeypatch.setattr(showing, "WATCH_S", 0.01)
    async with running(tmp_path, monkeypatch) as (box, side):
        await side.syncs.sync(ignore, 20)
        await box.write(b"s/f", b"changed")
        asked: Callable[[], Awaitable[dict[str, Any]]] = partial(
            verbs_of(box, side, tmp_path)[verb], {"session": "s", "mark": "mine"}, ignore
        )
        with monkeypatch.context() as away, trio.fail_after(20):
            take_away(side, away)
            with pytest.raises(RemoteUnavailable, match="has not answered for"):
                await asked()
        with trio.fail_after(20):
            await asked()
            await side.syncs.sync(ignore, 20)
        assert not box.volume.changes.sessions


async def test_purge_says_that_it_waits_for_the_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    waits = trio.Event()

    async def listen(step: dict[str, Any]) -> None:
        stages.append(step["stage"])
        if "waiting for the remote: " in step["stage"]:
            waits.set()

    async with running(tmp_path, monkeypatch) as (box, side):

        async def purge(*args: object) -> None:
            await side.repository.remote.store.get("format")

        lives = cast("Any", SimpleNamespace(history=side.history, lives=_Lives(box)))
        verbs = EraseVerbs(box.volume, lives, side, cast("Any", SimpleNamespace(trash=None, limits=None)), tmp_path)
        monkeypatch.setattr(verbs, "_purger", SimpleNamespace(purge=purge))
        take_away(side, monkeypatch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(verbs.verbs()["remove"], {"session": "s", "purge": True}, listen)
            with trio.fail_after(20):
                await waits.wait()
            nursery.cancel_scope.cancel()
    assert stages[-1].startswith("starting, waiting for the remote: ")
