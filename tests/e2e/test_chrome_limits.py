"""Each limit, reached by Chromium itself: what it sees, that nobody is harmed, that it goes on once it is raised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.e2e.chromelife import Life, LifeResult, Page, User, find_chromium, open_page, run_life
from tests.support.mounted import Mounted
from tests.support.posix import eventually, forget_failed_writes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORDS: Final = 2_000
MANY: Final = 40_000
"""Records that no limit of these tests has room for."""
LOCAL_KEYS: Final = 50
MIB: Final = 1 << 20


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    with Mounted(options=["--seal-idle", "2s"]) as made:
        yield made
        forget_failed_writes(made.path)
        made.umount()
        made.fsck()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_page() as served:
        yield served


@pytest.fixture(scope="module")
def users(mounted: Mounted, page: Page) -> tuple[User, User]:
    """Two users who lived once: the one who meets the limits, and the other, who must not notice."""
    found = tuple(User(name, f"seed-of-{name}", mounted.path / name) for name in ("limited", "other"))
    for user in found:
        run_life(page, user, "qr", ["pair", "worker", "caches", f"add={RECORDS}", f"local={LOCAL_KEYS}"])
    return found[0], found[1]


@pytest.fixture(autouse=True)
def no_limits_afterwards(mounted: Mounted) -> Iterator[None]:
    yield
    limit(mounted, max_sessions=0, max_active=0)
    mounted.control("limit", {"session": "limited", "set": {"max_session_bytes": 0, "max_unique_bytes": 0}})


def limit(mounted: Mounted, **values: int | None) -> dict[str, Any]:
    """Set limits of the mount; 0 for off."""
    answer: dict[str, Any] = mounted.control("limit", {"session": None, "set": values})
    return answer


def use_of(mounted: Mounted, user: User) -> dict[str, int]:
    answer = mounted.control("limit", {"session": user.name})
    return {row["limit"]: row["used"] for row in answer["limits"]}


def refusals(mounted: Mounted) -> dict[str, int]:
    found: dict[str, int] = mounted.control("limit", {})["refusals"]
    return found


def assert_whole(
    life: LifeResult, user: User, page: Page, at_least: int = RECORDS, *, interrupted: bool = False
) -> None:
    """Everything that was stored is there, byte for byte. After adding was *interrupted* there is more than the page
    had written down.
    """
    found = life.verified
    for error in found.errors:
        more = re.fullmatch(r"(?:message|contact): (\d+) rows, (\d+) expected", error)
        assert interrupted, error
        assert more is not None, error
        assert int(more[1]) > int(more[2]), error
    assert found.user == user.name
    assert found.messages >= at_least
    assert found.local_keys == LOCAL_KEYS
    assert (found.cache_entries, found.cache_bytes) == (page.assets, page.asset_bytes)


def errors_of(life: LifeResult) -> str:
    return json.dumps([each for each in life.events if each["event"] not in ("durable", "step")]) + life.stderr


def test_one_user_too_many(mounted: Mounted, page: Page, users: tuple[User, User], tmp_path: Path) -> None:
    """The directory of a third user is not made, neither by LocalAuth, where Node reports any such error of a mkdir as
    ENOENT, nor by Chromium; the others live on.
    """
    _, other = users
    limit(mounted, max_sessions=2)
    third = User("third", "seed-of-third", mounted.path)
    failed = Life(page, third, "qr", []).finish()
    assert failed.exit_code != 0
    assert "no such file or directory, mkdir" in errors_of(failed)
    # Chromium alone goes on without that profile.
    command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "about:blank"]
    subprocess.run(
        [*command, f"--user-data-dir={mounted.path / 'third'}"],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert sorted(path.name for path in mounted.path.iterdir()) == ["limited", "other"]
    assert refusals(mounted)["max_sessions"] >= 2
    assert_whole(run_life(page, other, "ready", ["verify"]), other, page)


def test_one_chromium_too_many(mounted: Mounted, page: Page, users: tuple[User, User]) -> None:
    """It ends at its lock, which Puppeteer calls "already running"; the one that runs goes on, and once there is a
    place the other starts as it was.
    """
    limited, other = users
    limit(mounted, max_active=1)
    with Life(page, other, "ready", ["verify", "pause=12000", "add=100", "verify"]) as running:
        running.wait_event("verified")
        failed = Life(page, limited, "ready", ["verify"]).finish()
        assert failed.exit_code != 0
        assert "The browser is already running" in errors_of(failed)
        assert_whole(running.finish().check(), other, page, RECORDS + 100)
    assert refusals(mounted)["max_active"] > 0
    assert eventually(lambda: limit(mounted)["limits"][1]["used"] == 0, 15)
    assert_whole(run_life(page, limited, "ready", ["verify"]), limited, page)


def mend(mounted: Mounted, user: User) -> None:
    """What docs/operate.md says to do: after an error LevelDB writes no more, so a log ends where its buffer was last
    flushed, which may be within a record, and Chrome drops such a database two starts later. `check` says what to cut.
    """
    place = mounted.path / user.name
    report = json.loads(mounted.sessfs("check", str(place), "--json", check=False).stdout)
    for remedy in [file["remedy"] for file in report["files"] if not file["ok"]]:
        cuts = re.findall(r"truncate -s ([0-9]+) '([^']+)'", remedy)
        assert cuts, remedy
        for size, path in cuts:
            print("cut off", path, "at", size)
            os.truncate(place / path, int(size))
    mounted.sessfs("check", str(place))


@pytest.mark.parametrize("name", ["max_session_bytes", "max_unique_bytes"])
def test_session_full(mounted: Mounted, page: Page, users: tuple[User, User], name: str) -> None:
    """The page can't store more; the other user goes on; with a higher limit Chromium starts again, twice, with all
    that was stored before.
    """
    limited, other = users
    mounted.seal()
    time.sleep(4)
    used = use_of(mounted, limited)[name]
    mounted.control("limit", {"session": "limited", "set": {name: used + 16 * MIB}})
    with Life(page, limited, "ready", ["verify", f"add={MANY}"]) as life:
        before = int(life.wait_event("verified")["messages"])
        assert_whole(run_life(page, other, "ready", ["verify"]), other, page)
        failed = life.finish(240)
    seen = [each["message"] for each in failed.named("error")]
    print(name, "the page says:", seen, failed.stderr[-300:])
    print(name, used, use_of(mounted, limited), refusals(mounted))
    assert failed.exit_code != 0
    assert refusals(mounted)["max_bytes"] > 0
    mounted.control("limit", {"session": "limited", "set": {name: 0}})
    mend(mounted, limited)
    for _ in range(2):
        again = run_life(page, limited, "ready", ["add=100", "verify"])
        assert again.n_qr == 0
        assert_whole(again, limited, page, before, interrupted=True)
