"""--remote URLs, and how the store stack comes from them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import RemoteDenied, RemoteUnsuitable, UsageError
from sessfs.remote.directory import DirectoryStore
from sessfs.remote.s3 import ClockOffset, S3Settings, endpoint_name, guess_region, make_client
from sessfs.remote.urls import DirectoryLocation, RemoteSettings, S3Location, open_remote, parse_remote

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.support.s3fixtures"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", S3Location("bucket", "")),
        ("s3://bucket/", S3Location("bucket", "")),
        ("s3://bucket/a/b/", S3Location("bucket", "a/b")),
        ("s3://my.bucket-1/ü x%20", S3Location("my.bucket-1", "ü x%20")),
        ("file:///dir", DirectoryLocation("/dir")),
        ("file:///with%20space/", DirectoryLocation("/with space")),
        ("file://localhost/dir", DirectoryLocation("/dir")),
    ],
)
def test_good_urls(url: str, expected: object) -> None:
    assert parse_remote(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "bucket", "/dir", "s3:bucket", "s3://", "s3:///prefix", "s3://ab"),
        *("s3://bucket//x", "s3://bucket/x//", "s3://bucket/a/../b"),
        *("s3://key:secret@bucket", "s3://bucket:9000/x", "s3://bucket/x?y=z", "https://bucket", "file://host/dir"),
        *("file:dir", "file://dir"),
    ],
)
def test_bad_urls_say_what_to_write(url: str) -> None:
    with pytest.raises(UsageError, match="write"):
        parse_remote(url)


@pytest.mark.parametrize(
    ("url", "name", "region"),
    [
        ("https://s3.amazonaws.com", "AWS S3", "us-east-1"),
        ("https://s3.eu-central-1.amazonaws.com", "AWS S3", "eu-central-1"),
        ("https://s3.dualstack.eu-west-3.amazonaws.com", "AWS S3", "eu-west-3"),
        ("https://bucket.vpce-1a2b-xyz.s3.us-gov-west-1.vpce.amazonaws.com", "AWS S3", "us-gov-west-1"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "AWS S3", "cn-north-1"),
        ("https://0123456789abcdef.r2.cloudflarestorage.com", "Cloudflare R2", "auto"),
        ("https://0123456789abcdef.eu.r2.cloudflarestorage.com", "Cloudflare R2", "auto"),
        ("https://s3.us-west-004.backblazeb2.com", "Backblaze B2", "us-west-004"),
        ("https://abc.supabase.co/storage/v1/s3", "Supabase Storage", "us-east-1"),
        ("https://abc.storage.supabase.co/storage/v1/s3", "Supabase Storage", "us-east-1"),
        ("http://minio.local:9000", "minio.local", "us-east-1"),
        ("https://fakeamazonaws.com", "fakeamazonaws.com", "us-east-1"),
    ],
)
def test_endpoint_is_known_by_its_host(url: str, name: str, region: str) -> None:
    assert endpoint_name(url) == name
    assert guess_region(url) == region


@pytest.mark.parametrize(
    ("settings", "environment", "style", "host"),
    [
        (S3Settings("bucket"), {}, "auto", "s3"),
        (S3Settings("bucket", endpoint_url="https://s3.eu-west-1.amazonaws.com"), {}, "auto", "s3"),
        (S3Settings("bucket", endpoint_url="https://minio.example.com"), {}, "path", "minio"),
        (S3Settings("bucket", endpoint_url="https://minio.example.com", addressing="virtual"), {}, "virtual", "minio"),
        (S3Settings("bucket", addressing="path"), {}, "path", "s3"),
        (S3Settings("bucket"), {"AWS_ENDPOINT_URL": "https://minio.example.com"}, "path", "minio"),
    ],
)
def test_addressing_is_virtual_for_aws_and_path_elsewhere(
    aws_environment: pytest.MonkeyPatch,
    settings: S3Settings,
    environment: dict[str, str],
    style: str,
    host: str,
) -> None:
    for name, value in environment.items():
        aws_environment.setenv(name, value)
    client = make_client(settings, ClockOffset())
    assert client.meta.config.s3["addressing_style"] == style
    assert client.meta.endpoint_url.startswith(f"https://{host}")
    assert client.meta.config.max_pool_connections == settings.connections
    assert client.meta.config.retries["total_max_attempts"] == 1
    client.close()


async def test_directory_is_opened_and_probed(tmp_path: Path) -> None:
    async with open_remote(RemoteSettings(tmp_path.as_uri())) as remote:
        assert (await remote.probe(1.0)).conditional_writes is True
        sent = remote.store.statistics()
        assert await remote.probe() is remote.capabilities()
        assert remote.store.statistics() == sent
        assert remote.capabilities().location == f"file://{tmp_path}"
        assert remote.health().state == "ok"


async def test_missing_directory_is_denied(tmp_path: Path) -> None:
    """It may be a disk that is not mounted yet: it is not made, and no empty store stands in for it."""
    with pytest.raises(RemoteDenied, match="create it"):
        async with open_remote(RemoteSettings(f"file://{tmp_path}/none")):
            pass
    assert os.listdir(tmp_path) == []


async def test_broken_settings_are_errors_of_ours(aws_environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="addressing"):
        async with open_remote(RemoteSettings("s3://bucket", addressing="dns")):
            pass
    with pytest.raises(RemoteUnsuitable, match="endpoint"):
        async with open_remote(RemoteSettings("s3://bucket", endpoint_url="minio:9000")):
            pass
    aws_environment.setenv("AWS_PROFILE", "not-there")
    with pytest.raises(RemoteDenied, match="profile"):
        async with open_remote(RemoteSettings("s3://bucket")):
            pass


def test_botocore_is_loaded_for_s3_urls_only(tmp_path: Path) -> None:
    """It costs a daemon without S3 some 20 MB and every command 0.2 s."""
    script = (
        "import sys, trio; from sessfs.remote.urls import *\n"
        "async def main():\n"
        f"    async with open_remote(RemoteSettings({tmp_path.as_uri()!r})) as remote: await remote.probe()\n"
        "trio.run(main)\n"
        "sys.exit(any(name.startswith('boto') for name in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_directory_store_says_what_it_is(tmp_path: Path) -> None:
    assert DirectoryStore(tmp_path).capabilities().endpoint == "directory"
