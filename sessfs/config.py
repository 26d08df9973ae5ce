"""Settings of one mount: defaults, a TOML file, SESSFS_* variables, flags; each beats the one before.

One name serves everywhere: the flag `--cache-size`, the variable `SESSFS_CACHE_SIZE` and the TOML key `cache_size`
are the same setting. Sizes are written `10G` (powers of 1024; `10GB` is powers of 1000), durations `60s` or `10min`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sessfs.chrome import CHROME_PROCESSES
from sessfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STATE_VERSION = 1
"""The layout of a state directory that this sessfs writes, as it stands in STATE/format."""

DEFAULT_FILE = Path("/etc/sessfs.toml")
"""Read when no `--config` is given, if it exists."""

ENV_PREFIX = "SESSFS_"
TEST_PREFIX = "SESSFS_TEST_"
NOT_SETTINGS = ("SESSFS_CONFIG", "SESSFS_KEY", "SESSFS_NEW_KEY")
"""Variables with a meaning of their own: the settings file, and secrets, which no settings file should hold."""
"""Variables with this prefix are never settings: tests may use them."""

EXPIRE_ACTIONS = ("hibernate", "remove")
MAX_DAYS = 36_500.0
MAX_NUMBER = (1 << 63) - 1
"""Of sizes and counts: what is larger can't be stored."""

LOG_LEVELS = ("debug", "info", "warning", "error")

_FUSE_OPTIONS = "allow_other no_allow_other default_permissions"
_KERNEL_OPTIONS = "ro rw suid nosuid dev nodev exec noexec atime noatime sync async dirsync"
MOUNT_OPTIONS = frozenset(f"{_FUSE_OPTIONS} {_KERNEL_OPTIONS}".split())
"""What `-o` takes, beside the settings."""

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    **{unit: 1024**power for power, letter in enumerate("KMGT", 1) for unit in (letter, letter + "iB")},
    **{letter + "B": 1000**power for power, letter in enumerate("KMGT", 1)},
}
_DURATION_UNITS = {"": 1, "ms": 0.001, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a daemon needs to know, as it travels to it: JSON there and back gives an equal value.

    Paths are absolute. A size is in bytes, a time in seconds.
    """

    mountpoint: Path
    state_dir: Path
    cache_size_bytes: int | None = None
    """Bound on hot files and chunks together; None: see cache_bound_bytes."""
    log_level: str = "info"
    foreground: bool = False
    mount_options: tuple[str, ...] = ()
    """For FUSE, such as `allow_other` and `ro`; already checked against MOUNT_OPTIONS."""
    remote: str | None = None
    """`s3://BUCKET/PREFIX` or `file:///DIRECTORY`; None: the local store alone."""
    endpoint_url: str | None = None
    region: str | None = None
    path_style: bool = False
    interval_s: float = 60.0
    """From the first change of a session to its upload."""
    upload_limit_bytes_per_s: int | None = None
    risk_limit_s: float = 600.0
    """Changes not uploaded for longer than this are warned of."""
    key_file: Path | None = None
    single_node: bool = False
    take_over: bool = False
    stale_s: float = 30.0
    """With take_over: how long another node's heartbeat must have stood still before it is fenced."""
    unmount_timeout_s: float = 30.0
    """How long an unmount waits for the remote to take what is pending; the rest goes on at the next mount."""
    upload_caches: bool = False
    wait_at_start: bool = False
    """A Chrome whose databases are only in the remote, which does not answer, waits instead of being refused."""
    grace_s: float = 7 * 86400.0
    """Collection deletes nothing in the remote that is younger."""
    max_sessions: int | None = None
    """Most top-level directories; None: no limit. So for the next three. What `sessfs limit` set wins over all four."""
    max_active: int | None = None
    """Most sessions with open files."""
    max_session_bytes: int | None = None
    """Most bytes of the files of one session."""
    max_unique_bytes: int | None = None
    """Most bytes that one session alone has."""
    expire_days: float | None = None
    """Sessions not used for so long expire; None: never."""
    expire_action: str | None = None
    """`hibernate` or `remove`; None: hibernate, which needs a remote."""
    trash_days: float = 30.0
    """How long a removed session rests in the trash."""
    chrome_names: tuple[str, ...] = CHROME_PROCESSES
    """Names of the programs whose opens count as use of a session."""
    keep_last: int = 10
    """Of each session so many of its last snapshots are kept, at least one."""
    keep_hourly: int = 24
    keep_daily: int = 7
    snapshot_interval_s: float = 3600.0
    """Without a remote: from the first change of a session to its next snapshot."""
    commit_interval_s: float = 1.0
    """The longest that an acknowledged metadata change waits for its durable transaction."""
    seal_idle_s: float = 10.0
    """A hot file that has not been written to for this long is sealed."""
    warn_total_bytes: int = 50 * 10**9
    """Logical bytes of all sessions together, above which `status` warns."""

    def to_json(self) -> bytes:
        """One line of JSON, which from_json turns back into an equal value."""
        return msgspec.json.encode(self, enc_hook=_encode_path)

    @classmethod
    def from_json(cls, encoded: bytes) -> Settings:
        """Raise UsageError when *encoded* is not what to_json gives."""
        try:
            return msgspec.json.decode(encoded, type=cls, dec_hook=_decode_path)
        except (msgspec.DecodeError, msgspec.ValidationError) as exc:
            raise UsageError(f"the settings given to the daemon do not decode: {exc}") from exc


def _encode_path(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    # How msgspec wants to hear that a value is none of ours.
    raise NotImplementedError


def _decode_path(wanted: type, value: object) -> object:
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected the text of a path, got {value!r}")


@dataclass(frozen=True)
class _Setting:
    """One setting: its name in flags and files, the field it fills, and how its value is read."""

    key: str
    field: str
    parse: Callable[[object], object]


def parse_size(value: object) -> int:
    """Bytes in *value*: a number, or a string such as `10G` or `1.5 GiB` (powers of 1024) or `10GB` (powers of 1000).

    Raises ValueError, whose text says what would be right.
    """
    number, unit = _quantity(value, "a size such as 500M or 10G")
    factor = {name.lower(): factor for name, factor in _SIZE_UNITS.items()}.get(unit.lower())
    if factor is None:
        raise ValueError(f"unit {unit!r} is not one of K, M, G, T (powers of 1024) or KB, MB, GB, TB (powers of 1000)")
    if number * factor > MAX_NUMBER:
        raise ValueError(f"{value!r} is too large: sizes end at {MAX_NUMBER} bytes")
    return int(number * factor)


def parse_duration(value: object) -> float:
    """Seconds in *value*: a number, or a string such as `500ms`, `60s`, `10min`, `2h`, `7d`. Raises ValueError."""
    number, unit = _quantity(value, "a duration such as 60s or 10min")
    factor = _DURATION_UNITS.get(unit.lower())
    if factor is None:
        raise ValueError(f"unit {unit!r} is not one of ms, s, min, h, d, w")
    if number * factor > MAX_DAYS * _DURATION_UNITS["d"]:
        raise ValueError(f"{value!r} is too long: durations end at {MAX_DAYS:.0f} days")
    return number * factor


def _quantity(value: object, wanted: str) -> tuple[float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value), ""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not {wanted}")
    return float(match[1]), match[2]


def _positive_size(value: object) -> int:
    size = parse_size(value)
    if size <= 0:
        raise ValueError("must be more than 0")
    return size


def _positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("must be more than 0")
    return seconds


def _count_or_off(value: object) -> int | None:
    if value == "off":
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_NUMBER:
        raise ValueError(f"{value!r} is not a number above 0, or off")
    return value


def _size_or_off(value: object) -> int | None:
    return None if value == "off" else _positive_size(value)


def _days(value: object) -> float:
    try:
        days = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else 0.0
    except ValueError:
        days = 0.0
    if not 0 < days < MAX_DAYS:
        raise ValueError(f"{value!r} is not a number of days above 0")
    return days


def _days_or_off(value: object) -> float | None:
    return None if value == "off" else _days(value)


def _expire_action(value: object) -> str:
    action = _text(value)
    if action not in EXPIRE_ACTIONS:
        raise ValueError(f"{value!r} is not one of {', '.join(EXPIRE_ACTIONS)}")
    return action


def _names(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError(f"{value!r} is not a list of names")
    return tuple(dict.fromkeys(part.strip() for part in parts))


def _count(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{value!r} is not a count such as 7")
    return value


def _positive_count(value: object) -> int:
    count = _count(value)
    if count == 0:
        raise ValueError("must be at least 1")
    return count


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a text")
    return value


def _path(value: object) -> Path:
    return Path(os.path.abspath(Path(_text(value)).expanduser()))


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    answer = known.get(value.lower()) if isinstance(value, str) else None
    if answer is None:
        raise ValueError(f"{value!r} is not one of true, false")
    return answer


def _log_level(value: object) -> str:
    level = _text(value).lower()
    if level not in LOG_LEVELS:
        raise ValueError(f"{value!r} is not one of {', '.join(LOG_LEVELS)}")
    return level


def _remote(value: object) -> str:
    url = _text(value)
    if not re.fullmatch(r"s3://[^/]{3,}(/.*)?|file:///.+", url):
        raise ValueError(f"{url!r} is not of the form s3://BUCKET/PREFIX or file:///DIRECTORY")
    return url.rstrip("/")


def _options(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{value!r} is not a list of mount options")
    options = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for option in options:
        if option not in MOUNT_OPTIONS:
            raise ValueError(f"{option!r} is not one of {', '.join(sorted(MOUNT_OPTIONS))}")
    return options


def _table() -> dict[str, _Setting]:
    rows = (
        _Setting("state", "state_dir", _path),
        _Setting("cache_size", "cache_size_bytes", _positive_size),
        _Setting("log_level", "log_level", _log_level),
        _Setting("foreground", "foreground", _switch),
        _Setting("mount_options", "mount_options", _options),
        _Setting("remote", "remote", _remote),
        _Setting("endpoint_url", "endpoint_url", _text),
        _Setting("region", "region", _text),
        _Setting("path_style", "path_style", _switch),
        _Setting("interval", "interval_s", _positive_duration),
        _Setting("upload_limit", "upload_limit_bytes_per_s", _positive_size),
        _Setting("risk_limit", "risk_limit_s", _positive_duration),
        _Setting("key_file", "key_file", _path),
        _Setting("single_node", "single_node", _switch),
        _Setting("take_over", "take_over", _switch),
        _Setting("stale", "stale_s", _positive_duration),
        _Setting("unmount_timeout", "unmount_timeout_s", _positive_duration),
        _Setting("upload_caches", "upload_caches", _switch),
        _Setting("wait_at_start", "wait_at_start", _switch),
        _Setting("grace", "grace_s", parse_duration),
        _Setting("max_sessions", "max_sessions", _count_or_off),
        _Setting("max_active", "max_active", _count_or_off),
        _Setting("max_session_bytes", "max_session_bytes", _size_or_off),
        _Setting("max_unique_bytes", "max_unique_bytes", _size_or_off),
        _Setting("expire_days", "expire_days", _days_or_off),
        _Setting("expire_action", "expire_action", _expire_action),
        _Setting("trash_days", "trash_days", _days),
        _Setting("chrome_names", "chrome_names", _names),
        _Setting("keep_last", "keep_last", _positive_count),
        _Setting("keep_hourly", "keep_hourly", _count),
        _Setting("keep_daily", "keep_daily", _count),
        _Setting("snapshot_interval", "snapshot_interval_s", _positive_duration),
        _Setting("commit_interval", "commit_interval_s", _positive_duration),
        _Setting("seal_idle", "seal_idle_s", _positive_duration),
        _Setting("warn_total", "warn_total_bytes", _positive_size),
    )
    return {row.key: row for row in rows}


def setting_keys() -> tuple[str, ...]:
    """The name of every setting as a TOML key; the flag is the same with `-` for `_`."""
    return tuple(_table())


def load(
    mountpoint: Path,
    flags: Mapping[str, object],
    *,
    file: Path | None,
    env: Mapping[str, str],
    uid: int,
) -> Settings:
    """The settings of a mount at *mountpoint* (absolute, links resolved).

    *flags* has only what was given on the command line, by TOML key. *file* is `--config`'s; None: the variable
    SESSFS_CONFIG, else DEFAULT_FILE if it exists. *uid* decides the default state directory, and that root's mounts
    get allow_other (unless no_allow_other is given). Raises UsageError, which names the setting and where it came
    from, for an unknown name or a value that does not parse, and for a file that can't be read.
    """
    fields: dict[str, Any] = {}
    chosen = file or (Path(env["SESSFS_CONFIG"]) if env.get("SESSFS_CONFIG") else None)
    if chosen is None and DEFAULT_FILE.exists():
        chosen = DEFAULT_FILE
    if chosen is not None:
        fields |= _read_all(_read_toml(chosen), lambda key: f"{key} in {chosen}")
    fields |= _read_all(_env_values(env), lambda key: f"the variable {ENV_PREFIX}{key.upper()}")
    fields |= _read_all(flags, lambda key: f"the flag --{key.replace('_', '-')}")
    if "state_dir" not in fields:
        fields["state_dir"] = default_state_dir(mountpoint, env=env, uid=uid)
    options: tuple[str, ...] = fields.get("mount_options", ())
    if uid == 0 and not {"allow_other", "no_allow_other"} & set(options):
        options = (*options, "allow_other")
    fields["mount_options"] = tuple(option for option in options if option != "rw")
    for path in (mountpoint, *(value for value in fields.values() if isinstance(value, Path))):
        if not str(path).isprintable():
            raise UsageError(
                f"the path {str(path)!r} has bytes that are not UTF-8, or control characters: choose another"
            )
    if fields.get("expire_days") and not fields.get("remote") and fields.get("expire_action") != "remove":
        raise UsageError(
            "--expire-days without --remote has nowhere to hibernate sessions to: add --expire-action remove to have "
            "them moved to the trash"
        )
    return Settings(mountpoint=mountpoint, **fields)


def _read_all(values: Mapping[str, object], source: Callable[[str], str]) -> dict[str, object]:
    table = _table()
    fields = {}
    for key, value in values.items():
        setting = table.get(key)
        if setting is None:
            raise UsageError(f"{source(key)} is not a setting; known are {', '.join(table)}")
        try:
            fields[setting.field] = setting.parse(value)
        except ValueError as exc:
            raise UsageError(f"{source(key)}: {exc}") from exc
    return fields


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise UsageError(f"the settings file {path} can't be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"the settings file {path} is not TOML: {exc}") from exc


def _env_values(env: Mapping[str, str]) -> dict[str, object]:
    return {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in env.items()
        if name.startswith(ENV_PREFIX) and not name.startswith(TEST_PREFIX) and name not in NOT_SETTINGS
    }


def default_state_dir(mountpoint: Path, *, env: Mapping[str, str], uid: int) -> Path:
    """Where the state of *mountpoint* is kept unless `--state` says otherwise.

    Root: /var/lib/sessfs/NAME; others: $XDG_STATE_HOME/sessfs/NAME, by default ~/.local/state/sessfs/NAME. NAME is
    the end of the mountpoint's path with `-` for `/`, for people, and a hash of the whole, so that no two share one.
    """
    encoded = os.fsencode(mountpoint)
    readable = encoded.strip(b"/").replace(b"/", b"-")[-180:].decode("utf-8", "ignore") or "root"
    name = f"{readable}-{hashlib.sha256(encoded).hexdigest()[:8]}"
    if uid == 0:
        return Path("/var/lib/sessfs") / name
    base = env.get("XDG_STATE_HOME") or os.path.join(env.get("HOME") or "~", ".local", "state")
    return Path(os.path.abspath(os.path.expanduser(base))) / "sessfs" / name


def cache_bound_bytes(settings: Settings, *, free_bytes: int, used_bytes: int) -> int:
    """The bound on hot files and chunks together.

    `--cache-size` if given, else 90 % of the room that the state directory's filesystem has for it: what is free
    (*free_bytes*) and what the state itself uses already (*used_bytes*).
    """
    if settings.cache_size_bytes is not None:
        return settings.cache_size_bytes
    return (free_bytes + used_bytes) * 9 // 10
