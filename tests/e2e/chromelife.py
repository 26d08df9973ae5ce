"""Lives of Chrome on a directory: Debian's Chromium, driven by the real whatsapp-web.js, against the stand-in page.

Used by test_chrome.py and by bench/. A life is one start of one user's Chrome, some steps (see life.mjs), and its end.
Everything started here is ended here, also when a life hangs or a test fails. Needs node >= 18, npm and Chromium; the
variable CHROMIUM names another binary than /usr/bin/chromium.

As a program it prints one JSON object with the milliseconds of "one life" and of a restart:

    python tests/e2e/chromelife.py DIRECTORY [--users N] [--records N] [--assets core|large]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

HERE: Final = Path(__file__).resolve().parent
LARGE: Final = HERE / "page" / "large"
"""More scripts, which only `open_page("large")` needs."""
# What FACTS call "one life", and what a restart does after it.
FIRST_LIFE: Final = ("pair", "worker", "caches", "add={records}", "local=200", "reload")
RESTART: Final = ("verify", "add=300")
_END_S: Final = 15.0


class LifeFailed(AssertionError):
    """A life did not do what was asked of it; the message has its events and what it wrote to stderr."""


def find_chromium() -> str:
    """Path of the Chromium to drive. Raises FileNotFoundError that says what to install."""
    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(f"{path} is no Chromium: install the package chromium, or set CHROMIUM")
    return path


def ensure_npm(package: Path = HERE) -> Path:
    """Install the locked npm packages of the directory *package* unless they are there already; return their directory.

    Safe to call from several processes. Raises FileNotFoundError without npm, CalledProcessError when `npm ci` fails.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise FileNotFoundError("npm and node are needed for tests/e2e: install the packages nodejs and npm")
    wanted = hashlib.sha256((package / "package-lock.json").read_bytes()).hexdigest()
    node_modules = package / "node_modules"
    stamp = node_modules / ".installed-from"
    with (package / "package-lock.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            return node_modules
        # Puppeteer's install script would download a browser; Debian's is used instead.
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        env = {**os.environ, "PUPPETEER_SKIP_DOWNLOAD": "1"}
        subprocess.run(command, cwd=package, env=env, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        stamp.write_text(wanted)
    return node_modules


@dataclass(frozen=True)
class Page:
    """The running page server."""

    port: int
    spki: str
    """Base64 SHA-256 of the certificate's public key, for --ignore-certificate-errors-spki-list."""
    assets: int
    """Scripts that go into CacheStorage."""
    asset_bytes: int


@contextlib.contextmanager
def open_page(assets: Literal["core", "large"] = "core") -> Iterator[Page]:
    """Serve the stand-in page on 127.0.0.1 while the context is open. Installs npm packages when they are missing.

    With "large" it has 24 scripts of 118 MB, about as WhatsApp Web had when they were counted, else 69 of 33 MB.
    """
    node_modules = [ensure_npm(), *([ensure_npm(LARGE)] if assets == "large" else [])]
    command = [sys.executable, str(HERE / "page" / "server.py"), "--node-modules", *map(str, node_modules)]
    server = subprocess.Popen([*command, "--assets", assets], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with server:  # leaving it closes the pipes, which ends the server, and waits
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise RuntimeError(f"the page server ended at once with {server.wait()}; see its error above")
        yield Page(**json.loads(line))


@dataclass(frozen=True)
class User:
    """One user: the seed decides every byte that the page stores for that user."""

    name: str
    seed: str
    data_path: Path
    """What LocalAuth gets as dataPath: the user's session directory on the mount."""

    @property
    def profile(self) -> Path:
        """Chrome's --user-data-dir."""
        return self.data_path / "session"


@dataclass(frozen=True)
class Verified:
    """What a `verify` step found right, byte for byte; `errors` has the first of what was not."""

    messages: int
    contacts: int
    prekeys: int
    journal: int
    local_keys: int
    cache_entries: int
    cache_bytes: int
    controlled: bool
    """Whether the service worker controls the page."""
    user: str
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Removed:
    """What was seen at a logout."""

    held_open: int
    """Files of the profile that Chromium's processes held open just before it was removed."""
    left: tuple[str, ...]
    """Names in the profile directory afterwards."""


@dataclass(frozen=True)
class LifeResult:
    """One life, as it went."""

    events: tuple[Mapping[str, Any], ...]
    exit_code: int
    stderr: str = field(repr=False)

    def named(self, event: str) -> list[Mapping[str, Any]]:
        """The events of that name, in order."""
        return [each for each in self.events if each["event"] == event]

    @property
    def n_qr(self) -> int:
        """How often the client's `qr` event fired."""
        return len(self.named("qr"))

    @property
    def n_ready(self) -> int:
        """How often the client's `ready` event fired."""
        return len(self.named("ready"))

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by phase, and `total_ms`; empty when the life was cut short."""
        ends = self.named("end")
        return dict(ends[-1]["timings"]) if ends else {}

    @property
    def verified(self) -> Verified:
        """The last verification. Raises LifeFailed when there was none."""
        found = self._last("verified")
        return Verified(
            messages=found["messages"],
            contacts=found["contacts"],
            prekeys=found["prekeys"],
            journal=found["journal"],
            local_keys=found["localKeys"],
            cache_entries=found["cacheEntries"],
            cache_bytes=found["cacheBytes"],
            controlled=found["controlled"],
            user=found["identity"]["user"],
            errors=tuple(found["errors"]),
        )

    @property
    def removed(self) -> Removed:
        """What the logout step saw. Raises LifeFailed when there was none."""
        found = self._last("removed")
        return Removed(found["held_open"], tuple(found["left"]))

    @property
    def durable(self) -> int:
        """Journal entries that IndexedDB had reported durable before the end."""
        found = self.named("durable")
        return int(found[-1]["total"]) if found else 0

    def check(self) -> LifeResult:
        """Return itself if every step was done; else raise LifeFailed with all that is known."""
        if self.exit_code != 0 or not self.named("end"):
            shown = [json.dumps(each) for each in self.events if each["event"] != "durable"]
            text = "\n".join([f"life ended with {self.exit_code}", *shown, self.stderr[-4000:]])
            raise LifeFailed(text)
        return self

    def _last(self, event: str) -> Mapping[str, Any]:
        found = self.named(event)
        if not found:
            raise LifeFailed(f"no '{event}' event in {[each['event'] for each in self.events]}")
        return found[-1]


class Life:
    """A life that goes on while the caller does something else. Close it, or use it as a context manager.

    Not for several threads at once.
    """

    def __init__(self, page: Page, user: User, expect: Literal["qr", "ready"], steps: Iterable[str]) -> None:
        self._user = user
        user.data_path.mkdir(parents=True, exist_ok=True)
        # Chromium puts the socket behind SingletonSocket there, and leaves it when it is killed.
        self._temp = tempfile.TemporaryDirectory(prefix="life-")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        command = ["node", str(HERE / "life.mjs"), "--data-path", str(user.data_path), "--port", str(page.port)]
        command += ["--spki", page.spki, "--user", user.name, "--seed", user.seed]
        command += ["--expect", expect, "--steps", ",".join(steps)]
        self._events: list[Mapping[str, Any]] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "CHROMIUM": find_chromium(), "TMPDIR": self._temp.name},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def wait_event(self, event: str, timeout_s: float = 60.0) -> Mapping[str, Any]:
        """Return the first *event*. Raises LifeFailed if the life ends, or *timeout_s* pass, without one."""
        return self._wait(event, lambda found: True, timeout_s)

    def wait_written(self, entries: int, timeout_s: float = 60.0) -> None:
        """Return once a `write` step has made *entries* journal entries durable in this life; LifeFailed if not."""
        self._wait("durable", lambda found: found["written"] >= entries, timeout_s)

    def kill_chromium(self) -> None:
        """End all processes of this life's Chromium with SIGKILL; on return none of them runs."""
        pid = int(self.wait_event("chromium")["pid"])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # puppeteer makes Chromium the leader of its own process group
        self._wait_for_chromium_gone(_END_S)

    def finish(self, timeout_s: float = 120.0) -> LifeResult:
        """Wait for the end of the life and return it, good or bad; LifeFailed after *timeout_s*. Closes it."""
        try:
            self._process.wait(timeout_s)
            self._wait_for_chromium_gone(_END_S)
            self._reader.join(_END_S)
            return self._result()
        except subprocess.TimeoutExpired:
            self._end_processes()
            result = self._result()
            last = [each["event"] for each in result.events][-5:]
            message = f"life of {self._user.name} did not end within {timeout_s} s; last events: {last}"
            raise LifeFailed(f"{message}\n{result.stderr[-4000:]}") from None
        finally:
            self.close()

    def close(self) -> None:
        """End whatever of this life still runs. May be called twice."""
        self._end_processes()
        self._temp.cleanup()
        self._stderr.close()

    def _wait(self, event: str, wanted: Callable[[Mapping[str, Any]], bool], timeout_s: float) -> Mapping[str, Any]:
        def find() -> Mapping[str, Any] | None:
            return next((each for each in self._events if each["event"] == event and wanted(each)), None)

        with self._changed:
            self._changed.wait_for(lambda: find() is not None or not self._reader.is_alive(), timeout_s)
            found = find()
        if found is None:
            self._end_processes()
            self._result().check()
            raise LifeFailed(f"no '{event}' event within {timeout_s} s")
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _result(self) -> LifeResult:
        self._stderr.seek(0)
        stderr = self._stderr.read().decode(errors="replace")
        with self._changed:
            events = tuple(self._events)
        return LifeResult(events, self._process.wait(), stderr)

    def _end_processes(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pid in self._chromium_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait_for_chromium_gone(_END_S)
        self._reader.join(_END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _wait_for_chromium_gone(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while pids := self._chromium_pids():
            if time.monotonic() > end:
                raise LifeFailed(f"processes of Chromium still run on {self._user.profile}: {pids}")
            time.sleep(0.02)

    def _chromium_pids(self) -> list[int]:
        """Processes of this life's Chromium: its process group, and those that name its profile."""
        leaders = {int(each["pid"]) for each in self._events if each["event"] == "chromium"}
        profile = str(self._user.profile).encode()
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if pid not in (os.getpid(), self._process.pid) and _belongs(pid, leaders, profile)
        ]


def _belongs(pid: int, leaders: set[int], profile: bytes) -> bool:
    """Whether *pid* runs (a zombie does not), and is in a group of *leaders* or has *profile* in its arguments."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
        if stat[0] in b"ZX":
            return False
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    names = (argument.partition(b"=")[2] for argument in arguments)
    return int(stat[2]) in leaders or any(name == profile or name.startswith(profile + b"/") for name in names)


def run_life(
    page: Page, user: User, expect: Literal["qr", "ready"], steps: Iterable[str] = (), timeout_s: float = 120.0
) -> LifeResult:
    """Run one life to its end and return it. Raises LifeFailed unless every step was done."""
    return Life(page, user, expect, steps).finish(timeout_s).check()


def run_lives(
    page: Page, users: Iterable[User], expect: Literal["qr", "ready"], steps: Iterable[str], timeout_s: float = 240.0
) -> list[LifeResult]:
    """Run one life of each user, all at once. Raises LifeFailed unless every step of each was done."""
    with contextlib.ExitStack() as stack:
        lives = [stack.enter_context(Life(page, user, expect, tuple(steps))) for user in users]
        return [life.finish(timeout_s).check() for life in lives]


@dataclass(frozen=True)
class Size:
    """What a tree holds."""

    files: int
    logical_bytes: int


def measure(path: Path) -> Size:
    """Count the regular files below *path* and add up their sizes."""
    sizes = [each.lstat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink()]
    return Size(len(sizes), sum(sizes))


def bench(directory: Path, *, users: int, records: int, assets: Literal["core", "large"]) -> dict[str, Any]:
    """Run a first life and two restarts of each of *users*, all users at once; return milliseconds by phase.

    *directory* gets one new session directory a user, which stays.
    """
    everyone = [User(f"user{n}", f"bench-{n}", directory / f"user{n}") for n in range(1, users + 1)]
    first = [step.format(records=records) for step in FIRST_LIFE]
    with open_page(assets) as page:
        rounds = [
            ("first", run_lives(page, everyone, "qr", first, 900.0)),
            ("restart", run_lives(page, everyone, "ready", RESTART, 900.0)),
            ("restart", run_lives(page, everyone, "ready", RESTART, 900.0)),
        ]
        sizes = [measure(user.data_path) for user in everyone]
        return {
            "records": records,
            "assets": page.assets,
            "asset_bytes": page.asset_bytes,
            "lives": [{"life": name, "timings": [each.timings_ms for each in lives]} for name, lives in rounds],
            "profiles": [{"files": size.files, "logical_bytes": size.logical_bytes} for size in sizes],
        }


def main() -> None:
    """Command line of the bench."""
    parser = argparse.ArgumentParser(description="Milliseconds of Chrome's lives on a directory, as JSON.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--assets", choices=("core", "large"), default="large")
    args = parser.parse_args()
    result = bench(args.directory.resolve(), users=args.users, records=args.records, assets=args.assets)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
