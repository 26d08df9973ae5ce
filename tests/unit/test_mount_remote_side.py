"""The remote half of a mount, as far as it needs no mount."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from sessfs.mount.remote_side import flush_kernel

if TYPE_CHECKING:
    import pytest


async def test_flush_of_the_kernels_pages_survives_a_machine_without_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*args: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(trio, "run_process", refuse)
    await flush_kernel(Path("/nowhere"))
    assert "Resource temporarily unavailable" in caplog.text
