"""The command's boundary: what it prints, and where, when something goes wrong; and its help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer.main

from sessfs.cli import expiring, limiting, main, output
from sessfs.cli.tables import print_table
from sessfs.errors import MountBusy, NotMounted, SessfsError

if TYPE_CHECKING:
    from pathlib import Path

VERBS = sorted(typer.main.get_group(main.build_app()).commands)


def test_run_not_mounted_is_one_line_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run(["status", str(tmp_path)])
    out, err = capsys.readouterr()
    assert code == NotMounted.exit_code
    assert out == ""
    assert err == f"sessfs: no sessfs is mounted at {tmp_path}: `sessfs status` lists the mounts\n"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()])])]
)
def test_run_interrupted_is_one_line(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where several things were going on, and trio puts it into a group."""

    def interrupted(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(main, "build_app", lambda name: interrupted)
    assert main.run(["gc"]) == 130
    assert capsys.readouterr().err == "sessfs: interrupted\n"


def test_run_interrupted_while_it_closes_a_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed_twice(*args: object, **options: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            os.close(-1)

    monkeypatch.setattr(main, "build_app", lambda name: closed_twice)
    assert main.run(["export"]) == 130
    assert capsys.readouterr().err == "sessfs: interrupted\n"


def test_run_error_with_json_is_json_on_stdout_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run(["sessions", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["kind"], error["exit_code"]) == ("NotMounted", code)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["mount"],
        ["frobnicate"],
        ["mount", "/x", "--no-such-flag"],
        ["umount", "/x", "--timeout", "soon"],
        ["umount", "/x", "--timeout", "0"],
    ],
)
def test_run_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sessfs: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["trash", "empty", "MOUNTPOINT", ""],
        ["trash", "empty", ""],
        ["trash", "restore", "MOUNTPOINT", "user1", "--as", ""],
        ["trash", "restore", "MOUNTPOINT", ""],
        ["expire", ""],
        ["rm", "", "--purge", "--yes"],
        ["rollback", ""],
        ["clone", "", "user2"],
        ["history", ""],
        ["limit", "", "--max-sessions", "1"],
        ["sync", ""],
        ["check", ""],
        ["export", "", "out"],
        ["import", "", "MOUNTPOINT"],
        ["gc", ""],
        ["umount", ""],
        ["mount", ""],
    ],
)
def test_run_empty_argument_means_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A variable that is not set: neither everything nor the directory that a script happens to be in."""
    assert main.run(arguments) == 2
    assert "is a variable not set?" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "text"), [("--max-session-bytes", "99999999T"), ("--max-sessions", str(1 << 63))])
def test_run_limit_beyond_all_bounds_is_named(
    flag: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limiting, "mount_of", lambda place: tmp_path)
    assert main.run(["limit", str(tmp_path), flag, text]) == 2
    assert f"{flag}: '{text}'" in capsys.readouterr().err


def test_run_bad_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run(["mount", str(tmp_path / "m"), "--state", str(tmp_path / "s"), "--cache-size", "many"])
    assert code == 2
    assert "the flag --cache-size: 'many'" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_trash_list_of_what_has_no_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "user1", "removed": None, "gone_for_good": None, "logical_bytes": 0, "entry": ".sessfs-trash-0"}
    monkeypatch.setattr(expiring, "_call", lambda mountpoint, verb, params: {"trash": [row]})
    assert main.run(["trash", "list", "/x"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["user1", "-", "-"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_describes_every_flag(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    command = typer.main.get_group(main.build_app()).commands[verb]
    assert command.help
    for parameter in command.params:
        assert parameter.name is not None
        text = getattr(parameter, "help", None)
        assert text, f"{verb}: {parameter.name} has no help"
        assert text.split()[0] in shown


def test_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """`sessfs doctor | head -1`."""
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    assert reader.stdin is not None
    reader.wait()
    ran = subprocess.run(
        [sys.executable, "-m", "sessfs.cli.main", "doctor", "--json"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    reader.stdin.close()
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


def test_print_error_keeps_a_forged_name_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(MountBusy("in use by evil\x1b[31m\nsessfs: all is well"), as_json=False)
    assert capsys.readouterr().err == "sessfs: in use by evil\\x1b[31m sessfs: all is well\n"


def test_print_error_without_text_names_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(SessfsError(), as_json=False)
    assert capsys.readouterr().err == "sessfs: SessfsError\n"


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_format_size(n_bytes: int, text: str) -> None:
    assert output.format_size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (59, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (90000, "1 d 1 h"), (86405, "1 d 5 s")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert output.format_duration(seconds) == text


def test_print_table_aligns_numbers_and_wraps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "N"), [("a" * 200, "1"), ("[b]not markup[/b]", "20")], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1] == f"{'a' * 200}   1"
    assert lines[2].startswith("[b]not markup[/b]")
