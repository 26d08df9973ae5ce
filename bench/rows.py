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
    # The goal is 400 MB/s.
    Row("cold_read", "cold read, sequential (sessfs: sealed, LMDB only)", "MiB/s", (_least(None, 381.5),)),
    Row("chrome_first", "Chrome's first life", "ms", (_most("ext4", 1.0),)),
    Row("chrome_restart", "Chrome's restart", "ms", (_most("ext4", 1.05),)),
    Row("chrome_six", "six Chromes restarting at once", "ms", (_most("ext4", 1.15),)),
    Row("chrome_requests", "FUSE requests of one life and two restarts", "requests", (_most(None, 6000.0),)),
    Row("memory_idle", "memory of an idle mount (daemon and seal process)", "MB"),
    Row("memory_chrome", "memory after one life and two restarts", "MB"),
    Row("stored_six", "six profiles, written by Chrome to the mount, as stored", "MB"),
    Row("stored_six_restic", "the same six in a restic repository", "MB"),
    Row("stored_six_borg", "the same six in a borg repository, zstd,3", "MB"),
    Row("sent_first", "bytes sent to the remote after a first life", "MB"),
    Row("sent_second", "bytes sent to the remote after another user's first life", "MB"),
    Row("sent_restart1", "bytes sent to the remote after a first restart", "MB"),
    Row("sent_restart", "bytes sent to the remote after a second restart", "MB"),
    Row("sent_puts", "PUTs of one interval in which something changed", "requests"),
    Row("background_calm", "Chrome's restart, undisturbed, with a remote", "ms"),
    Row("background_loaded", "Chrome's restart while sealing and upload are at full rate", "ms"),
    Row(
        "background_ratio",
        "Chrome's restart while sealing and upload are at full rate ÷ undisturbed",
        "ratio",
        (_most(None, 1.1),),
    ),
    Row(
        "background_probe",
        "p99 of create, stat, unlink while sealing and upload are at full rate",
        "ms",
        (_most(None, 10.0),),
    ),
    Row("background_probe_calm", "p99 of create, stat, unlink, undisturbed", "ms"),
    Row("background_rate", "new data sealed and uploaded meanwhile", "MB/s"),
    Row("replay_sessions", "recorded sessions replayed at once", "sessions"),
    Row("replay_p99", "replay: p99 of a call", "ms", (_most(None, 100.0),)),
    Row("replay_p99_kind", "replay: p99 of a call of the slowest kind", "ms", (_most(None, 100.0),)),
    Row("replay_p50", "replay: median of a call", "ms"),
    Row("replay_max", "replay: longest call", "ms"),
    Row("replay_late", "replay: the most that a call came after its time", "ms"),
    Row("replay_requests", "replay: FUSE requests a second", "requests/s"),
    Row("replay_cpu", "replay: CPU time of daemon and seal process", "% of a core"),
    Row("replay_memory", "replay: most anonymous memory of daemon and seal process", "MB", (_most(None, 300.0),)),
    Row("replay_resident", "replay: most resident memory, pages of mapped files with it", "MB", (_most(None, 300.0),)),
    Row("replay_growth", "replay: anonymous memory, last quarter ÷ third quarter", "ratio", (_most(None, 1.05),)),
    Row("upload_mib", "new data written, sealed and uploaded, then restored", "MiB"),
    Row("upload_memory", "upload: most anonymous memory", "MB"),
    Row("upload_resident", "upload: most resident memory", "MB"),
    Row("upload_rate", "upload: written, sealed and in the remote", "MiB/s"),
    Row("restore_memory", "restore: most anonymous memory", "MB"),
    Row("restore_resident", "restore: most resident memory", "MB"),
    Row("restore_rate", "restore: from a directory, read and compared", "MiB/s"),
    Row("empty_warm", "Chrome's restart until it is ready, all at hand", "ms"),
    Row("empty_warm_scripts", "Chrome's restart until it is ready and has run its scripts, all at hand", "ms"),
    Row("empty_ready", "empty machine, bucket on `rclone serve s3`: mount to Chrome ready", "ms"),
    Row("empty_mount", "empty machine: of these, the mount", "ms"),
    Row("empty_ratio", "empty machine: mount to Chrome ready ÷ restart with all at hand", "ratio", (_most(None, 1.5),)),
    Row("empty_scripts", "empty machine: mount to Chrome ready, scripts run", "ms"),
    Row("empty_scripts_ratio", "empty machine: the same ÷ restart with all at hand", "ratio", (_most(None, 1.5),)),
    Row("empty_gets", "empty machine: GETs from mount to end of that life", "requests"),
    Row("empty_received", "empty machine: bytes received meanwhile", "MB"),
    Row("many_sessions", "sessions in the bucket, of 250 files each", "sessions"),
    Row("many_mount", "many sessions, by `rclone serve s3`: mount on an empty machine", "s", (_most(None, 1.0),)),
    Row("many_first", "many sessions, by `rclone serve s3`: first file, the slowest of 20", "s", (_most(None, 1.0),)),
    Row("many_resident", "many sessions, by `rclone serve s3`: resident memory then", "MB", (_most(None, 200.0),)),
    Row("many_list", "many sessions, by `rclone serve s3`: `ls` of all", "s"),
    Row(
        "many_list_resident",
        "many sessions, by `rclone serve s3`: resident memory after `ls`",
        "MB",
        (_most(None, 200.0),),
    ),
    Row("many_dir_mount", "many sessions, as a directory: mount on an empty machine", "s", (_most(None, 1.0),)),
    Row("many_dir_first", "many sessions, as a directory: first file, the slowest of 20", "s", (_most(None, 1.0),)),
    Row("many_dir_resident", "many sessions, as a directory: resident memory then", "MB", (_most(None, 200.0),)),
    Row("many_dir_list", "many sessions, as a directory: `ls` of all", "s"),
    Row(
        "many_dir_list_resident",
        "many sessions, as a directory: resident memory after `ls`",
        "MB",
        (_most(None, 200.0),),
    ),
    Row("import_mb", "profiles that Chrome made, to be imported (full run: six)", "MB"),
    Row("import_s", "`sessfs import` of these, every byte compared", "s"),
    Row("import_unverified_s", "`sessfs import` of these, --no-verify", "s"),
    Row("import_restic_s", "`restic backup` of these", "s"),
    Row("import_speed", "`restic backup` ÷ `sessfs import`, in time", "ratio", (_least(None, 2.0),)),
    Row("import_stored", "these, as sessfs stores them", "MB"),
    Row("import_restic_stored", "these, as restic stores them", "MB"),
    Row("import_zstd", "these, as one stream of `zstd -15 --long=31`", "MB"),
    Row("import_of_restic", "imported profiles: what sessfs stores ÷ what restic does", "ratio", (_most(None, 0.75),)),
    Row("import_of_zstd", "imported profiles: what sessfs stores ÷ the zstd stream", "ratio", (_most(None, 1.2),)),
)

HEADLINES: Final[tuple[tuple[str, Target | None], ...]] = (
    ("chrome_first", "ext4"),
    ("chrome_restart", "ext4"),
    ("chrome_six", "ext4"),
    ("background_ratio", None),
    ("background_probe", None),
    ("replay_p99", None),
    ("replay_memory", None),
    ("empty_ready", None),
    ("empty_ratio", None),
    ("many_sessions", None),
    ("many_mount", None),
    ("many_first", None),
    ("import_speed", None),
    ("import_of_restic", None),
    ("stored_six", None),
    ("stored_six_restic", "ext4"),
)
"""The rows that the README of the whole has, by key: sessfs's figure, or what it is of that target's, or, where sessfs
has none, that target's.
"""

NOT_THERE_YET: Final[tuple[tuple[str, str], ...]] = ()
"""(row, what it waits for)."""


def find_row(key: str) -> Row:
    """The row called *key*: one of ROWS, or one of fio's, whose keys say what they are."""
    for row in ROWS:
        if row.key == key:
            return row
    return Row(key, key, "MiB/s")
