"""Run the machine on a mount with short seal times, and, to prove it, on a second plain directory."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import FsMachine
from tests.support.mounted import Mounted

if TYPE_CHECKING:
    from pathlib import Path


class PlainFilesystem:
    """A directory that plays the side under test: nothing of what only a mount has does anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ensure(self) -> None:
        """Nothing to do."""

    seal = remount = kill = mount = ensure


def _budget(examples: int, steps: int) -> settings:
    """*examples* of *steps* operations; in the soak profile fifty times as many."""
    factor = max(1, settings().max_examples // 100)
    return settings(max_examples=examples * factor, stateful_step_count=steps, report_multiple_bugs=False)


def test_machine_finds_no_difference_between_two_plain_directories(tmp_path: Path) -> None:
    numbers = itertools.count()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    filesystem = PlainFilesystem(tmp_path / "one")
    run_state_machine_as_test(
        lambda: FsMachine(filesystem, tmp_path / "two", next(numbers)), settings=_budget(examples=20, steps=60)
    )


def test_mount_answers_as_a_plain_directory_does(tmp_path: Path) -> None:
    numbers = itertools.count()
    with Mounted(options=["--seal-idle", "50ms"]) as mounted:
        run_state_machine_as_test(
            lambda: FsMachine(mounted, tmp_path, next(numbers)), settings=_budget(examples=90, steps=80)
        )
        mounted.umount()
        mounted.fsck()
