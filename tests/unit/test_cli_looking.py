"""What a person reads of `sessfs status`."""

from __future__ import annotations

import trio
import trio.testing

from sessfs.cli.looking import status_rows
from sessfs.errors import RemoteUnavailable
from sessfs.remote.retrying import Health

REMOTE = {
    "url": "s3://bucket/prefix",
    "encrypted": False,
    "capabilities": {"endpoint": "AWS S3", "conditional_writes": True, "delete_batch": None},
    "requests": {"get": 3, "put": 1},
    "uploaded_bytes": 2048,
    "node": {"name": "a", "open": False, "problem": "nobody answers"},
}


async def test_status_of_a_remote_is_flat_and_names_each_row_once(autojump_clock: trio.testing.MockClock) -> None:
    health = Health()
    health.failed(RemoteUnavailable("nobody answers"))
    health.note("clock", "the clock is off")
    await trio.sleep(280)
    as_json = health.report().as_status()
    assert (as_json["state"], as_json["for_seconds"]) == ("degraded", 280)
    assert "for_s" not in as_json
    answer = {
        "cache_bytes": 1024,
        "remote": {**REMOTE, "health": as_json},
        "at_risk_bytes": 10,
        "at_risk_seconds": 90.0,
        "warnings": ["one"],
    }
    rows = list(status_rows(answer))
    assert dict(rows) == {
        "cache": "1.0 KiB",
        "remote url": "s3://bucket/prefix",
        "remote encrypted": "no",
        "remote endpoint": "AWS S3",
        "remote conditional writes": "yes",
        "remote delete batch": "-",
        "remote requests": "get 3, put 1",
        "remote uploaded": "2.0 KiB",
        "remote node name": "a",
        "remote node open": "no",
        "remote node problem": "nobody answers",
        "remote state": "degraded for 4 min 40 s: nobody answers",
        "remote note": "the clock is off",
        "at risk, bytes": "10 B",
        "at risk, for": "1 min 30 s",
    }
    assert len(rows) == len(dict(rows))
