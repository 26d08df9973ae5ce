"""Telling Chrome's processes from others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from sessfs.chrome import CHROME_PROCESSES
from sessfs.mount.browsers import KEPT_S, Browsers

if TYPE_CHECKING:
    from pathlib import Path


def running(program: Path | str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([program, "60"], stdin=subprocess.DEVNULL)


def test_program_decides_not_the_command_line(tmp_path: Path) -> None:
    chrome = tmp_path / "chrome"
    shutil.copy("/bin/sleep", chrome)
    for program, expected in ((chrome, True), ("/bin/sleep", False)):
        child = subprocess.Popen(["chromium", "60"], executable=program, stdin=subprocess.DEVNULL)
        try:
            assert Browsers(CHROME_PROCESSES).is_chrome(child.pid) is expected
        finally:
            child.kill()
            child.wait()


def test_program_replaced_by_an_update_is_known_still(tmp_path: Path) -> None:
    chrome = tmp_path / "chrome"
    shutil.copy("/bin/sleep", chrome)
    child = running(chrome)
    try:
        chrome.unlink()
        assert Browsers(["chrome"]).is_chrome(child.pid)
    finally:
        child.kill()
        child.wait()


def test_thread_counts_as_its_program() -> None:
    own = os.path.basename(os.path.realpath(sys.executable))
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(Browsers([own]).is_chrome(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found == [True]


def test_what_cannot_be_known_counts() -> None:
    child = subprocess.Popen(["/bin/true"], stdin=subprocess.DEVNULL)
    child.wait()
    browsers = Browsers(["chrome"])
    assert browsers.is_chrome(child.pid)
    assert browsers.is_chrome(0)


def test_answer_is_kept_for_a_while() -> None:
    now = [0.0]
    browsers = Browsers(["chrome"], lambda: now[0])
    child = running("/bin/sleep")
    try:
        assert not browsers.is_chrome(child.pid)
    finally:
        child.kill()
        child.wait()
    assert not browsers.is_chrome(child.pid)
    now[0] = KEPT_S
    assert browsers.is_chrome(child.pid)
