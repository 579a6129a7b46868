"""How an S3 store is asked: with patience for trouble that passes, and in plain words for what does not.

boto3 finds endpoint, region and credentials where it always looks (AWS_ENDPOINT_URL and so on). Its own retries are
off: they give up after seconds, and know nothing of a body that breaks off while it is read.
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

log = logging.getLogger(__name__)

PATIENCE_S = 300.0  # of one request, tries and pauses together; METRICGOLD_S3_PATIENCE_S overrides it
LONGEST_PAUSE_S = 20.0
_TOLD_AT_TRY = 5  # a second or two into the trouble

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired"}
_BAD_CREDENTIALS = _EXPIRED | {
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
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
    """The store as a whole does not serve: other keys fare no better, so a job should end rather than go through."""


class Unreachable(StoreLost, ConnectionError):
    """Nothing but trouble until patience ran out."""


class BadCredentials(StoreLost, PermissionError):
    """There are none, or they are wrong or expired."""


def make_client() -> Any:
    """A boto3 client with today's credentials, safe to share among threads."""
    import boto3
    from botocore.config import Config
    from botocore.session import Session

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=10,
        max_pool_connections=64,
        tcp_keepalive=True,
        user_agent="metricgold",  # botocore's own is put together anew for each request: a tenth of its time
        s3={"addressing_style": "path"} if endpoint else None,  # own servers seldom have a name per bucket
    )
    session = Session()  # boto3's default one keeps old credentials
    session.register_component("data_loader", _loader())
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    with plain_errors("S3"):
        client = boto3.Session(botocore_session=session).client("s3", config=config)
    client.meta.events.register_last("before-call.s3", _send_at_once)
    return client


def _send_at_once(params: dict[str, Any], **_: Any) -> None:
    """Objects follow their headers. To wait for "100 Continue" first costs a round trip each, and few are refused."""
    params["headers"].pop("Expect", None)


def _parse_time(text: str) -> datetime:
    """botocore's own way takes half a millisecond, of which a listing needs one for each key."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text)
    except ValueError:  # the form of headers, and whatever else stores say
        return parse_timestamp(text)


@cache
def _loader() -> Any:
    """What botocore knows of S3, read from its files once."""
    from botocore.loaders import create_loader

    return create_loader(os.environ.get("AWS_DATA_PATH"))


class S3Client:
    """A client for many threads, made anew when its credentials have expired: there may be others by now."""

    def __init__(self) -> None:
        self.client = make_client()

    def renew(self) -> None:
        self.client = make_client()


def patiently(place: str, ask: Callable[[], T], hurry: Event, renew: Callable[[], None] | None = None) -> T:
    """The answer of `ask`, which is asked again, with growing random pauses, through trouble that passes.

    With `renew`, which is called before it is asked again, credentials that have expired are such trouble. Once `hurry`
    is set nothing is tried twice. Raises Unreachable when patience has run out, BadCredentials,
    FileNotFoundError, PermissionError, FileExistsError (a condition not met), EOFError (a range beyond the end),
    io.UnsupportedOperation or another OSError naming the place at once.
    """
    patience_s = _patience_s()
    retrying = Retrying(
        retry=retry_if_exception(lambda error: _passes(error) or (renew is not None and _have_expired(error))),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
        stop=stop_after_delay(patience_s) | stop_when_event_set(hurry),
        sleep=sleep_using_event(hurry),
        before_sleep=lambda state: _between(place, patience_s, renew, state),
        reraise=True,
    )
    with plain_errors(place, patience_s):
        return retrying(ask)


def _patience_s() -> float:
    value = os.environ.get("METRICGOLD_S3_PATIENCE_S", PATIENCE_S)
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"METRICGOLD_S3_PATIENCE_S: expected seconds, got {value!r}") from error


def _between(place: str, patience_s: float, renew: Callable[[], None] | None, state: RetryCallState) -> None:
    error = state.outcome.exception()
    if state.attempt_number == _TOLD_AT_TRY:
        log.warning("%s: %s; trying for %g s", place, _reason(error), patience_s)
    if renew is not None and _have_expired(error):
        renew()


def _have_expired(error: BaseException) -> bool:
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError) and _code(error) in _EXPIRED


def _passes(error: BaseException) -> bool:
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _code(error) in _BUSY or status == 429 or (status >= 500 and status != 501)
    if isinstance(error, boto.SSLError):
        return "CERTIFICATE" not in str(error).upper()
    of_the_way = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError, HTTPError)
    return isinstance(error, of_the_way)


def _code(error: Any) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _reason(error: BaseException) -> str:
    from botocore.exceptions import ClientError, EndpointConnectionError

    if isinstance(error, EndpointConnectionError):
        return f"cannot reach {urlsplit(error.kwargs['endpoint_url']).netloc}"
    if isinstance(error, ClientError):  # botocore's own words are about retries that are off
        return ": ".join(filter(None, (_code(error), error.response.get("Error", {}).get("Message"))))
    return str(error) or type(error).__name__


@contextmanager
def plain_errors(place: str, patience_s: float = 0.0) -> Iterator[None]:
    """Turn botocore's errors into OSErrors that name the place."""
    from botocore import exceptions as boto

    try:
        yield
    except Exception as error:
        if isinstance(error, boto.ParamValidationError):
            raise ValueError(f"{place}: {error}") from error
        if isinstance(error, boto.ClientError) and (plain := _plain(place, error)):
            raise plain from error
        if _passes(error):
            raise Unreachable(f"{place}: {_reason(error)} (tried for {patience_s:g} s)") from error
        if isinstance(error, _no_credentials()):
            raise BadCredentials(f"{place}: no complete S3 credentials in the environment") from error
        if isinstance(error, boto.BotoCoreError | boto.ClientError):
            raise OSError(f"{place}: {_reason(error)}") from error
        raise


def _no_credentials() -> tuple[type[Exception], ...]:
    from botocore import exceptions as boto

    return (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.ProfileNotFound,
        boto.SSOError,
    )


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
        return FileExistsError(f"{place}: there is such a key already")
    if status == 416:
        return EOFError(f"{place}: ends before what was asked for")
    if status == 501:
        return io.UnsupportedOperation(f"{place}: this store does not do that ({code})")
    return None
