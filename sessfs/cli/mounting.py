"""`sessfs mount` and `sessfs umount`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sessfs import config
from sessfs.cli import options, output
from sessfs.mount import control, launch, mountinfo, places, unmount

if TYPE_CHECKING:
    from sessfs.config import Settings
    from sessfs.mount.spawn import Started

WARNINGS_TIMEOUT_S = 10.0

Mountpoint = Annotated[
    Path,
    typer.Argument(
        metavar="MOUNTPOINT",
        help="The directory, made if it is missing; it must be empty.",
        parser=options.parse_place,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML settings [default: /etc/sessfs.toml if it exists]."),
]
State = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Where the data lies, on a local disk [default: /var/lib/sessfs/MOUNTPOINT for root, "
        "else ~/.local/state/sessfs/MOUNTPOINT, with - for / and a hash].",
    ),
]
CacheSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most bytes kept in DIR, such as 10G (1024-based) [default: 90% of the room]."),
]
LogLevel = Annotated[
    str | None, typer.Option(metavar="L", help="debug, info, warning or error, for DIR/sessfs.log [default: info].")
]
Foreground = Annotated[bool, typer.Option("--foreground", "-f", help="Stay, and log to stderr.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-o", metavar="OPT[,OPT]", help="FUSE options: ro, allow_other (root's mounts have it; no_allow_other), ..."
    ),
]
Remote = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Write back to s3://BUCKET/PREFIX or file:///DIRECTORY [default: local only]."),
]
Endpoint = Annotated[str | None, typer.Option(metavar="URL", help="The S3 service, if it is not AWS.")]
Region = Annotated[str | None, typer.Option(metavar="NAME", help="The region of the bucket.")]
PathStyle = Annotated[bool, typer.Option("--path-style", help="Address buckets as ENDPOINT/BUCKET.")]
Interval = Annotated[
    str | None, typer.Option(metavar="TIME", help="From a session's first change to its upload, as 60s [default: 60s].")
]
UploadLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most bytes uploaded a second, such as 10M [default: no limit].")
]
RiskLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Warn when changes wait longer for upload [default: 10min].")
]
KeyFile = Annotated[str | None, typer.Option(metavar="FILE", help="Encrypt the remote with the key in FILE.")]
SingleNode = Annotated[
    bool,
    typer.Option("--single-node", help="Promise that no other node mounts URL; for S3 without conditional writes."),
]
TakeOver = Annotated[bool, typer.Option("--take-over", help="Fence the node that holds the sessions, and take them.")]
Stale = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="How long its heartbeat must have stood still for --take-over [default: 30s]."),
]
UnmountTimeout = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Longest that an unmount waits for uploads; the rest waits [default: 30s]."),
]
UploadCaches = Annotated[bool, typer.Option("--upload-caches", help="Upload Chrome's caches too.")]
WaitAtStart = Annotated[
    bool,
    typer.Option(
        "--wait-at-start",
        help="Have a Chrome wait whose databases are in a remote that does not answer, instead of refusing its start.",
    ),
]
Grace = Annotated[
    str | None, typer.Option(metavar="TIME", help="Collection spares remote objects younger than this [default: 7d].")
]
MaxSessions = Annotated[
    str | None, typer.Option(metavar="N", help="Most sessions, or off; one more gets EDQUOT [default: off].")
]
MaxActive = Annotated[
    str | None, typer.Option(metavar="N", help="Most sessions with open files at once, or off [default: off].")
]
MaxSessionBytes = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most bytes of one session's files, or off [default: off].")
]
MaxUniqueBytes = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most bytes that only one session has, or off [default: off].")
]
ExpireDays = Annotated[
    str | None, typer.Option(metavar="N", help="Sessions not used for N days expire, or off [default: off].")
]
ExpireAction = Annotated[
    str | None,
    typer.Option(metavar="ACTION", help="hibernate (the remote keeps them) or remove [default: hibernate]."),
]
TrashDays = Annotated[
    str | None, typer.Option(metavar="N", help="Days that a removed session rests in the trash [default: 30].")
]
ChromeNames = Annotated[
    str | None,
    typer.Option(metavar="NAME[,NAME]", help="Programs whose opens count as use [default: chrome, chromium, ...]."),
]
KeepLast = Annotated[
    str | None, typer.Option(metavar="N", help="Snapshots kept of each session: its last N [default: 10].")
]
KeepHourly = Annotated[
    str | None,
    typer.Option(metavar="N", help="And the newest of each of N hours that have one [default: 24]."),
]
KeepDaily = Annotated[
    str | None, typer.Option(metavar="N", help="And the newest of each of N days that have one [default: 7].")
]
SnapshotInterval = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Without a remote: from a session's first change to a snapshot [default: 1h]."),
]
CommitInterval = Annotated[
    str | None, typer.Option(metavar="TIME", help="Longest until a change is durable without fsync [default: 1s].")
]
SealIdle = Annotated[
    str | None, typer.Option(metavar="TIME", help="A file not written to for this long is deduplicated [default: 10s].")
]
WarnTotal = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Warn when all sessions together have more [default: 50GB].")
]


def mount(
    ctx: typer.Context,
    mountpoint: Mountpoint,
    config_file: Config = None,
    state: State = None,
    cache_size: CacheSize = None,
    foreground: Foreground = False,
    log_level: LogLevel = None,
    mount_options: Options = None,
    remote: Remote = None,
    endpoint_url: Endpoint = None,
    region: Region = None,
    path_style: PathStyle = False,
    interval: Interval = None,
    upload_limit: UploadLimit = None,
    risk_limit: RiskLimit = None,
    key_file: KeyFile = None,
    single_node: SingleNode = False,
    take_over: TakeOver = False,
    stale: Stale = None,
    unmount_timeout: UnmountTimeout = None,
    upload_caches: UploadCaches = False,
    wait_at_start: WaitAtStart = False,
    grace: Grace = None,
    max_sessions: MaxSessions = None,
    max_active: MaxActive = None,
    max_session_bytes: MaxSessionBytes = None,
    max_unique_bytes: MaxUniqueBytes = None,
    expire_days: ExpireDays = None,
    expire_action: ExpireAction = None,
    trash_days: TrashDays = None,
    chrome_names: ChromeNames = None,
    keep_last: KeepLast = None,
    keep_hourly: KeepHourly = None,
    keep_daily: KeepDaily = None,
    snapshot_interval: SnapshotInterval = None,
    commit_interval: CommitInterval = None,
    seal_idle: SealIdle = None,
    warn_total: WarnTotal = None,
) -> None:
    """Mount at MOUNTPOINT, and return when the mount answers.

    Every flag is also a TOML key (cache_size) and a variable (SESSFS_CACHE_SIZE); flags win, then variables.
    A mountpoint left dead by a daemon that was killed is cleaned first, and its state recovered.
    """
    given = locals()
    keys = set(config.setting_keys())
    flags = {key: value for key, value in given.items() if key in keys and value not in (None, False)}
    if mount_options:
        flags["mount_options"] = ",".join(mount_options)
    place = mountinfo.resolve(mountpoint)
    places.require_configuration_outside(config_file, place)
    _mount(config.load(place, flags, file=config_file, env=os.environ, uid=os.geteuid()), ctx.obj)


def _mount(settings: Settings, early: Started | None) -> None:
    if settings.foreground:
        if early is not None:
            early.drop()
        launch.run_foreground(settings)
    pid = launch.launch(settings, early)
    output.print_line(f"mounted {settings.mountpoint} (pid {pid}), state in {settings.state_dir}")
    output.print_line(f"unmount with: sessfs umount {settings.mountpoint}")
    status = control.call(settings.state_dir, "status", {}, timeout_s=WARNINGS_TIMEOUT_S, on_progress=None)
    for warning in status["warnings"]:
        output.print_note(f"warning: {warning}")


Timeout = Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds to wait for data to become durable.")]


def umount(mountpoint: options.OneMount, timeout: Timeout = 60.0) -> None:
    """Unmount MOUNTPOINT, and return when everything is durable on this machine and the daemon has ended.

    What the remote still lacks then is named; `sessfs sync` before it makes sure that it has everything.
    If files are open there, it names the processes and the mount stays. A dead mount is taken away.
    """
    done = unmount.unmount(
        mountpoint,
        timeout_s=timeout,
        # A little longer than unmount itself waits, so that it is unmount who says what took too long.
        commit=lambda state_dir, left_s: control.call(state_dir, "commit", {}, timeout_s=left_s + 5, on_progress=None),
    )
    if done.was_dead:
        output.print_line(
            f"{done.mountpoint} was dead (its daemon had ended) and is detached; "
            f"the next mount recovers the state {done.state_dir}"
        )
    else:
        output.print_line(f"unmounted {done.mountpoint}; everything is durable in {done.state_dir}")
    if done.trouble:
        output.print_note(f"warning: {done.trouble}: mount it with --state {done.state_dir}")
    if done.unsent:
        output.print_note(
            f"warning: the remote does not have everything of {done.unsent}: keep {done.state_dir}, and mount it again"
        )
