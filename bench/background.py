"""Chrome's restarts, and requests for metadata, while new data is sealed and uploaded as fast as it goes.

As a program it is the load: `python -m bench.background SESSION REMOTE RATIO`, until it is ended by SIGTERM.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.chromes import LIFE_S, first_steps
from bench.replay import Content, Counts, make_pool
from bench.targets import BenchError, open_sessfs, temporary
from bench.workloads import tree_bytes
from tests.e2e.chromelife import RESTART, LifeFailed, Page, User, run_life

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.targets import Sessfs

MIB: Final = 1 << 20
INTERVAL_S: Final = 2
SEAL_IDLE_S: Final = 1
FILE_MIB: Final = 4
AHEAD_BYTES: Final = 128 * MIB
"""The load stops writing while about so much of what it wrote is not in the remote yet."""
FILES_MAX: Final = 300
"""Then the oldest is deleted, or the disk would be full before the end."""
CALIBRATION_FILES: Final = 8
WARM_UP_S: Final = 5.0
PROBE_PAUSE_S: Final = 0.004


# -- the load


class Load:
    """Writes files of new data, with no more on the way than keeps sealing and upload busy."""

    def __init__(self, session: Path, remote: Path) -> None:
        self._session = session
        self._remote = remote
        self._pool = make_pool()
        self._numbers = itertools.count()
        self.written = 0

    def write_one(self) -> None:
        """Write one more file, delete the oldest if there are many."""
        number = next(self._numbers)
        content = Content(self._pool, f"load {number}")
        (self._session / f"load{number:06d}").write_bytes(content.piece(number, 0, FILE_MIB * MIB, shared=False))
        self.written += FILE_MIB * MIB
        if number >= FILES_MAX:
            (self._session / f"load{number - FILES_MAX:06d}").unlink()

    def sent(self) -> int:
        """Bytes in the remote."""
        return tree_bytes(self._remote)

    def run(self, ratio: float) -> None:
        """For ever, where each byte written makes *ratio* bytes in the remote. Says "ready" on standard output."""
        before, start = self.sent(), self.written
        print("ready", flush=True)
        while True:
            self.write_one()
            while (self.written - start) - (self.sent() - before) / ratio > AHEAD_BYTES:
                time.sleep(0.05)


def _calibrate(mounted: Sessfs, remote: Path) -> float:
    """Bytes that reach the remote for each byte that the load writes."""
    session = mounted.path / "load"
    session.mkdir()
    mounted.sync()
    load = Load(session, remote)
    before = load.sent()
    for _ in range(CALIBRATION_FILES):
        load.write_one()
    mounted.sync()
    ratio = (load.sent() - before) / load.written
    for path in session.iterdir():
        path.unlink()
    return ratio


@contextlib.contextmanager
def _under_load(mounted: Sessfs, remote: Path, ratio: float, rates: list[float]) -> Iterator[None]:
    """The load runs meanwhile, from WARM_UP_S before; how many MB a second reached the remote is added to *rates*."""
    session = mounted.path / "load"
    command = [sys.executable, "-m", "bench.background", str(session), str(remote), str(ratio)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as load:
        try:
            assert load.stdout is not None
            if load.stdout.readline().strip() != "ready":
                raise BenchError(f"the load ended with {load.wait()}")
            # A round of publishing takes seconds, and all of it gets there at its end: so the warm-up counts here.
            before, start = tree_bytes(remote), time.monotonic()
            time.sleep(WARM_UP_S)
            yield
            rates.append((tree_bytes(remote) - before) / 1e6 / (time.monotonic() - start))
            if load.poll() is not None:
                raise BenchError(f"the load ended early, with {load.returncode}")
        finally:
            load.send_signal(signal.SIGTERM)
            try:
                load.wait(30)
            except subprocess.TimeoutExpired:
                load.kill()
    for path in session.iterdir():
        path.unlink()
    mounted.sync()


# -- what is measured meanwhile


def _probe(session: Path, duration_s: float) -> Counts:
    """Create, stat and remove a file, one request after another with a pause between: calls that need the daemon."""
    session.mkdir(exist_ok=True)
    counts = Counts()
    end = time.monotonic() + duration_s
    for number in itertools.count():
        if time.monotonic() > end:
            return counts
        path = session / f"probe{number}"
        _timed(counts, "create", lambda path=path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)))
        _timed(counts, "stat", lambda path=path: os.stat(path))
        _timed(counts, "unlink", lambda path=path: os.unlink(path))
        time.sleep(PROBE_PAUSE_S)
    raise AssertionError("not reached")


def _timed(counts: Counts, kind: str, action: Any) -> None:
    start = time.perf_counter()
    action()
    counts.add(kind, time.perf_counter() - start)


def _restart(page: Page, user: User) -> float:
    return run_life(page, user, "ready", RESTART, LIFE_S).timings_ms["total_ms"]


def background(base: Path, page: Page, rounds: int, probe_s: float) -> dict[str, Any]:
    """In turn: a restart undisturbed, one under load; then the probe, undisturbed and under load."""
    options = ["--interval", f"{INTERVAL_S}s", "--seal-idle", f"{SEAL_IDLE_S}s"]
    rates: list[float] = []
    calm, loaded = [], []
    try:
        with (
            temporary(base) as remote,
            open_sessfs(base, ["--remote", f"file://{remote}", *options]) as mounted,
        ):
            user = User("user", "bench", mounted.path / "user")
            run_life(page, user, "qr", first_steps(), LIFE_S)
            _restart(page, user)  # a first restart rewrites much, and counts for nothing
            ratio = _calibrate(mounted, remote)
            alone = _probe(mounted.path / "probe", probe_s)
            for number in range(rounds):
                calm.append(_restart(page, user))
                mounted.sync()
                with _under_load(mounted, remote, ratio, rates):
                    loaded.append(_restart(page, user))
                    if number == 0:
                        probed = _probe(mounted.path / "probe", probe_s)
    except LifeFailed as exc:
        raise BenchError(f"Chrome failed: {str(exc)[:300]}") from exc
    return {
        "background_calm": statistics.median(calm),
        "background_loaded": statistics.median(loaded),
        "background_ratio": statistics.median(each / before for each, before in zip(loaded, calm, strict=True)),
        "background_rate": statistics.median(rates) / ratio,
        "background_probe_calm": alone.percentile_ms(99),
        "background_probe": probed.percentile_ms(99),
        "background_each": {
            "calm_ms": calm,
            "loaded_ms": loaded,
            "ratio": ratio,
            "sent_mb_a_s": rates,
            "probe_ms": {
                kind: {
                    "p50": round(probed.percentile_ms(50, [kind]), 3),
                    "p99": round(probed.percentile_ms(99, [kind]), 3),
                }
                for kind in probed.buckets
            },
        },
    }


def main() -> None:
    """Be the load."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Load(Path(sys.argv[1]), Path(sys.argv[2])).run(float(sys.argv[3]))


if __name__ == "__main__":
    main()
