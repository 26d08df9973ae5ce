"""Fixtures: buckets for mounts under test.

A test module has `pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]`; nothing imports this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.remotes import Bucket, new_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.s3servers import Endpoint


@pytest.fixture
def bucket(moto_endpoint: Endpoint) -> Iterator[Bucket]:
    """A bucket on a server with conditional writes."""
    with new_bucket(moto_endpoint) as made:
        yield made


@pytest.fixture
def plain_bucket(rclone_endpoint: Endpoint) -> Iterator[Bucket]:
    """A bucket on a server without conditional writes."""
    with new_bucket(rclone_endpoint) as made:
        yield made
