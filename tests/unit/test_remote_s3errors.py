"""Every exception of botocore and every answer of a store becomes the right error of ours."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import boto3.exceptions
import botocore.exceptions
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from sessfs.errors import (
    RemoteConflict,
    RemoteCorrupt,
    RemoteDenied,
    RemoteError,
    RemoteMissing,
    RemoteUnavailable,
    RemoteUnsuitable,
)
from sessfs.remote.objectstore import RemoteBusy
from sessfs.remote.s3errors import CAUGHT, classify, error_code, map_error

if TYPE_CHECKING:
    from collections.abc import Iterator


def subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def answer(status: int, code: str, **headers: str) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "words of the store"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return ClientError(response, "GetObject")


def test_every_botocore_exception_has_a_row() -> None:
    """A new version that brings a class we have not thought about fails here."""
    theirs = [kind for kind in subclasses(BotoCoreError) if kind.__module__.startswith("botocore.")]
    assert {kind.__name__ for kind in theirs if classify(kind) is None} == set()
    assert len(theirs) > 80


def test_every_exception_that_the_client_can_raise_is_caught() -> None:
    """boto3's own exceptions come from its resources and transfers, which are not used."""
    modules = {"botocore.exceptions": botocore.exceptions}
    # Raised while the library's own data files are loaded, so for a broken installation.
    internal = {"UndefinedModelAttributeError", "MissingServiceIdError"}
    for module in modules.values():
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Exception) and not issubclass(kind, Warning) and name not in internal:
                assert issubclass(kind, CAUGHT), name
    assert issubclass(ResponseParserError, CAUGHT)
    assert not issubclass(boto3.exceptions.Boto3Error, CAUGHT)


def test_unknown_class_is_unavailable_never_missing() -> None:
    class BrandNewError(BotoCoreError):
        fmt = "new"

    assert classify(BrandNewError) is None
    assert type(map_error(BrandNewError(), "get", "s3://b/k")) is RemoteUnavailable


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", RemoteMissing),
        (404, "NoSuchBucket", RemoteDenied),
        (404, "404", RemoteUnavailable),
        (404, "NotFound", RemoteUnavailable),
        (403, "AccessDenied", RemoteDenied),
        (403, "403", RemoteDenied),
        (401, "Unauthorized", RemoteDenied),
        (403, "SignatureDoesNotMatch", RemoteDenied),
        (403, "InvalidAccessKeyId", RemoteDenied),
        (403, "RequestTimeTooSkewed", RemoteDenied),
        (400, "ExpiredToken", RemoteUnavailable),
        (403, "ExpiredToken", RemoteUnavailable),
        (301, "PermanentRedirect", RemoteDenied),
        (400, "AuthorizationHeaderMalformed", RemoteDenied),
        (400, "InvalidBucketName", RemoteDenied),
        (412, "PreconditionFailed", RemoteConflict),
        (409, "ConditionalRequestConflict", RemoteUnavailable),
        (409, "OperationAborted", RemoteUnavailable),
        (416, "InvalidRange", RemoteCorrupt),
        (400, "RequestTimeout", RemoteUnavailable),
        (400, "BadDigest", RemoteUnavailable),
        (400, "InvalidArgument", RemoteUnsuitable),
        (400, "MissingContentMD5", RemoteUnsuitable),
        (501, "NotImplemented", RemoteUnsuitable),
        (405, "MethodNotAllowed", RemoteUnsuitable),
        (429, "TooManyRequests", RemoteBusy),
        (503, "SlowDown", RemoteBusy),
        (503, "503", RemoteBusy),
        (400, "Throttling", RemoteBusy),
        (500, "InternalError", RemoteUnavailable),
        (502, "502", RemoteUnavailable),
        (507, "XMinioStorageFull", RemoteUnavailable),
        (200, "InternalError", RemoteUnavailable),
    ],
)
def test_answers(status: int, code: str, expected: type[RemoteError]) -> None:
    error = map_error(answer(status, code), "get", "s3://b/k")
    assert type(error) is expected
    assert "s3://b/k" in str(error)
    assert expected is RemoteMissing or "words of the store" in str(error)


def test_absent_key_of_a_conditional_write_is_a_conflict() -> None:
    """AWS and moto answer 404 to If-Match on what is not there, others 412."""
    assert type(map_error(answer(404, "NoSuchKey"), "put_if", "s3://b/k")) is RemoteConflict


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("x", None)],
)
def test_retry_after_takes_numbers_and_dates(value: str, expected_s: float | None) -> None:
    error = map_error(answer(503, "SlowDown", **{"retry-after": value}), "get", "s3://b/k")
    assert isinstance(error, RemoteBusy)
    assert error.retry_after_s == expected_s


def test_error_code_of_what_is_no_answer_is_empty() -> None:
    assert error_code(OSError()) == ""
    assert error_code(answer(503, "SlowDown")) == "SlowDown"


def test_refused_conditional_write_says_what_helps() -> None:
    assert "--single-node" in str(map_error(answer(501, "NotImplemented"), "put_if", "holder"))
    assert "--single-node" not in str(map_error(answer(501, "NotImplemented"), "get", "holder"))
