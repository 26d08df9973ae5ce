"""The commands as an operator or a script runs them, on a real mount."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessfs import config
from tests.support.mounted import FSTYPE, Mounted, mount_lines, process, wait_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "sessfs.cli.entry")
STATUS_KEYS = {
    *("pid", "version", "uptime_seconds", "sessions", "files", "logical_bytes", "stored_bytes", "dedup_ratio"),
    *("compression_ratio", "hot_bytes", "cache_bytes", "memory_bytes", "warnings"),
    *("users", "total_bytes", "average_bytes"),
}
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory for mounts that tests make themselves; what is still mounted below it is taken away."""
    yield tmp_path
    for line in reversed(mount_lines(below=tmp_path)):
        subprocess.run(["umount", "-i", "-l", str(line.mountpoint)], check=True)


def run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end, with all streams of its own."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
        env={**os.environ, **(env or {})},
    )


def sessfs(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run(*COMMAND, *arguments, env=env)


def test_mount_returns_when_the_mount_answers_and_holds_no_stream(place: Path) -> None:
    """capture_output would wait for ever if the daemon kept our pipes."""
    done = sessfs("mount", place / "m", "--state", place / "s")
    assert done.returncode == 0, done.stderr
    assert str(place / "s") in done.stdout
    assert done.stderr == ""
    assert f"sessfs umount {place / 'm'}" in done.stdout
    (place / "m" / "user1").mkdir()
    assert sessfs("umount", place / "m").returncode == 0
    assert list((place / "m").iterdir()) == []


def test_mount_remembers_after_unmount(place: Path) -> None:
    for expected in ([], ["user1"]):
        assert sessfs("mount", place / "m", "--state", place / "s").returncode == 0
        assert sorted(os.listdir(place / "m")) == expected
        (place / "m" / "user1").mkdir(exist_ok=True)
        (place / "m" / "user1" / "f").write_bytes(b"x" * 100_000)
        assert sessfs("umount", place / "m").returncode == 0


def test_mount_settings_from_file_and_variable(place: Path) -> None:
    (place / "c.toml").write_text(f'state = "{place}/from-file"\nlog_level = "debug"\n')
    done = sessfs(
        "mount", place / "m", "--config", place / "c.toml", env={"SESSFS_STATE": str(place / "from-variable")}
    )
    assert done.returncode == 0, done.stderr
    assert (place / "from-variable" / "lock").exists()
    assert not (place / "from-file").exists()
    assert sessfs("umount", place / "m").returncode == 0


def test_mount_non_empty_directory_is_refused(place: Path) -> None:
    (place / "m").mkdir()
    (place / "m" / "file").touch()
    done = sessfs("mount", place / "m", "--state", place / "s")
    assert done.returncode == 10
    assert "not empty" in done.stderr
    assert not mount_lines(place / "m")


def test_mount_state_of_a_newer_version_is_refused(place: Path) -> None:
    (place / "s").mkdir()
    (place / "s" / "format").write_text('{"version": 1000}')
    done = sessfs("mount", place / "m", "--state", place / "s")
    assert done.returncode == 14
    assert "update sessfs" in done.stderr


def test_mount_second_on_the_state_names_the_first_pid(mount: Mounted) -> None:
    for mountpoint in (mount.path, mount.path.parent / "other"):
        done = mount.sessfs("mount", str(mountpoint), "--state", str(mount.state), check=False)
        assert done.returncode == 15
        assert len(done.stderr.splitlines()) == 1
        assert f"pid {mount.pid}" in done.stderr
    assert mount.n_mounts() == 1


def test_mount_foreground_serves_until_sigterm(place: Path) -> None:
    log = place / "log"
    with log.open("wb") as stderr:
        daemon = subprocess.Popen(
            [*COMMAND, "mount", str(place / "m"), "--state", str(place / "s"), "--foreground"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + 30
        while not mount_lines(place / "m"):
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert json.loads(sessfs("status", place / "m", "--json").stdout)["pid"] == daemon.pid
        (place / "m" / "user1").mkdir()
    finally:
        daemon.terminate()
        code = daemon.wait(60)
    assert code == 0
    assert not mount_lines(place / "m")
    assert "mounted" in log.read_text()


def test_mount_after_kill_cleans_the_dead_mountpoint_by_itself(mount: Mounted) -> None:
    """Row 53, with the real daemon: one mount afterwards, and what was fsynced is there."""
    (mount.path / "user1").mkdir()
    fd = os.open(mount.path / "user1" / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"kept")
        os.fsync(fd)
        mount.kill()
        with pytest.raises(OSError, match="not connected"):
            os.statvfs(mount.path)
        done = mount.sessfs("status", str(mount.path), check=False)
        assert done.returncode == 16
        assert "dead" in done.stderr
        mount.mount()
    finally:
        # The descriptor belongs to the dead mount, and closing it says so.
        with contextlib.suppress(OSError):
            os.close(fd)
    assert mount.n_mounts() == 1
    assert (mount.path / "user1" / "f").read_bytes() == b"kept"


def test_umount_dead_mount_says_so(mount: Mounted) -> None:
    mount.kill()
    done = mount.sessfs("umount", str(mount.path))
    assert "was dead" in done.stdout
    assert not mount.is_mounted()
    assert mount.sessfs("umount", str(mount.path), check=False).returncode == 16


def test_umount_busy_names_the_process_and_stays(mount: Mounted) -> None:
    (mount.path / "user1").mkdir()
    holder = subprocess.Popen(["sleep", "600"], cwd=mount.path / "user1")
    try:
        done = mount.sessfs("umount", str(mount.path), check=False)
        assert done.returncode == 17
        assert f"sleep (pid {holder.pid}: {mount.path}/user1)" in done.stderr
        assert mount.is_mounted()
        (mount.path / "user1" / "still").touch()
    finally:
        holder.kill()
        holder.wait()


def test_umount_leaves_nothing_in_the_kernel(mount: Mounted) -> None:
    """Row 54: 100 MB without fsync, then unmount at once; all of it is there at the next mount."""
    (mount.path / "user1").mkdir()
    block = os.urandom(1_000_000)
    with (mount.path / "user1" / "big").open("wb") as file:
        for _ in range(100):
            file.write(block)
    mount.remount()
    with (mount.path / "user1" / "big").open("rb") as file:
        for _ in range(100):
            assert file.read(1_000_000) == block
        assert file.read(1) == b""


@pytest.mark.parametrize("how", ["sigterm", "fusermount", "umount", "umount -l"])
def test_ended_from_outside_keeps_pages_that_were_not_flushed(mount: Mounted, how: str) -> None:
    """Row 54, the ways that do not go through `sessfs umount`."""
    (mount.path / "user1").mkdir()
    content = os.urandom(20_000_000)
    (mount.path / "user1" / "big").write_bytes(content)
    daemon = process(mount.pid)
    if how == "sigterm":
        os.kill(mount.pid, signal.SIGTERM)
    else:
        command = {"fusermount": "fusermount3 -u", "umount": "umount -i", "umount -l": "umount -i -l"}[how]
        assert run(*command.split(), mount.path).returncode == 0
    assert not wait_gone([daemon], 60)
    mount.mount()
    assert (mount.path / "user1" / "big").read_bytes() == content


def test_status_json_has_the_promised_keys(mount: Mounted) -> None:
    (mount.path / "user1").mkdir()
    (mount.path / "user1" / "f").write_bytes(b"a" * 1_000_000)
    status = mount.status()
    assert set(status) >= STATUS_KEYS
    assert (status["pid"], status["sessions"], status["files"]) == (mount.pid, 1, 1)
    assert status["logical_bytes"] == 1_000_000
    assert status["warnings"] == []
    assert status["mountpoint"] == str(mount.path)


def test_status_says_how_many_users_there_are_and_what_they_have(mount: Mounted) -> None:
    for name, size in (("alice", 3_000_000), ("bob", 1_000_000)):
        (mount.path / name).mkdir()
        (mount.path / name / "f").write_bytes(b"a" * size)
    (mount.path / "a file of no user").write_bytes(b"a" * 500)
    status = mount.status()
    assert (status["users"], status["total_bytes"], status["average_bytes"]) == (2, 4_000_000, 2_000_000)


def test_status_warns_above_warn_total() -> None:
    with Mounted(options=["--warn-total", "3MB"]) as mount:
        (mount.path / "alice").mkdir()
        (mount.path / "alice" / "f").write_bytes(b"a" * 3_000_000)
        assert mount.status()["warnings"] == []
        (mount.path / "alice" / "g").write_bytes(b"a")
        (warning,) = mount.status()["warnings"]
        assert warning.startswith("all sessions (1) have 0.003 GB together, more than --warn-total (0.003 GB): ")
        mount.umount()
        done = mount.sessfs("mount", str(mount.path), "--state", str(mount.state), *mount.options)
        assert "--warn-total" in done.stderr
        mount.adopt()


def test_sessions_are_sorted_as_asked(mount: Mounted) -> None:
    shared = os.urandom(3_000_000)
    (mount.path / "a-shares").mkdir()
    (mount.path / "a-shares" / "f").write_bytes(shared)
    (mount.path / "c-shares").mkdir()
    (mount.path / "c-shares" / "f").write_bytes(shared + b"a little more")
    time.sleep(1.1)  # last changes are shown to the second
    (mount.path / "b-alone").mkdir()
    (mount.path / "b-alone" / "f").write_bytes(os.urandom(1_000_000))
    mount.seal()

    def listed(*options: str) -> list[str]:
        answer = json.loads(mount.sessfs("sessions", str(mount.path), "--json", *options).stdout)
        return [row["name"] for row in answer["sessions"]]

    assert listed() == ["a-shares", "b-alone", "c-shares"]
    assert listed("--reverse") == ["c-shares", "b-alone", "a-shares"]
    assert listed("--sort", "size") == ["c-shares", "a-shares", "b-alone"]
    assert listed("--sort", "unique")[0] == "b-alone"
    assert listed("--sort", "used")[0] == "b-alone"
    assert listed("--sort", "used", "--reverse")[-1] == "b-alone"
    shown = mount.sessfs("sessions", str(mount.path), "--sort", "size").stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["SESSION", "c-shares", "a-shares", "b-alone"]


def test_status_of_all_mounts_shows_dead_ones_too(mount: Mounted) -> None:
    listed = json.loads(mount.sessfs("status", "--json").stdout)
    assert [each["pid"] for each in listed if each["mountpoint"] == str(mount.path)] == [mount.pid]
    mount.kill()
    listed = json.loads(mount.sessfs("status", "--json").stdout)
    (dead,) = (each for each in listed if each["mountpoint"] == str(mount.path))
    assert "dead" in dead["warnings"][0]
    mount.mount()


def test_status_for_people_has_units(mount: Mounted) -> None:
    os.listdir(mount.path)
    shown = mount.sessfs("status", str(mount.path)).stdout
    assert re.search(r"^memory +\d+\.\d MiB$", shown, re.MULTILINE)
    assert re.search(r"^uptime +[\d.]+ s$", shown, re.MULTILINE)
    assert re.search(r"^requests +\w+ \d+, ", shown, re.MULTILINE)


def test_sessions_lists_each_with_what_only_it_has(mount: Mounted) -> None:
    shared, own = os.urandom(2_000_000), os.urandom(1_000_000)
    for name in ("alice", "bob"):
        (mount.path / name).mkdir()
        (mount.path / name / "shared").write_bytes(shared)
    (mount.path / "bob" / "own").write_bytes(own)
    mount.seal()
    listed = json.loads(mount.sessfs("sessions", str(mount.path), "--json").stdout)["sessions"]
    alice, bob = sorted((each for each in listed if each["name"] != "."), key=lambda each: each["name"])
    assert (alice["files"], bob["files"]) == (1, 2)
    assert bob["logical_bytes"] == 3_000_000
    assert alice["unique_bytes"] < 100_000
    assert 900_000 < bob["unique_bytes"] < 1_200_000
    assert RFC3339.fullmatch(bob["last_change"])
    assert "alice" in mount.sessfs("sessions", str(mount.path)).stdout


def test_fsck_of_a_mounted_state_is_refused(mount: Mounted) -> None:
    done = mount.sessfs("fsck", "--state", str(mount.state), check=False)
    assert done.returncode == 15
    assert f"pid {mount.pid}" in done.stderr


def test_fsck_finds_a_flipped_bit(place: Path) -> None:
    with Mounted(state=place / "s") as mounted:
        (mounted.path / "user1").mkdir()
        (mounted.path / "user1" / "f").write_bytes(os.urandom(300_000))
        mounted.seal()
        mounted.umount()
        assert sessfs("fsck", "--state", mounted.state).returncode == 0
        chunks = mounted.state / "chunks" / "data.mdb"
        content = bytearray(chunks.read_bytes())
        # Incompressible chunks lie there as they are: the largest value fills the file's middle.
        content[len(content) // 2] ^= 0xFF
        chunks.write_bytes(content)
        done = sessfs("fsck", "--state", mounted.state, "--json")
        report = json.loads(done.stdout)
        assert done.returncode == 21
        assert not report["clean"]
        assert "chunk" in {problem["kind"] for problem in report["problems"]}


def test_doctor_says_that_this_machine_can_mount(place: Path) -> None:
    done = sessfs("doctor", "--state", place / "s", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["would_mount"] is True


@pytest.mark.parametrize("fs_type", ["sessfs", "fuse.sessfs"])
def test_mount_helpers_of_mount8_and_fstab(place: Path, fs_type: str) -> None:
    """What `make install` puts into /sbin, tried in place: as mount(8) would call it, and then back."""
    env = {"PATH": f"{_bin_with_sessfs(place)}:{os.environ['PATH']}"}
    scripts = REPOSITORY / "scripts"
    options = "rw,cache_size=2G,log-level=debug,_netdev,nofail,x-systemd.requires=a,noatime"
    helped = run(scripts / "mount.sessfs", place / "s", place / "m m", "-o", options, "-t", fs_type, env=env)
    assert helped.returncode == 0, helped.stderr
    (line,) = mount_lines(place / "m m")
    assert line.fstype == FSTYPE
    assert "debug" in (place / "s" / "sessfs.log").read_text().lower()
    helped = run(scripts / "umount.sessfs", place / "m m", "-t", fs_type, env=env)
    assert helped.returncode == 0, helped.stderr
    assert not mount_lines(place / "m m")


def _bin_with_sessfs(place: Path) -> Path:
    """A directory with a command `sessfs` in it that runs this checkout's."""
    directory = place / "bin"
    directory.mkdir()
    script = directory / "sessfs"
    script.write_text(f'#!/bin/sh\nexec {COMMAND[0]} {COMMAND[1]} {COMMAND[2]} "$@"\n')
    script.chmod(0o755)
    return directory


def test_mount_helper_unknown_option_is_named(place: Path) -> None:
    env = {"PATH": f"{_bin_with_sessfs(place)}:{os.environ['PATH']}"}
    done = run(REPOSITORY / "scripts" / "mount.sessfs", place / "s", place / "m", "-o", "chache-size=1G", env=env)
    assert done.returncode == 2
    assert "--chache-size" in done.stderr
    done = run(REPOSITORY / "scripts" / "mount.sessfs", place / "s", place / "m", "-f", "-o", "ro", env=env)
    assert done.returncode == 0
    assert not (place / "s").exists()


def test_mount_helper_takes_every_setting(place: Path) -> None:
    """As an option of mount(8), with `-` or `_`; what `sessfs mount` is then called with."""
    called = place / "bin" / "sessfs"
    called.parent.mkdir()
    called.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    called.chmod(0o755)
    env = {"PATH": f"{called.parent}:{os.environ['PATH']}"}

    def helped(source: str, options: str) -> list[str]:
        done = run(REPOSITORY / "scripts" / "mount.sessfs", source, place / "m", "-o", options, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    switches = {"path_style", "single_node", "take_over", "upload_caches", "wait_at_start"}
    for key in {*config.setting_keys()} - {"mount_options", "foreground", *switches}:
        for name in (key, key.replace("_", "-")):
            flag = "--" + key.replace("_", "-")
            assert helped("sessfs", f"rw,{name}=a b*") == ["mount", "-o", "rw", flag, "a b*", "--", str(place / "m")]
    for key in switches:
        flag = "--" + key.replace("_", "-")
        assert helped("sessfs", key) == helped("sessfs", f"{key}=true") == ["mount", flag, "--", str(place / "m")]
        assert helped("sessfs", f"{key}=false") == ["mount", "--", str(place / "m")]
        called.write_text("#!/bin/sh\nenv\n")
        assert f"SESSFS_{key.upper()}=false" in helped("sessfs", f"{key.replace('_', '-')}=false")
        called.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    for url in ("s3://bucket/prefix", "file:///directory"):
        assert helped(url, "state=/s")[:5] == ["mount", "--remote", url, "--state", "/s"]
    for mistyped in ("s3:/bucket/prefix", "S3://bucket/prefix", "relative/directory"):
        done = run(REPOSITORY / "scripts" / "mount.sessfs", mistyped, place / "m", env=env)
        assert done.returncode == 1
        assert f"{mistyped} is neither" in done.stderr
    done = run(REPOSITORY / "scripts" / "mount.sessfs", "sessfs", place / "m", "-o", "single-node=perhaps", env=env)
    assert done.returncode == 1
    assert "single-node=false" in done.stderr


def test_deploy_scripts_may_be_repeated(place: Path) -> None:
    program = _bin_with_sessfs(place) / "sessfs"
    env = {"SESSFS_BIN": str(program), "SESSFS_STATE": str(place / "s")}
    scripts = REPOSITORY / "scripts"
    for _ in range(2):
        done = run(scripts / "mount.sh", place / "m", env=env)
        assert done.returncode == 0, done.stderr
    assert len(mount_lines(place / "m")) == 1
    for _ in range(2):
        done = run(scripts / "umount.sh", place / "m", env=env)
        assert done.returncode == 0, done.stderr
    assert not mount_lines(place / "m")


@pytest.fixture
def home() -> Iterator[Path]:
    """The home of the user nobody, where it can reach it, which it can't reach below pytest's own directory."""
    with tempfile.TemporaryDirectory(prefix="sessfs-home-") as path:
        os.chown(path, 65534, 65534)
        yield Path(path)
        for line in mount_lines(below=Path(path)):
            subprocess.run(["umount", "-i", "-l", str(line.mountpoint)], check=True)


@pytest.fixture
def open_device() -> Iterator[None]:
    """/dev/fuse for everybody, as udev makes it; machines without udev may have it for root alone."""
    device = Path("/dev/fuse")
    mode = device.stat().st_mode & 0o777
    device.chmod(0o666)
    yield
    device.chmod(mode)


@pytest.mark.usefixtures("open_device")
def test_user_without_root_can_mount_and_unmount(home: Path) -> None:
    """By way of fusermount3. The one capability it keeps is to read, since the checkout may lie in root's home."""
    as_user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    can_read = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search", "--bounding-set=+all")
    env = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run(*as_user, *can_read, *COMMAND, "mount", home / "m", env=env)
    assert done.returncode == 0, done.stderr + _log_of(home)
    assert mount_lines(home / "m")
    (state,) = (home / "state" / "sessfs").iterdir()
    assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (65534, 0o700)
    with pytest.raises(PermissionError):
        os.listdir(home / "m")
    done = run(*as_user, *can_read, *COMMAND, "umount", home / "m", env=env)
    assert done.returncode == 0, done.stderr
    assert not mount_lines(home / "m")


def _log_of(home: Path) -> str:
    return "".join(path.read_text() for path in home.rglob("sessfs.log"))
