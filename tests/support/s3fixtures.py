"""Fixtures for S3 servers and credentials.

A test module has `pytest_plugins = ["tests.support.s3fixtures"]`; nothing imports this file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.s3servers import KEY_ID, SECRET, Endpoint, free_port, moto_command, rclone_command, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def rclone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    directory = tmp_path_factory.mktemp("rclone")
    (directory / "disk").mkdir()
    port = free_port()
    with running("rclone", rclone_command(directory / "disk", port), port, directory / "log") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def moto_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    with running("moto", moto_command(port), port, log) as endpoint:
        yield endpoint


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The credential chain finds the servers' key and nothing of this machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    return monkeypatch


@pytest.fixture
def s3_endpoint(request: pytest.FixtureRequest, aws_environment: pytest.MonkeyPatch) -> Callable[[str], Endpoint]:
    """Start (or find running) the server of that name, "rclone" or "moto", with credentials in the environment."""

    def find(name: str) -> Endpoint:
        endpoint = request.getfixturevalue(f"{name}_endpoint")
        assert isinstance(endpoint, Endpoint)
        return endpoint

    return find
