"""Power loss: the state directory lies on an ext4 whose disk forgets what was not flushed.

The machine's other parts stay up, so the daemon is killed and the mount taken away after the cut, as a reboot would.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

from tests.crash.harness import Running, judge
from tests.support.mounted import Mounted
from tests.support.posix import write_file
from tests.support.powercut import PowerCut

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("SESSFS_TEST_POWER_ROUNDS", "20"))


def test_disk_forgets_what_was_not_flushed_and_keeps_what_was() -> None:
    """Prove the disk: of 40 files without fsync, few cuts keep all; of 40 with it, each keeps all."""
    lost = 0
    for seed in range(4):
        with PowerCut(seed) as power:
            for number in range(40):
                write_file(power.path / f"lazy{number}", b"x" * 9000)
                fd = os.open(power.path / f"synced{number}", os.O_WRONLY | os.O_CREAT)
                os.write(fd, b"y" * 9000)
                os.fsync(fd)
                os.close(fd)
            power.cut()
            power.restore()
            for number in range(40):
                assert (power.path / f"synced{number}").read_bytes() == b"y" * 9000
                lazy = power.path / f"lazy{number}"
                lost += not lazy.exists() or lazy.read_bytes() != b"x" * 9000
    assert lost > 20


def test_power_loss_at_random_moments_loses_nothing_synced(tmp_path: Path) -> None:
    source = random.Random(os.urandom(8))
    promised = 0
    for number in range(ROUNDS):
        seed = source.randrange(1 << 30)
        with PowerCut(seed) as power, Mounted(state=power.path / "state", options=["--seal-idle", "50ms"]) as mounted:
            running = Running(mounted.path / "w", tmp_path / f"log{number}", seed)
            try:
                mounted.seal()
                running.start()
                time.sleep(source.uniform(0, 2.5))
                crash_s = power.cut()
                mounted.kill()
            finally:
                running.stop()
            mounted.detach()
            power.restore()
            mounted.mount()
            promised += judge(mounted.path / "w", running, crash_s, None)
            mounted.umount()
            mounted.fsck()
    assert promised > 20 * ROUNDS, "the workload hardly ran"
