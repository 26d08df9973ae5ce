"""Settings: how they are read, and what is said when they can't be."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs import config
from sessfs.errors import UsageError

PLACE = Path("/srv/.whatsapp-sessions")


def load(
    flags: dict[str, object] | None = None,
    *,
    file: Path | None = None,
    env: dict[str, str] | None = None,
    uid: int = 0,
) -> config.Settings:
    return config.load(PLACE, flags or {}, file=file, env=env or {}, uid=uid)


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine's /etc/sessfs.toml must not decide a test."""
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.toml")


def test_load_nothing_given_takes_the_documented_defaults() -> None:
    settings = load()
    assert settings.state_dir == Path("/var/lib/sessfs/srv-.whatsapp-sessions-f4f06352")
    assert (settings.interval_s, settings.commit_interval_s, settings.seal_idle_s) == (60, 1, 10)
    assert settings.cache_size_bytes is None
    assert settings.remote is None
    assert settings.mount_options == ("allow_other",)


def test_load_later_sources_beat_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('interval = "1min"\nregion = "file"\nendpoint_url = "http://file"\n')
    env = {"SESSFS_REGION": "variable", "SESSFS_ENDPOINT_URL": "http://variable"}
    settings = load({"endpoint_url": "http://flag"}, file=file, env=env)
    assert (settings.interval_s, settings.region, settings.endpoint_url) == (60, "variable", "http://flag")


def test_load_without_config_flag_reads_the_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "default.toml"
    file.write_text("cache_size = 1000\n")
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    assert load().cache_size_bytes == 1000


def test_load_config_variable_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "named.toml"
    file.write_text('log_level = "debug"\n')
    assert load(env={"SESSFS_CONFIG": str(file)}).log_level == "debug"


def test_load_test_variables_are_no_settings() -> None:
    assert load(env={"SESSFS_TEST_CRASH": "1", "OTHER": "2"}) == load()


@pytest.mark.parametrize(
    ("flags", "toml", "env", "wanted"),
    [
        ({"cache_size": "10X"}, "", {}, "--cache-size: unit 'X'"),
        ({"interval": "soon"}, "", {}, "--interval: 'soon' is not a duration"),
        ({"interval": "0s"}, "", {}, "--interval: must be more than 0"),
        ({}, "cash_size = 1\n", {}, "cash_size in "),
        ({}, "interval = [1]\n", {}, "interval in "),
        ({}, "cache_size = inf\n", {}, "cache_size in "),
        ({}, "cache_size = -5\n", {}, "cache_size in "),
        ({}, "single_node = 'maybe'\n", {}, "'maybe' is not one of true, false"),
        ({}, "not toml", {}, "is not TOML"),
        ({}, "", {"SESSFS_LOG_LEVEL": "loud"}, "the variable SESSFS_LOG_LEVEL: 'loud'"),
        ({}, "", {"SESSFS_CACHE": "1"}, "the variable SESSFS_CACHE is not a setting"),
        ({"remote": "http://bucket"}, "", {}, "is not of the form s3://"),
        ({"mount_options": "allow_others"}, "", {}, "'allow_others' is not one of"),
        ({"max_sessions": "0"}, "", {}, "the flag --max-sessions: 0 is not a number above 0, or off"),
        ({"max_session_bytes": "none"}, "", {}, "'none' is not a size"),
        ({"max_session_bytes": "99999999T"}, "", {}, "--max-session-bytes: '99999999T' is too large"),
        ({"cache_size": "9" * 400}, "", {}, "is too large"),
        ({"interval": "9" * 400}, "", {}, "is too long"),
        ({"max_sessions": "9" * 40}, "", {}, "is not a number above 0, or off"),
        ({}, f"keep_last = {1 << 63}", {}, "is not a count such as 7"),
        ({}, "expire_days = -1", {}, "-1 is not a number of days above 0"),
        ({"expire_action": "delete"}, "", {}, "'delete' is not one of hibernate, remove"),
        ({}, "chrome_names = [1]", {}, "is not a list of names"),
    ],
)
def test_load_bad_setting_is_named_with_its_source(
    tmp_path: Path, flags: dict[str, object], toml: str, env: dict[str, str], wanted: str
) -> None:
    file = tmp_path / "s.toml"
    file.write_text(toml)
    with pytest.raises(UsageError) as caught:
        load(flags, file=file, env=env)
    assert wanted in str(caught.value)
    if toml:
        assert str(file) in str(caught.value)


def test_load_expiry_without_a_remote_needs_its_action() -> None:
    with pytest.raises(UsageError, match="--expire-action remove"):
        load({"expire_days": "30"})
    assert load({"expire_days": "30", "expire_action": "remove"}).expire_days == 30
    assert load({"expire_days": "30", "remote": "file:///r"}).expire_action is None
    assert load({"expire_days": "off", "max_sessions": "off", "max_session_bytes": "off"}).expire_days is None


def test_load_missing_config_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        load(file=tmp_path / "absent")


def test_load_every_toml_key_is_understood(tmp_path: Path) -> None:
    """The example of docs/operate.md in spirit: one value for each setting there is."""
    values: dict[str, object] = dict.fromkeys(config.setting_keys(), "1")
    values |= {"log_level": "info", "mount_options": "ro", "remote": "s3://bucket/prefix", "expire_action": "remove"}
    settings = load(values)
    assert (settings.max_sessions, settings.expire_days, settings.expire_action) == (1, 1.0, "remove")
    assert settings.single_node
    assert settings.upload_limit_bytes_per_s == 1
    assert settings.mount_options == ("ro", "allow_other")


@pytest.mark.parametrize("name", [os.fsdecode(b"/srv/\xff"), "/srv/a\nb"])
def test_load_path_that_can_not_be_printed_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        config.load(Path(name), {}, file=None, env={}, uid=0)
    with pytest.raises(UsageError, match="not UTF-8"):
        load({"state": name})


def test_load_relative_paths_become_absolute() -> None:
    settings = load({"state": "here", "key_file": "~/key"})
    assert settings.state_dir == Path.cwd() / "here"
    assert settings.key_file == Path.home() / "key"


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("1K", 1024),
        ("1k", 1024),
        ("1.5 KiB", 1536),
        ("10G", 10 * 2**30),
        ("10GB", 10**10),
        (7, 7),
        ("2tib", 2**41),
    ],
)
def test_parse_size(text: object, n_bytes: int) -> None:
    assert config.parse_size(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("60s", 60), ("10min", 600), ("2h", 7200), ("7d", 604800), (1.5, 1.5), ("3", 3)],
)
def test_parse_duration(text: object, seconds: float) -> None:
    assert config.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "G", "-1", "1 2", "1e3", None, True, [1], "1Q"])
def test_parse_size_and_duration_refuse_the_rest(value: object) -> None:
    with pytest.raises(ValueError, match=r"unit|is not"):
        config.parse_size(value)
    with pytest.raises(ValueError, match=r"unit|is not"):
        config.parse_duration(value)


@given(st.integers(0, 2**50))
def test_parse_size_reads_back_what_python_writes(n_bytes: int) -> None:
    assert config.parse_size(str(n_bytes)) == n_bytes
    assert config.parse_size(f"{n_bytes}K") == n_bytes * 1024


TEXTS = st.text(min_size=1).filter(lambda text: "\0" not in text)


@given(
    state=TEXTS,
    cache=st.none() | st.integers(1, 2**62),
    interval=st.floats(0.001, 1e9),
    options=st.lists(st.sampled_from(sorted(config.MOUNT_OPTIONS))),
    key=st.none() | TEXTS,
)
def test_settings_json_round_trip_is_equal(
    state: str, cache: int | None, interval: float, options: list[str], key: str | None
) -> None:
    settings = config.Settings(
        mountpoint=PLACE,
        state_dir=Path("/") / state,
        cache_size_bytes=cache,
        interval_s=interval,
        mount_options=tuple(options),
        key_file=None if key is None else Path(key),
    )
    assert config.Settings.from_json(settings.to_json()) == settings
    assert b"\n" not in settings.to_json()


@pytest.mark.parametrize(
    "encoded", [b"", b"{}", b'{"mountpoint": 1}', b'{"mountpoint": "/a", "state_dir": "/b", "x": 1}']
)
def test_settings_from_json_refuses_what_it_did_not_write(encoded: bytes) -> None:
    with pytest.raises(UsageError, match="do not decode"):
        config.Settings.from_json(encoded)


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        load().log_level = "debug"  # type: ignore[misc]
    assert msgspec.structs.fields(config.Settings)


def test_default_state_dir_of_a_user_lies_in_the_home() -> None:
    env = {"HOME": "/home/u"}
    assert config.default_state_dir(PLACE, env=env, uid=1000) == Path(
        "/home/u/.local/state/sessfs/srv-.whatsapp-sessions-f4f06352"
    )
    env["XDG_STATE_HOME"] = "/x"
    assert config.default_state_dir(PLACE, env=env, uid=1000) == Path("/x/sessfs/srv-.whatsapp-sessions-f4f06352")


def test_default_state_dirs_of_any_two_mountpoints_differ_and_are_valid_names() -> None:
    long = ["/" + "/".join(["ä" * 50] * 10) + end for end in ("/a", "/b")]
    paths = [Path(path) for path in (*long, "/a-b", "/a/b", "/a-/b", "/a/-b", "/", os.fsdecode(b"/\xff"), "/root")]
    names = [config.default_state_dir(path, env={}, uid=0).name for path in paths]
    assert len(set(names)) == len(paths)
    assert all(len(os.fsencode(name)) <= 255 for name in names)


def test_cache_bound_default_is_nine_tenths_of_the_room() -> None:
    settings = load()
    assert config.cache_bound_bytes(settings, free_bytes=900, used_bytes=100) == 900
    assert config.cache_bound_bytes(load({"cache_size": "5"}), free_bytes=900, used_bytes=100) == 5
