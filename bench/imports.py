"""`sessfs import` of six profiles that Chrome made, against `restic backup` and `zstd -15 --long=31` of the same."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from bench.chromes import LIFE_S
from bench.targets import SESSFS, BenchError, open_sessfs, temporary
from bench.workloads import tree_bytes
from tests.e2e.chromelife import FIRST_LIFE, RESTART, LifeFailed, Page, User, run_life

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FULL_RECORDS: Final = (12_000, 16_000, 20_000, 24_000, 28_000, 32_000)
SHORT_RECORDS: Final = (4_000, 6_000, 8_000)
TREE: Final = ".whatsapp-sessions"
Samples = dict[str, list[float]]


def imports(base: Path, page: Page, rounds: int, *, full: bool) -> dict[str, Any]:
    """Medians of *rounds*, restic and sessfs in turn, each into something new and empty. Making that is not timed. The
    sources are in the page cache for all.
    """
    with temporary(base) as directory:
        tree = directory / TREE
        _live(page, tree, FULL_RECORDS if full else SHORT_RECORDS)
        samples: Samples = {}
        for _ in range(rounds):
            for found in (_restic(base, tree), _import(base, tree, verify=True), _import(base, tree, verify=False)):
                for key, value in found.items():
                    samples.setdefault(key, []).append(value)
        found = {key: statistics.median(values) for key, values in samples.items()}
        pairs = zip(samples["import_restic_s"], samples["import_s"], strict=True)
        zstd = _zstd(directory)
        return {
            **found,
            "import_mb": tree_bytes(tree) / 1e6,
            "import_speed": statistics.median(restic / sessfs for restic, sessfs in pairs),
            "import_zstd": zstd,
            "import_of_restic": found["import_stored"] / found["import_restic_stored"],
            "import_of_zstd": found["import_stored"] / zstd,
        }


def _live(page: Page, tree: Path, records: Sequence[int]) -> None:
    """A first life and a restart of each user, one after another."""
    try:
        for number, count in enumerate(records, 1):
            user = User(f"user{number}", f"bench-{number}", tree / f"user{number}")
            run_life(page, user, "qr", [step.format(records=count) for step in FIRST_LIFE], LIFE_S)
            run_life(page, user, "ready", RESTART, LIFE_S)
    except LifeFailed as exc:
        raise BenchError(f"Chrome failed: {str(exc)[:300]}") from exc


def _timed(command: Sequence[str], env: dict[str, str] | None = None) -> tuple[float, str]:
    os.sync()
    start = time.perf_counter()
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    elapsed_s = time.perf_counter() - start
    if done.returncode != 0:
        raise BenchError(f"{command[0]} failed: {(done.stderr or done.stdout)[-300:]}")
    return elapsed_s, done.stdout


def _restic(base: Path, tree: Path) -> dict[str, float]:
    with temporary(base) as directory:
        repository = directory / "repository"
        restic = ["restic", "-q", "-r", str(repository), "--cache-dir", str(directory / "cache")]
        env = {**os.environ, "RESTIC_PASSWORD": "bench"}
        _timed([*restic, "init"], env)
        elapsed_s, _ = _timed([*restic, "backup", str(tree)], env)
        return {"import_restic_s": elapsed_s, "import_restic_stored": tree_bytes(repository) / 1e6}


def _import(base: Path, tree: Path, *, verify: bool) -> dict[str, float]:
    with open_sessfs(base) as mounted:
        flag = "--verify" if verify else "--no-verify"
        elapsed_s, answer = _timed([str(SESSFS), "import", str(tree), str(mounted.path), flag, "--json"])
        report = json.loads(answer)
        if report["refused"] or len(report["sessions"]) != len(list(tree.iterdir())):
            raise BenchError(f"not everything was imported: {answer[-300:]}")
        if not verify:
            return {"import_unverified_s": elapsed_s}
        return {"import_s": elapsed_s, "import_stored": float(mounted.status()["stored_bytes"]) / 1e6}


def _zstd(directory: Path) -> float:
    """MB of a tar of the tree, in one zstd stream: about the least that is possible."""
    with (directory / "tar.zst").open("wb") as target:
        tar = subprocess.Popen(["tar", "-C", str(directory), "-c", TREE], stdout=subprocess.PIPE)
        with tar:
            done = subprocess.run(["zstd", "-q", "-15", "--long=31"], stdin=tar.stdout, stdout=target)
    if done.returncode != 0 or tar.returncode != 0:
        raise BenchError("tar | zstd failed")
    size = (directory / "tar.zst").stat().st_size
    (directory / "tar.zst").unlink()
    return size / 1e6
