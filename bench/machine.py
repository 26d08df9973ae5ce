"""What a result needs to be repeated: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pyfuse3", "trio", "lmdb", "blake3", "zstandard", "pyfastcdc")
PROGRAMS = (
    ("libfuse", ("pkg-config", "--modversion", "fuse3")),
    ("fio", ("fio", "--version")),
    ("restic", ("restic", "version")),
    ("borg", ("borg", "--version")),
    ("chromium", (os.environ.get("CHROMIUM", "/usr/bin/chromium"), "--version")),
    ("node", ("node", "--version")),
)


def output_of(command: tuple[str, ...]) -> str:
    """First line that *command* prints, or "not installed"."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "not installed"
    return (done.stdout.strip().splitlines() or ["no answer"])[0]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "unknown"


def filesystem_of(path: Path) -> str:
    """Type of the filesystem that *path* lies on."""
    return output_of(("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)))


def describe(base: Path) -> dict[str, Any]:
    """The machine, as it is now; *base* is where the measured directories lie."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "filesystem": filesystem_of(base),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Versions of all that takes part."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {name: output_of(command) for name, command in PROGRAMS}


def commit() -> str:
    """The checkout's commit; "+" when tracked files of the product differ from it."""
    head = output_of(("git", "rev-parse", "--short=12", "HEAD"))
    changed = output_of(("git", "status", "--porcelain", "--untracked-files=no", "--", "sessfs"))
    return head if changed == "no answer" else head + "+"
