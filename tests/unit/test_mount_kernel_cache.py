"""Telling the kernel which names it is to look up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sessfs.mount import kernel_cache
from sessfs.mount.kernel_cache import KernelCache
from sessfs.vfs import background
from sessfs.vfs.background import keep_going

if TYPE_CHECKING:
    import pytest


async def test_every_name_is_told_in_order_also_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bytes] = []
    failures = [RuntimeError("can't start new thread")]

    def tell(name: bytes) -> None:
        if name == b"b" and failures:
            raise failures.pop()
        told.append(name)

    monkeypatch.setattr(kernel_cache, "_tell", tell)
    monkeypatch.setattr(background, "RESTART_S", 0.001)
    kernel = KernelCache()
    for name in (b"a", b"b", b"c"):
        kernel.forget_name(name)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_going, kernel.run)
            await kernel.settled()
            assert told == [b"a", b"b", b"c"]
            kernel.forget_name(b"d")
            await kernel.settled()
            nursery.cancel_scope.cancel()
    assert told == [b"a", b"b", b"c", b"d"]
    assert "can't start new thread" in caplog.text
