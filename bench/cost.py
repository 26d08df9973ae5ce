"""What storing the sessions costs a month: docs/cost.md, computed from measured bytes and the rules of the write-back.

`python bench/cost.py` writes the page anew from bench/results.json; `bench/run.py` does so after each run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results.json"
PAGE: Final = HERE.parent / "docs" / "cost.md"

# List prices, US dollars.
PUT_DOLLARS: Final = 0.005 / 1000
GET_DOLLARS: Final = 0.0004 / 1000
S3_DOLLARS_GB_MONTH: Final = 0.023
DISK_DOLLARS_GB_MONTH: Final = 0.08

# How sessfs writes back (docs/design.md).
INTERVAL_S: Final = 60
HEARTBEAT_S: Final = 20
SEGMENT_BYTES: Final = 32 << 20
GRACE_DAYS: Final = 7

# Assumptions about the service.
DAYS: Final = 30
USERS_PER_NODE: Final = 100
BURSTS_A_DAY: Final = 24
MOVES_A_MONTH: Final = 4

# Six real profiles, measured apart from this bench: 943 MB in 1,382 files; tar.gz of each, together 271 MB.
PROFILE_MB: Final = 943 / 6
TAR_MB: Final = 271 / 6
TAR_INTERVAL_S: Final = 60

NODE_DOLLARS_MAX: Final = 1.0
FLEETS: Final = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Measured:
    """What bench/results.json has of the write-back: MB, and requests."""

    first_mb: float
    further_mb: float
    burst_mb: float
    puts_an_interval: float
    gets_a_move: float


@dataclass(frozen=True)
class Cost:
    """One fleet's month in one way of storing."""

    puts: float
    gets: float
    stored_gb: float
    sent_gb: float
    disk_gb: float

    @property
    def requests_dollars(self) -> float:
        """Requests to S3."""
        return self.puts * PUT_DOLLARS + self.gets * GET_DOLLARS

    @property
    def dollars(self) -> float:
        """All of it."""
        return self.requests_dollars + self.stored_gb * S3_DOLLARS_GB_MONTH + self.disk_gb * DISK_DOLLARS_GB_MONTH


def load() -> Measured:
    """The measured figures. Raises KeyError when the last run did not measure them."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    medians = {row["key"]: row["medians"].get("sessfs") for row in results["rows"]}
    # In which of its first two restarts a LevelDB compacts its tables, and most is sent, is chance.
    restart = (medians["sent_restart1"] + medians["sent_restart"]) / 2
    return Measured(medians["sent_first"], medians["sent_second"], restart, medians["sent_puts"], medians["empty_gets"])


def node_puts(measured: Measured, *, busy: bool) -> float:
    """PUTs of one node in a month: heartbeats alone, or publishing in each interval, with more segments where one does
    not hold what an interval sends. Publishing swaps the node's state, and so takes the place of a heartbeat.
    """
    seconds = DAYS * 86_400
    heartbeats = seconds / HEARTBEAT_S
    if not busy:
        return heartbeats
    intervals = seconds / INTERVAL_S
    more_segments = max(0, math.ceil(sent_per_interval(measured) / SEGMENT_BYTES) - 1)
    return heartbeats - intervals + intervals * (measured.puts_an_interval + more_segments)


def sent_per_interval(measured: Measured) -> float:
    """Bytes that one node sends an interval, its users' bursts spread evenly."""
    return measured.burst_mb * 1e6 * BURSTS_A_DAY * USERS_PER_NODE * INTERVAL_S / 86_400


def sessfs(users: int, measured: Measured) -> Cost:
    """With sessfs, a change in each interval; what bursts replaced stays for the grace period."""
    nodes = math.ceil(users / USERS_PER_NODE)
    live_gb = (measured.first_mb + measured.further_mb * (users - 1)) / 1000
    bursts_gb = measured.burst_mb * BURSTS_A_DAY * users / 1000
    return Cost(
        puts=nodes * node_puts(measured, busy=True) + users * MOVES_A_MONTH,
        gets=users * MOVES_A_MONTH * measured.gets_a_move,
        stored_gb=live_gb + bursts_gb * GRACE_DAYS,
        sent_gb=live_gb + bursts_gb * DAYS,
        # Each node keeps its own copy of what users share.
        disk_gb=live_gb + (nodes - 1) * max(measured.first_mb - measured.further_mb, 0) / 1000,
    )


def tar(users: int) -> Cost:
    """One tar.gz a user and minute, each over the last, as whatsapp-web.js' RemoteAuth at its shortest interval."""
    times = DAYS * 86_400 / TAR_INTERVAL_S
    return Cost(
        puts=users * times,
        gets=users * MOVES_A_MONTH,
        stored_gb=users * TAR_MB / 1000,
        sent_gb=users * times * TAR_MB / 1000,
        disk_gb=users * PROFILE_MB / 1000,
    )


def disks(users: int) -> Cost:
    """Plain disks and nothing else: a lost disk is its users' logins lost."""
    return Cost(puts=0, gets=0, stored_gb=0, sent_gb=0, disk_gb=users * PROFILE_MB / 1000)


def _line(users: int, title: str, cost: Cost) -> str:
    return (
        f"| {users:,} | {title} | {cost.puts / 1e6:,.2f} | {cost.requests_dollars:,.2f} | {cost.stored_gb:,.0f}"
        f" | {cost.disk_gb:,.0f} | {cost.sent_gb:,.0f} | {cost.dollars:,.2f} | {cost.dollars / users:.4f} |"
    )


def _prices() -> str:
    return "\n".join(
        [
            f"- S3: ${PUT_DOLLARS * 1000:.3f} per 1,000 PUT or LIST, ${GET_DOLLARS * 1000:.4f} per 1,000 GET,"
            f" ${S3_DOLLARS_GB_MONTH} per GB and month; sending to it, and reading in its region, is free.",
            f"- Disks: ${DISK_DOLLARS_GB_MONTH} per GB and month (AWS gp3). sessfs and tar.gz need local disks, too;"
            " they are counted.",
            f"- A month has {DAYS} days. A node runs {USERS_PER_NODE} users. Something changes in every interval,"
            " day and night: the dearest case.",
            f"- A user is busy {BURSTS_A_DAY} times a day, each time changing what a restart with 300 new records"
            f" changes; bytes so replaced stay in the bucket for {GRACE_DAYS} days, until they are collected.",
            f"- A user moves to another node {MOVES_A_MONTH} times a month (deploys): the GETs measured, and one PUT.",
            f"- tar.gz and plain disks: {TAR_MB:.0f} MB and {PROFILE_MB:.0f} MB a user, from six real profiles."
            " The profiles of the bench are of about the same size.",
        ]
    )


def _verdict(dollars: float) -> str:
    met = "which holds" if dollars < NODE_DOLLARS_MAX else "**which does not hold**"
    return f"Requests of a node should cost under ${NODE_DOLLARS_MAX:.0f} a month, {met}."


def render(measured: Measured) -> str:
    """docs/cost.md."""
    busy = node_puts(measured, busy=True)
    idle = node_puts(measured, busy=False)
    rows = []
    for users in FLEETS:
        rows.append(_line(users, "sessfs", sessfs(users, measured)))
        rows.append(_line(users, "tar.gz a minute", tar(users)))
        rows.append(_line(users, "plain disks, no copy", disks(users)))
    return f"""# What it costs

Written by `python bench/cost.py` from [bench/results.json](../bench/results.json); a change there or in its constants
changes this page. PUTs, not bytes, are the bill of whoever stores often; so a node puts one segment an interval,
whatever the number of its sessions.

## One node a month

| node | PUTs | dollars |
| --- | ---: | ---: |
| idle: a heartbeat every {HEARTBEAT_S} s | {idle:,.0f} | {idle * PUT_DOLLARS:.2f} |
| something changes in every interval of {INTERVAL_S} s: also a segment each | {busy:,.0f} | {busy * PUT_DOLLARS:.2f} |

Publishing swaps the node's state, which is a heartbeat, too: it takes the place of one. {_verdict(busy * PUT_DOLLARS)}

## A fleet a month

| users | stored by | million PUTs | requests, $ | in S3, GB | on disks, GB | sent, GB | all, $ | a user, $ |
| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}

## Measured

| what the bench saw at a remote | |
| --- | ---: |
| the first user's first life, MB | {measured.first_mb:.1f} |
| another user's first life, MB | {measured.further_mb:.1f} |
| a restart with 300 new records, mean of a user's first two, MB | {measured.burst_mb:.2f} |
| PUTs of an interval in which two sessions changed | {measured.puts_an_interval:.0f} |
| GETs of a user's Chrome on an empty machine, with the mount's own | {measured.gets_a_move:.0f} |

## Assumed

{_prices()}
"""


def write() -> None:
    """Write docs/cost.md anew."""
    PAGE.write_text(render(load()))


if __name__ == "__main__":
    write()
