"""A bucket of very many sessions: what a mount, a first file and memory take."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from bench import s3
from bench.manifests import multiply, session_name
from bench.memory import measure
from bench.targets import BenchError, open_sessfs, temporary
from bench.workloads import PAGE, SEED, make_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILES: Final = 250
DIRECTORIES: Final = 25
TRIED: Final = 20
TEMPLATE: Final = "template"


def make_template(session: Path) -> None:
    """A session of as many files as a profile of Chrome has, about 3 MB."""
    text = make_text(1 << 20)
    sizes = random.Random(SEED)
    for number in range(FILES):
        directory = session / "session" / "Default" / f"directory{number % DIRECTORIES:02d}"
        directory.mkdir(parents=True, exist_ok=True)
        start, size = sizes.randrange(len(text) // 2), sizes.randrange(200, 6 * PAGE)
        (directory / f"file{number:03d}").write_bytes(text[start : start + size])


def many(base: Path, count: int) -> dict[str, Any]:
    """Mount a bucket of *count* sessions on an empty machine, by a local S3 service and as a directory."""
    with temporary(base) as directory:
        remote = directory / "service" / s3.BUCKET / "p"
        remote.mkdir(parents=True)
        with open_sessfs(base, ["--remote", f"file://{remote}"]) as mounted:
            make_template(mounted.path / TEMPLATE)
            mounted.umount()
        start = time.monotonic()
        files = multiply(remote, TEMPLATE, count)
        made_s = time.monotonic() - start
        if files != FILES:
            raise BenchError(f"the template has {files} files with content, not {FILES}")
        with s3.serve(directory / "service") as options:
            found = _visit(base, options, count, "many")
        found |= _visit(base, ["--remote", f"file://{remote}", "--single-node"], count, "many_dir")
    found["many_sessions"] = float(count)
    return found | {"many_made": {"sessions": count, "files": files * count, "seconds": round(made_s, 1)}}


def _visit(base: Path, options: Sequence[str], count: int, prefix: str) -> dict[str, Any]:
    with open_sessfs(base, options) as mounted:
        # Once before: what the first mount of a bucket tries out of the service is none of these figures.
        mounted.umount()
        shutil.rmtree(mounted.state)
        start = time.perf_counter()
        mounted.mount()
        mount_s = time.perf_counter() - start
        pid = int(mounted.status()["pid"])
        took = [_first_file(mounted.path / session_name(n)) for n in random.Random(SEED).sample(range(count), TRIED)]
        before = measure(pid)
        start = time.perf_counter()
        names = len(os.listdir(mounted.path))
        list_s = time.perf_counter() - start
        if names != count + 1:
            raise BenchError(f"the mount lists {names} sessions instead of {count + 1}")
        after = measure(pid)
        return {
            f"{prefix}_mount": mount_s,
            f"{prefix}_first": max(took),
            f"{prefix}_resident": before.resident,
            f"{prefix}_list": list_s,
            f"{prefix}_list_resident": after.resident,
            f"{prefix}_each": {
                "first_file_median_s": round(statistics.median(took), 4),
                "anonymous_mb": round(before.anonymous, 1),
                "anonymous_mb_after_listing": round(after.anonymous, 1),
            },
        }


def _first_file(session: Path) -> float:
    """Seconds to find and read one file of a session that nobody asked for before."""
    path = session / "session" / "Default" / "directory07" / "file007"
    start = time.perf_counter()
    data = path.read_bytes()
    took_s = time.perf_counter() - start
    if not data:
        raise BenchError(f"{path} is empty")
    return took_s
