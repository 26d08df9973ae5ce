"""`sessfs doctor` on machines that lack something."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sessfs.cli import main
from sessfs.mount import doctor, mountinfo, preflight

CHECKS = [
    "fuse",
    "fusermount3",
    "pyfuse3",
    "allow_other",
    "state",
    "filesystem",
    "room",
    "open files",
    "clock",
    "mounts",
]


def levels(state_dir: Path) -> dict[str, doctor.Level]:
    return {finding.check: finding.level for finding in doctor.examine(state_dir)}


def test_doctor_json_lists_every_check_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run(["doctor", "--json", "--state", str(tmp_path / "not yet")])
    answer = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in answer["findings"]] == CHECKS
    assert answer["would_mount"] is (code == 0)
    assert all(finding["remedy"] for finding in answer["findings"] if finding["level"] != "ok")
    assert not (tmp_path / "not yet").exists()


def test_doctor_without_fuse_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", tmp_path / "fuse")
    assert levels(tmp_path)["fuse"] is doctor.Level.PROBLEM
    assert main.run(["doctor"]) == 1
    assert "modprobe fuse" in capsys.readouterr().out


def test_doctor_without_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert levels(tmp_path)["fusermount3"] is doctor.Level.WARNING
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert levels(tmp_path)["fusermount3"] is doctor.Level.PROBLEM
    assert levels(tmp_path)["fuse"] is doctor.Level.PROBLEM


def test_doctor_user_may_not_allow_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(preflight, "FUSE_CONF", conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert levels(tmp_path)["allow_other"] is doctor.Level.WARNING
    conf.write_text("# comment\nuser_allow_other\n")
    assert levels(tmp_path)["allow_other"] is doctor.Level.OK


def test_doctor_state_newer_or_no_directory_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "format").write_text('{"version": 999}')
    assert levels(tmp_path)["state"] is doctor.Level.PROBLEM
    assert levels(tmp_path / "format")["state"] is doctor.Level.PROBLEM


@pytest.mark.parametrize(
    ("fs_type", "level"),
    [
        ("ext4", doctor.Level.OK),
        ("nfs4", doctor.Level.WARNING),
        ("tmpfs", doctor.Level.WARNING),
        ("fuse.sshfs", doctor.Level.WARNING),
    ],
)
def test_doctor_filesystem_of_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fs_type: str, level: doctor.Level
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / {tmp_path} rw - {fs_type} x rw\n")
    monkeypatch.setattr(mountinfo, "MOUNTINFO", table)
    assert levels(tmp_path / "deeper" / "state")["filesystem"] is level
    assert levels(Path("/nowhere"))["filesystem"] is doctor.Level.OK


def test_doctor_broken_pyfuse3_is_a_problem_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {finding.check: finding for finding in doctor.examine(tmp_path)}["pyfuse3"]
    assert found.level is doctor.Level.PROBLEM
    assert "libfuse3.so.3" in found.message
