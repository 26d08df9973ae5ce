"""From what botocore raises to our errors: `map_error`, used by s3 only.

The rule behind the tables: RemoteMissing only when the store itself said NoSuchKey; RemoteDenied when a person must
act; RemoteUnsuitable when this endpoint or request can't work; all else, also what is unknown, is RemoteUnavailable.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import exceptions as boto
from botocore.discovery import EndpointDiscoveryException
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

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

CAUGHT = (boto.BotoCoreError, boto.ClientError, ResponseParserError, HTTPError, OSError, ValueError)
"""Everything that a call of the client may raise for reasons outside this program."""

CREDENTIALS_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
"""Codes after which the credential chain may have something newer, so the request is worth repeating."""

CREDENTIALS_ROTATED = frozenset({"InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "SignatureDoesNotMatch"})
"""Codes that a person must act on, but after which the chain is asked again: a key may have been replaced."""

CLOCK_OFF = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})

_BUSY = frozenset(
    {
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "TooManyRequests",
        "BandwidthLimitExceeded",
    }
)
# Answered with a status of 4xx, but the same request may well succeed the next time.
_PASSING = frozenset(
    {
        "RequestTimeout",
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "ConditionalRequestConflict",
        "OperationAborted",
        "InternalError",
    }
)
_DENIED = frozenset({"NoSuchBucket", "InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed"})

_ADVICE = {
    "NoSuchBucket": "the bucket does not exist there: create it, or correct --remote, --endpoint-url or the region",
    "InvalidBucketName": "correct the bucket's name in --remote",
    "PermanentRedirect": "the bucket is at another endpoint: correct --endpoint-url or the region",
    "AuthorizationHeaderMalformed": "the bucket is in another region: correct the region",
    "InvalidAccessKeyId": "the store does not know this access key: correct the credentials",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key, or a proxy changes requests",
    "AccessDenied": "give these credentials the rights to get, put, list and delete objects under the prefix",
}

# One row a class; a subclass follows its nearest base. tests/unit/test_remote_s3errors.py fails for a class of
# botocore that has no row, so a new version can't bring one unnoticed.
_TRANSPORT: dict[type[Exception], type[RemoteError]] = {
    kind: RemoteUnavailable
    for kind in (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.ChecksumError,
        boto.FlexibleChecksumError,
        boto.IncompleteReadError,
        boto.CredentialRetrievalError,
        boto.MetadataRetrievalError,
        boto.TokenRetrievalError,
        boto.CapacityNotAvailableError,
        ResponseParserError,
        HTTPError,
        OSError,
    )
}
_PERSON: dict[type[Exception], type[RemoteError]] = {
    kind: RemoteDenied
    for kind in (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.UnknownCredentialError,
        boto.NoAuthTokenError,
        boto.UnknownTokenProviderError,
        boto.ProfileNotFound,
        boto.ConfigNotFound,
        boto.ConfigParseError,
        boto.InvalidConfigError,
        boto.RefreshWithMFAUnsupportedError,
        boto.SSOError,
        boto.LoginError,
    )
}
_SETTINGS: dict[type[Exception], type[RemoteError]] = {
    kind: RemoteUnsuitable
    for kind in (
        ValueError,
        EndpointDiscoveryException,
        boto.ApiVersionNotFoundError,
        boto.AwsChunkedWrapperError,
        boto.BaseEndpointResolverError,
        boto.DataNotFoundError,
        boto.EndpointProviderError,
        boto.InvalidChecksumConfigError,
        boto.InvalidDefaultsMode,
        boto.InvalidDNSNameError,
        boto.InvalidEndpointConfigurationError,
        boto.InvalidEndpointDiscoveryConfigurationError,
        boto.InvalidExpressionError,
        boto.InvalidHostLabelError,
        boto.InvalidIMDSEndpointError,
        boto.InvalidIMDSEndpointModeError,
        boto.InvalidProxiesConfigError,
        boto.InvalidRetryConfigurationError,
        boto.InvalidS3AddressingStyleError,
        boto.InvalidS3UsEast1RegionalEndpointConfigError,
        boto.InvalidSTSRegionalEndpointsConfigError,
        boto.MD5UnavailableError,
        boto.MissingDependencyException,
        boto.MissingParametersError,
        boto.OperationNotPageableError,
        boto.PaginationError,
        boto.ParamValidationError,
        boto.ServiceNotInRegionError,
        boto.StubResponseError,
        boto.UnknownClientMethodError,
        boto.UnknownRegionError,
        boto.UnknownServiceStyle,
        boto.UnknownSignatureVersionError,
        boto.UnseekableStreamError,
        boto.UnsupportedOutpostResourceError,
        boto.UnsupportedS3AccesspointConfigurationError,
        boto.UnsupportedS3ArnError,
        boto.UnsupportedS3ConfigurationError,
        boto.UnsupportedS3ControlArnError,
        boto.UnsupportedS3ControlConfigurationError,
        boto.UnsupportedServiceProtocolsError,
        boto.UnsupportedSignatureVersionError,
        boto.ValidationError,
        boto.WaiterConfigError,
        boto.WaiterError,
    )
}
_CLASSES = {**_TRANSPORT, **_PERSON, **_SETTINGS}

_CLASS_ADVICE = {
    RemoteUnavailable: "it will be tried again",
    RemoteDenied: "correct the AWS credentials or profile of the user that runs sessfs",
    RemoteUnsuitable: "correct --remote, --endpoint-url, the region or ~/.aws/config",
}


def classify(kind: type[BaseException]) -> type[RemoteError] | None:
    """The error for an exception class that carries no answer of the store; None if no row knows it."""
    return next((_CLASSES[base] for base in kind.__mro__ if base in _CLASSES), None)


def map_error(exc: Exception, op: str, what: str) -> RemoteError:
    """The error to raise for *exc*, met while doing *op* ("get", "put", "put_if", "list", "delete", "open") to *what*.

    Pure, but for reading the clock where Retry-After is a date.
    """
    if isinstance(exc, boto.ClientError):
        return _map_answer(exc, op, what)
    kind = classify(type(exc)) or RemoteUnavailable
    return kind(f"{op} of {what} failed: {type(exc).__name__}: {exc}; {_CLASS_ADVICE[kind]}")


def error_code(exc: Exception) -> str:
    """The store's code for what went wrong, such as "SlowDown"; empty when the store did not answer."""
    return str(exc.response.get("Error", {}).get("Code", "")) if isinstance(exc, boto.ClientError) else ""


def response_header(exc: Exception, name: str) -> str | None:
    """A header, by its name in small letters, of the answer that *exc* carries."""
    if not isinstance(exc, boto.ClientError):
        return None
    headers: dict[str, Any] = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get(name)


def _map_answer(exc: boto.ClientError, op: str, what: str) -> RemoteError:
    code = error_code(exc)
    status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    message = exc.response.get("Error", {}).get("Message", "")
    said = f"{op} of {what} was answered {status} {code}{': ' + message if message else ''}"
    if code == "NoSuchKey":
        # An If-Match on an absent object is refused in this way by AWS, with 412 by others.
        return RemoteConflict(f"{said}; read it again") if op == "put_if" else RemoteMissing(f"{what} does not exist")
    if code in _BUSY or status in (429, 503):
        return RemoteBusy(f"{said}; it will be tried again", _retry_after_s(response_header(exc, "retry-after")))
    if code in CREDENTIALS_EXPIRED:
        return RemoteUnavailable(f"{said}; the credentials expired and are read again: renew them if this stays")
    if code in _PASSING or (status >= 500 and status != 501) or status == 408:
        return RemoteUnavailable(f"{said}; it will be tried again")
    if status == 412 or code == "PreconditionFailed":
        return RemoteConflict(f"{said}; read it again")
    if status == 416 or code == "InvalidRange":
        return RemoteCorrupt(f"{said}: it is shorter than what was written; run `sessfs fsck --remote`")
    if code in _DENIED or status in (301, 307, 401, 403):
        return RemoteDenied(f"{said}; {_ADVICE.get(code, _CLASS_ADVICE[RemoteDenied])}")
    if status == 404:
        # Not the store's words for an absent object: a proxy, a wrong endpoint, a store being deployed.
        return RemoteUnavailable(f"{said}, which is no answer of S3; check --endpoint-url; it will be tried again")
    if op == "put_if" and status == 501:
        return RemoteUnsuitable(f"{said}; without conditional writes, one node alone can use it: see --single-node")
    return RemoteUnsuitable(f"{said}; this endpoint does not take what sessfs sends: see docs/s3.md")


def _retry_after_s(value: str | None) -> float | None:
    """The seconds of a Retry-After header, which may be a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
