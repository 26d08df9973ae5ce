"""Every object of a remote deleted, cut or flipped, one at a time, in every state of its node.

The tables in docs/remote-faults.md are made by `python -m tests.fault.test_remote_objects`; each test holds its part
against what happens.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from tests.support.objectfaults import STATES, table, try_all

DOC = Path(__file__).resolve().parent.parent.parent / "docs" / "remote-faults.md"
BEGIN = "<!-- the tables: made by `python -m tests.fault.test_remote_objects` -->\n"


@pytest.mark.parametrize("state", STATES)
async def test_one_object_damaged(state: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is absent or wrong in silence, each finding names the object, and it can be put back after whatever a
    mount and collections did: see Trial.
    """
    caplog.set_level(logging.CRITICAL)
    assert table(state, await try_all(state)) in DOC.read_text("utf-8"), (
        "make the tables anew, and look at what changed"
    )


def main() -> None:
    """Make the tables anew."""
    logging.disable(logging.CRITICAL)
    head = DOC.read_text("utf-8").partition(BEGIN)[0]
    tables = [table(state, trio.run(try_all, state)) for state in STATES]
    DOC.write_text(head + BEGIN + "\n" + "\n".join(tables), "utf-8")


if __name__ == "__main__":
    main()
