"""Requests to an S3 store: failures that pass are retried for minutes, others become plain errors.

boto3 finds endpoint, region and credentials where it always looks (AWS_ENDPOINT_URL and so on). Its own retries are
off: they give up after seconds, and do not cover a body that breaks off while it is read.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from threading import Event
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from metricgold.extras import naming_the_extra

log = logging.getLogger(__name__)

PATIENCE_S = 300.0  # of one request, tries and pauses together; METRICGOLD_S3_PATIENCE_S overrides it
LONGEST_PAUSE_S = 20.0
_WARN_AT_TRY = 5  # a second or two into the trouble

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired"}
_BAD_CREDENTIALS = _EXPIRED | {
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
# What an answer of a store always holds, by operation. A page that a network puts in its place (200, HTML) does not.
_ALWAYS = {
    **dict.fromkeys(("PutObject", "GetObject", "HeadObject", "UploadPart", "CompleteMultipartUpload"), ("ETag",)),
    "CreateMultipartUpload": ("UploadId",),
    "ListObjectsV2": ("IsTruncated",),
}
_ELSEWHERE = {302, 303}  # a sign-in page; S3 itself never answers so
_BUSY = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}

T = TypeVar("T")


class StoreLost(OSError):
    """The store itself fails, not one key: all others would fail too, so a job should end at once."""


class ConditionFailed(OSError):
    """The object is not, or no longer, in the state that a request was made for."""


class Unreachable(StoreLost, ConnectionError):
    """Every try failed until patience ran out."""

    exit_code = 69  # of the command; EX_UNAVAILABLE of sysexits.h


class BadCredentials(StoreLost, PermissionError):
    """Credentials are missing, wrong or expired."""

    exit_code = 77  # of the command; EX_NOPERM of sysexits.h


def make_client() -> Any:
    """A boto3 client with today's credentials, safe to share among threads."""
    with naming_the_extra():
        import boto3
        from botocore.config import Config
        from botocore.session import Session

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=10,
        max_pool_connections=64,
        tcp_keepalive=True,
        user_agent="metricgold",  # botocore's own is built again for each request: a tenth of its time
        s3={"addressing_style": "path"} if endpoint else None,  # own servers seldom have a name per bucket
    )
    session = Session()  # boto3's default one keeps old credentials
    session.register_component("data_loader", _loader())
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)
    with plain_errors("S3"):
        client = boto3.Session(botocore_session=session).client("s3", config=config)

    def do_not_wait(params: dict[str, Any], **_: Any) -> None:
        # Objects follow their headers. Waiting for "100 Continue" costs a round trip each, and few are refused.
        params["headers"].pop("Expect", None)

    client.meta.events.register_last("before-call.s3", do_not_wait)
    client.meta.events.register_last("after-call.s3", _check_answer)
    return client


def _check_answer(model: Any, parsed: dict[str, Any], **_: Any) -> None:
    """Raise ResponseParserError, a failure that may pass, where a good answer is not one of S3 to this operation."""
    from botocore.parsers import ResponseParserError

    if parsed["ResponseMetadata"]["HTTPStatusCode"] >= 300:
        return
    missing = [name for name in _ALWAYS.get(model.name, ()) if name not in parsed]
    if model.name == "ListObjectsV2" and not missing:
        found, folders = parsed.get("Contents", []), len(parsed.get("CommonPrefixes", []))
        if parsed["IsTruncated"] and not parsed.get("NextContinuationToken"):
            missing = ["NextContinuationToken"]
        elif parsed.get("KeyCount", len(found)) not in (len(found), len(found) + folders) or not all(
            {"Key", "Size", "ETag"} <= set(item) for item in found
        ):
            missing = [f"Contents of {parsed.get('KeyCount', len(found))} keys"]
    if missing:
        if "Body" in parsed:
            parsed["Body"].close()
        raise ResponseParserError(
            f"what answers is not an S3 store, or its answer is not complete: {missing[0]} is missing"
        )


def parse_time(text: str) -> datetime:
    """A time as S3 writes it. botocore's own parser takes half a millisecond for each key of a listing."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text)
    except ValueError:  # the form of headers, and other forms that stores use
        time: datetime = parse_timestamp(text)
        return time


@cache
def _loader() -> Any:
    """botocore's description of S3, read from its files once."""
    from botocore.loaders import create_loader

    return create_loader(os.environ.get("AWS_DATA_PATH"))


class S3Client:
    """A client for many threads, replaced when its credentials have expired: there may be new ones by then."""

    def __init__(self) -> None:
        self.client = make_client()

    def renew(self) -> None:
        """Make a client with the credentials that are valid now."""
        self.client = make_client()


def with_retries(place: str, request: Callable[[], T], hurry: Event, renew: Callable[[], None] | None = None) -> T:
    """The answer of `request`, which is repeated, with growing random pauses, while its failures may pass.

    With `renew`, which is called before the next try, expired credentials are such a failure. Once `hurry` is set
    nothing is tried twice. Raises Unreachable when patience has run out; at once BadCredentials, FileNotFoundError,
    PermissionError, ConditionFailed, EOFError (a range beyond the end),
    io.UnsupportedOperation or another OSError. All name the place.
    """
    value = os.environ.get("METRICGOLD_S3_PATIENCE_S", PATIENCE_S)
    try:
        patience_s = float(value)
    except ValueError as error:
        raise ValueError(f"METRICGOLD_S3_PATIENCE_S: expected seconds, got {value!r}") from error

    def warn_and_renew(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and state.attempt_number == _WARN_AT_TRY:
            log.warning("%s: %s; trying for %g s", place, _reason(error), patience_s)
        if error is not None and renew is not None and _have_expired(error):
            renew()

    retrying = Retrying(
        retry=retry_if_exception(lambda error: _passes(error) or (renew is not None and _have_expired(error))),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
        stop=stop_after_delay(patience_s) | stop_when_event_set(hurry),
        sleep=sleep_using_event(hurry),
        before_sleep=warn_and_renew,
        reraise=True,
    )
    with plain_errors(place, patience_s):
        return retrying(request)


def _have_expired(error: BaseException) -> bool:
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError) and _code(error) in _EXPIRED


def _passes(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _code(error) in _BUSY or status in _ELSEWHERE | {429} or (status >= 500 and status != 501)
    if isinstance(error, boto.SSLError):
        return "CERTIFICATE" not in str(error).upper()
    transport = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError, HTTPError)
    return isinstance(error, transport)


def _code(error: Any) -> str:
    """The name that S3 gives to an error, such as SlowDown."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _reason(error: BaseException) -> str:
    from botocore.exceptions import ClientError, EndpointConnectionError

    if isinstance(error, EndpointConnectionError):
        return f"cannot reach {urlsplit(error.kwargs['endpoint_url']).netloc}"
    if isinstance(error, ClientError):  # botocore's own message speaks of retries, which are off
        return ": ".join(filter(None, (_code(error), error.response.get("Error", {}).get("Message"))))
    return str(error) or type(error).__name__


@contextmanager
def plain_errors(place: str, patience_s: float = 0.0) -> Iterator[None]:
    """Turn botocore's errors into OSErrors that name the place."""
    from botocore import exceptions as boto

    missing_credentials = (
        *(boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError),
        *(boto.ProfileNotFound, boto.SSOError),
    )
    try:
        yield
    except Exception as error:
        if isinstance(error, boto.ParamValidationError):
            raise ValueError(f"{place}: {error}") from error
        if isinstance(error, boto.ClientError) and (plain := _plain(place, error)):
            raise plain from error
        if _passes(error):
            raise Unreachable(f"{place}: {_reason(error)} (tried for {patience_s:g} s)") from error
        if isinstance(error, missing_credentials):
            raise BadCredentials(f"{place}: no complete S3 credentials in the environment") from error
        if isinstance(error, boto.BotoCoreError | boto.ClientError):
            raise OSError(f"{place}: {_reason(error)}") from error
        raise


def _plain(place: str, error: Any) -> OSError | EOFError | None:
    """What a store's refusal means, if that is known."""
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _NOT_FOUND:
        return FileNotFoundError(f"{place}: no such bucket or key")
    if code in _BAD_CREDENTIALS:
        return BadCredentials(f"{place}: access denied ({code})")
    if status == 403:
        return PermissionError(f"{place}: access denied ({code})")
    if status == 412:
        return ConditionFailed(f"{place}: its present state is another than expected")
    if status == 416:
        return EOFError(f"{place}: the requested range is beyond its end")
    if status == 501:
        return io.UnsupportedOperation(f"{place}: this store does not offer that operation ({code})")
    return None
