"""The rows of the benchmark: what each measures, in which unit, and which figure it must show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Target = Literal["ext4", "sessfs", "pt-s", "pt"]

TARGETS: Final[tuple[Target, ...]] = ("ext4", "sessfs", "pt-s", "pt")
TARGET_TITLES: Final[dict[Target, str]] = {
    "ext4": "ext4",
    "sessfs": "sessfs",
    "pt-s": "passthrough_ll -s",
    "pt": "passthrough_ll",
}


@dataclass(frozen=True)
class Goal:
    """What sessfs must show: its figure, divided by *against*'s if there is one, is at least or at most *limit*."""

    against: Target | None
    relation: Literal["at least", "at most"]
    limit: float

    def is_met(self, figure: float) -> bool:
        """Whether the ratio, or the figure itself, is good enough."""
        return figure >= self.limit if self.relation == "at least" else figure <= self.limit


@dataclass(frozen=True)
class Row:
    """One row; *unit* says whether more is better (per second) or less is (ms, MB, requests)."""

    key: str
    title: str
    unit: str
    goals: tuple[Goal, ...] = ()


def _least(against: Target | None, limit: float) -> Goal:
    return Goal(against, "at least", limit)


def _most(against: Target | None, limit: float) -> Goal:
    return Goal(against, "at most", limit)


ROWS: Final = (
    Row("create", "create + write 4 KiB + close", "ops/s", (_least("pt-s", 1.5),)),
    Row("stat", "stat of a file just written", "ops/s", (_least("pt-s", 1.0),)),
    Row("stat_missing", "stat of a missing name", "ops/s"),
    Row("open", "open + read 4 KiB + close", "ops/s", (_least("pt-s", 1.0),)),
    Row("listdir", "listdir", "names/s"),
    Row("rename", "rename", "ops/s", (_least("pt-s", 1.0),)),
    Row("unlink", "unlink", "ops/s", (_least("pt-s", 1.0),)),
    Row("fsync1", "4 KiB write + fsync, 1 writer", "ops/s", (_least("ext4", 0.7),)),
    Row("fsync8", "4 KiB write + fsync, 8 writers", "ops/s", (_least("ext4", 1.0),)),
    Row("seq_write", "sequential write, 1 MiB each", "MiB/s", (_least("ext4", 0.8),)),
    Row("seq_write_sync", "sequential write, 1 MiB each, then fsync", "MiB/s", (_least("ext4", 0.8),)),
    Row("cached_read", "read from page cache, 1 MiB each", "MiB/s", (_least("ext4", 1.0),)),
    Row("mmap_read", "mmap read of cached pages, 1 MiB each", "MiB/s", (_least("ext4", 0.5),)),
    Row("cold_read", "cold read, sequential (sessfs: sealed, LMDB only)", "MiB/s", (_least(None, 400.0),)),
    Row("chrome_first", "Chrome's first life", "ms", (_most("ext4", 1.0),)),
    Row("chrome_restart", "Chrome's restart", "ms", (_most("ext4", 1.05),)),
    Row("chrome_six", "six Chromes restarting at once", "ms", (_most("ext4", 1.15),)),
    Row("chrome_requests", "FUSE requests of one life and two restarts", "requests", (_most(None, 6000.0),)),
    Row("memory_idle", "memory of an idle mount (daemon and seal process)", "MB"),
    Row("memory_chrome", "memory after one life and two restarts", "MB"),
    Row("stored_six", "six profiles, as stored", "MB"),
    Row("stored_six_restic", "the same six in a restic repository", "MB"),
    Row("stored_six_borg", "the same six in a borg repository, zstd,3", "MB"),
    Row("sent_first", "bytes sent to the remote after a first life", "MB"),
    Row("sent_second", "bytes sent to the remote after another user's first life", "MB"),
    Row("sent_restart1", "bytes sent to the remote after a first restart", "MB"),
    Row("sent_restart", "bytes sent to the remote after a second restart", "MB"),
)

NOT_THERE_YET: Final = (
    ("`sessfs import` of six profiles, against restic", "import"),
    ("sealing and upload at full rate while Chrome restarts", "a load generator on the recorder"),
    ("100 recorded sessions replayed at once, 10 minutes", "the recorder and replayer"),
    ("100,000 sessions, 25 million files in the bucket", "a maker of manifests"),
    ("empty machine, bucket on `rclone serve s3`: mount to Chrome ready", "import"),
)
"""(row, what it waits for)."""


def find_row(key: str) -> Row:
    """The row called *key*: one of ROWS, or one of fio's, whose keys say what they are."""
    for row in ROWS:
        if row.key == key:
            return row
    return Row(key, key, "MiB/s")
