"""fio's job files in bench/fio, in all their combinations."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.targets import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB_FILES: Final = Path(__file__).resolve().parent / "fio"
TOTAL_MIB: Final = 64
"""All jobs of a combination together have files of this size."""
SYNCED_MIB: Final = 2
"""Bytes written by each job that syncs after each write."""


class Job(NamedTuple):
    """One combination."""

    file: str
    rw: str
    bs: str
    jobs: int

    @property
    def key(self) -> str:
        """The row's key and title."""
        return f"fio {self.file} {self.rw} {self.bs} x{self.jobs}"


def matrix() -> Iterator[Job]:
    """Every combination that is measured."""
    for jobs in (1, 8):
        for bs in ("4k", "64k", "1m"):
            for rw in ("write", "read", "randwrite", "randread"):
                yield Job("buffered", rw, bs, jobs)
                yield Job("mmap", rw, bs, jobs)
            for rw in ("write", "randwrite"):
                yield Job("fsync", rw, bs, jobs)
            yield Job("verify", "randwrite", bs, jobs)


def run(directory: Path, job: Job) -> dict[str, float]:
    """MiB/s of *job*, its reads and writes together as far as they are measured. Raises BenchError when fio finds an
    error, or a block that is not what was written.
    """
    env = {
        **os.environ,
        "RW": job.rw,
        "BS": job.bs,
        "JOBS": str(job.jobs),
        "SIZE": f"{TOTAL_MIB // job.jobs}m",
        "SYNCED": f"{SYNCED_MIB}m",
    }
    command = ["fio", "--output-format=json", f"--directory={directory}", str(JOB_FILES / f"{job.file}.fio")]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise BenchError(f"{job.key}: fio ended with {done.returncode}: {done.stderr[-300:]}")
    result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    if result["error"]:
        raise BenchError(f"{job.key}: fio reports error {result['error']}")
    side = "read" if job.rw.endswith("read") else "write"
    return {job.key: result[side]["bw_bytes"] / (1 << 20)}
