"""`sessfs gc`, `sessfs key` and the remote half of `sessfs fsck`: commands that work on a bucket without a mount."""

from __future__ import annotations

import os
import secrets
import sys
from collections import Counter
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import trio
import typer
from rich.console import Console

from sessfs import config
from sessfs.api.opening import remote_only_settings
from sessfs.cli import mounting, options, output
from sessfs.cli.tables import print_table
from sessfs.errors import RemoteConflict, UsageError
from sessfs.format.repository import FORMAT_KEY, decode_format, encode_format, rewrap_format
from sessfs.mount import control, places, preflight
from sessfs.mount.repository import read_secret, remote_settings
from sessfs.remote.urls import open_remote
from sessfs.sync import fsck_remote, remote_index
from sessfs.sync.gc import Options, collect
from sessfs.sync.repairing import repair_sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sessfs.config import Settings
    from sessfs.format.envelope import Envelope
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.fsck import Report
    from sessfs.sync.remote_index import Progress

T = TypeVar("T")
PATIENCE_S = 60.0
"""How long each request is tried again before a command gives up."""
FATES = {
    "delete": "garbage, older than the grace period",
    "held": "garbage, left to the mount that has the remote",
    "wait": "garbage, its grace period is not over",
    "rewrite": "mostly garbage, to be written anew by the mount",
}

Json = options.Json
MountedAt = Annotated[
    Path | None,
    typer.Argument(metavar="MOUNTPOINT", help="Have this mount collect; or give --remote.", parser=options.parse_place),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go; writes nothing.")]


class KeyAction(StrEnum):
    """What `sessfs key` can do."""

    ROTATE = "rotate"


def settings_for(
    url: str | None, endpoint_url: str | None, region: str | None, path_style: bool, key_file: str | None
) -> Settings:
    """Settings of a command without a mount: flags, variables and /etc/sessfs.toml. Raises UsageError."""
    return remote_only_settings(
        {
            "remote": url,
            "endpoint_url": endpoint_url,
            "region": region,
            "path_style": path_style or None,
            "key_file": key_file,
        }
    )


async def with_repository(settings: Settings, work: Callable[[ObjectStore, bytes, Envelope], Awaitable[T]]) -> T:
    """What *work* gives for (store, key of chunk ids, envelope) of the remote. Raises as `open_existing`."""
    async with open_remote(remote_settings(settings)) as remote:
        store = remote.within(PATIENCE_S)
        hash_key, envelope = await remote_index.open_existing(store, read_secret(settings), str(settings.remote))
        return await work(store, hash_key, envelope)


@contextmanager
def _showing(what: str, *, quiet: bool) -> Iterator[Progress | None]:
    """A progress callback for the last line of a terminal; None where there is none."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with Console(stderr=True).status(what) as shown:
        yield lambda stage, done: shown.update(f"{what}: {stage.replace('_', ' ')} {done}")


# -- gc


def gc(
    mountpoint: MountedAt = None,
    remote: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Collect in s3://BUCKET/PREFIX or file:///DIRECTORY, which is not mounted."),
    ] = None,
    dry_run: DryRun = False,
    grace: mounting.Grace = None,
    endpoint_url: mounting.Endpoint = None,
    region: mounting.Region = None,
    path_style: mounting.PathStyle = False,
    key_file: mounting.KeyFile = None,
    as_json: Json = False,
) -> None:
    """Delete from the remote what no session and no kept snapshot needs, and has not for the grace period.

    A first run condemns, a later one deletes. While the remote is mounted only that mount deletes (it does so daily):
    give its MOUNTPOINT to have it do so now.
    """
    if (mountpoint is None) == (remote is None) and not (mountpoint is None and os.environ.get("SESSFS_REMOTE")):
        raise UsageError("collect what? Give either MOUNTPOINT or --remote URL")
    with _showing("collecting", quiet=as_json) as progress:
        if mountpoint is not None:
            answer = _collect_mounted(mountpoint, dry_run, grace, progress)
        else:
            settings = settings_for(remote, endpoint_url, region, path_style, key_file)
            grace_s = settings.grace_s if grace is None else _grace_s(grace)
            answer = trio.run(_collect, settings, Options(secrets.token_hex(8), grace_s, dry_run), progress)
    if as_json:
        output.print_json(answer)
    else:
        _print_collected(answer)


def _grace_s(grace: str) -> float:
    try:
        return config.parse_duration(grace)
    except ValueError as exc:
        raise UsageError(f"the flag --grace: {exc}") from exc


async def _collect(settings: Settings, options: Options, progress: Progress | None) -> dict[str, Any]:
    async def work(store: ObjectStore, hash_key: bytes, envelope: Envelope) -> dict[str, Any]:
        report = await collect(store, envelope, options, progress=progress)
        answer: dict[str, Any] = msgspec.to_builtins(report)
        return answer

    return await with_repository(settings, work)


def _collect_mounted(mountpoint: Path, dry_run: bool, grace: str | None, progress: Progress | None) -> dict[str, Any]:
    params = {"dry_run": dry_run, "grace_s": None if grace is None else _grace_s(grace)}

    def show(step: dict[str, Any]) -> None:
        if progress is not None:
            progress(str(step["stage"]), int(step["done"]))

    state_dir = preflight.find_state(mountpoint)
    return control.call(state_dir, "gc", params, timeout_s=None, on_progress=show)


def _print_collected(answer: dict[str, Any]) -> None:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for item in answer["items"]:
        counts[item["fate"]] += 1
        sizes[item["fate"]] += item["size_bytes"]
    rows = [
        (fate, str(counts[fate]), output.format_size(sizes[fate]), text) for fate, text in FATES.items() if counts[fate]
    ]
    if rows:
        print_table(("FATE", "OBJECTS", "SIZE", "WHY"), rows, right=(1, 2))
    for note in answer["notes"]:
        output.print_line(f"note: {note}")
    live, whole = output.format_size(answer["live_bytes"]), output.format_size(answer["segment_bytes"])
    verb = "would delete" if answer["dry_run"] else "deleted"
    output.print_line(
        f"{verb} {answer['deleted']} objects ({output.format_size(answer['deleted_bytes'])}); "
        f"{live} of {whole} in {answer['segments']} segments are live, in {answer['sessions']} sessions"
    )


# -- fsck


def check(settings: Settings, percent: float, *, repair: bool, quiet: bool) -> Report:
    """Check the remote of *settings*, reading *percent* of its frames, after a repair if one is wanted: what that did
    is in the notes. Raises RemoteError when that can't be done.
    """
    sampling = fsck_remote.Sampling(percent / 100, secrets.token_bytes(16))
    with _showing("checking", quiet=quiet) as progress:

        async def work(store: ObjectStore, hash_key: bytes, envelope: Envelope) -> Report:
            done = await repair_sessions(store, envelope) if repair else []
            report = await fsck_remote.check_remote(store, envelope, hash_key, sampling, progress)
            return msgspec.structs.replace(report, notes=[*done, *report.notes])

        return trio.run(with_repository, settings, work)


# -- key


def key(
    action: Annotated[KeyAction, typer.Argument(metavar="rotate", help="Have the remote open with a new key.")],
    remote: Annotated[
        str | None,
        typer.Option(metavar="URL", help="s3://BUCKET/PREFIX or file:///DIRECTORY [default: as configured]."),
    ] = None,
    endpoint_url: mounting.Endpoint = None,
    region: mounting.Region = None,
    path_style: mounting.PathStyle = False,
    key_file: mounting.KeyFile = None,
    new_key_file: Annotated[
        Path | None, typer.Option("--new-key-file", metavar="FILE", help="The new key; or set SESSFS_NEW_KEY.")
    ] = None,
) -> None:
    """Replace the key that opens an encrypted remote. The old one, by --key-file or SESSFS_KEY, opens it no more.

    Nothing else is written: contents stay encrypted with the master key, which the new key wraps from now on. Mounts
    that run go on; give them the new key before their next start.
    """
    settings = settings_for(remote, endpoint_url, region, path_style, key_file)
    if new_key_file is not None:
        places.require_outside("the new key file", new_key_file)
    trio.run(rotate_key, settings, _new_secret(new_key_file))
    output.print_line(f"{settings.remote} opens with the new key; give it to every mount before its next start")


def _new_secret(new_key_file: Path | None) -> bytes:
    text = os.environ.get("SESSFS_NEW_KEY")
    if (new_key_file is None) == (not text):
        raise UsageError("which new key? Give either --new-key-file FILE or the variable SESSFS_NEW_KEY")
    secret = new_key_file.read_bytes().strip() if new_key_file is not None else (text or "").encode()
    if not secret:
        raise UsageError(f"{new_key_file} is empty: a key has to have something in it")
    return secret


async def rotate_key(settings: Settings, new_secret: bytes) -> None:
    """Wrap the master key with *new_secret*, by compare-and-swap. Raises KeyWrong, RemoteConflict, RemoteError."""
    async with open_remote(remote_settings(settings)) as remote:
        store = remote.within(PATIENCE_S)
        secret = read_secret(settings)
        await remote_index.open_existing(store, secret, str(settings.remote))
        if settings.single_node:
            await remote.probe(PATIENCE_S)
        blob = await store.get(FORMAT_KEY)
        rewrapped = encode_format(rewrap_format(decode_format(blob.body), secret or b"", new_secret))
        try:
            await store.put_if(FORMAT_KEY, rewrapped, blob.etag)
        except RemoteConflict as exc:
            raise RemoteConflict(
                f"somebody else changed the key of {settings.remote} at this very moment: find out who, and try again"
            ) from exc
        if (await store.get(FORMAT_KEY)).body != rewrapped:
            raise RemoteConflict(
                f"somebody else changed the key of {settings.remote} right after: theirs is the one that opens it"
            )
