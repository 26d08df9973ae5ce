"""Install what sessfs is compared with: Debian's packages, and libfuse's example passthrough_ll, compiled here."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")
SOURCES = ("passthrough_ll.c", "passthrough_helpers.h")


def packages(wanted: dict[str, str]) -> None:
    """Install the Debian packages *wanted* (program → package) whose programs are missing. Raises SystemExit that says
    what to install when that fails.
    """
    missing = [package for program, package in wanted.items() if shutil.which(program) is None]
    if not missing:
        return
    print(f"bench: installing {' '.join(missing)}", file=sys.stderr)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing]
    for before in ([], ["apt-get", "update", "-q"]):
        if before:
            subprocess.run(before, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        try:
            done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        except FileNotFoundError:
            break
        if done.returncode == 0:
            return
    raise SystemExit(f"bench: could not install {' '.join(missing)}: install them yourself")


def compile_sessfs() -> None:
    """Compile sessfs ahead, as pip does when it installs: a checkout would be compiled anew at each start wherever
    PYTHONDONTWRITEBYTECODE is set.
    """
    subprocess.run([sys.executable, "-m", "compileall", "-q", "sessfs"], cwd=Path(__file__).parent.parent, check=True)


def _source(name: str) -> bytes:
    plain, packed = EXAMPLES / name, EXAMPLES / f"{name}.gz"
    if plain.is_file():
        return plain.read_bytes()
    if packed.is_file():
        return gzip.decompress(packed.read_bytes())
    raise SystemExit(
        f"bench: libfuse's example {name} is not in {EXAMPLES}: install libfuse3-dev, with documentation "
        "(dpkg may be told to leave /usr/share/doc out)"
    )


def compile_passthrough(directory: Path) -> Path:
    """Compile passthrough_ll in *directory* and return it. Raises SystemExit when there is no source, or gcc fails."""
    for name in SOURCES:
        (directory / name).write_bytes(_source(name))
    flags = subprocess.run(["pkg-config", "fuse3", "--cflags", "--libs"], check=True, capture_output=True, text=True)
    program = directory / "passthrough_ll"
    command = ["gcc", "-O2", "-w", str(directory / SOURCES[0]), "-o", str(program), *flags.stdout.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: passthrough_ll does not compile:\n{done.stderr}")
    return program
