"""Posting to a Slack webhook (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).

The URL is the secret: no error, log line or repr here holds more of it than the host.
"""

from __future__ import annotations

import json
import random
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from cgw.errors import CgwError, ConfigError

if TYPE_CHECKING:
    import httpx  # at run time only once a webhook is opened: it takes 100 ms

MAX_ATTEMPTS = 4
ATTEMPT_SECONDS = 15.0
"""How long one attempt may take in all (as in the reference, its §10)."""

FIRST_BACKOFF_SECONDS = 1.0
"""The pause before the second attempt; each further one is twice as long, all by up to a quarter more or less."""

MAX_RETRY_AFTER_SECONDS = 60.0
"""The longest pause that a ``retry-after`` can ask for."""

MAX_ANSWER_BYTES = 4096
"""How much of an answer is kept; Slack's are one word."""

_REASON = re.compile(rb"[a-z_]{1,40}")


class NoticeFailed(CgwError):
    """Slack did not take a message. The text never holds the webhook's path."""


@frozen
class _Failure:
    """Why an attempt failed, as the rest of a sentence; whether another one makes sense, and not before when."""

    reason: str
    is_final: bool = False
    retry_after_seconds: float = 0.0


class SlackWebhook:
    """Where messages can be posted. Made by :func:`open_slack_webhook`."""

    def __init__(self, client: httpx.AsyncClient, url: httpx.URL) -> None:
        self._client = client
        self._url = url

    def __repr__(self) -> str:
        return f"<SlackWebhook at {self._url.host}>"

    async def post(self, payload: Mapping[str, Any]) -> None:
        """Post ``payload`` as JSON; return once Slack has taken it.

        Tries up to :data:`MAX_ATTEMPTS` times where it may help: after 429, 5xx and failures of the connection. A
        message whose answer was lost may so appear twice. Redirects are not followed. Raises :exc:`NoticeFailed`.
        Takes four minutes at the very most. Cancel-safe; whether Slack got the message is not known then.
        """
        body = json.dumps(payload).encode("ascii")
        backoff_seconds = FIRST_BACKOFF_SECONDS
        for attempt in range(1, MAX_ATTEMPTS + 1):
            failure = await self._attempt(body)
            if failure is None:
                return
            if failure.is_final or attempt == MAX_ATTEMPTS:
                attempts = "" if attempt == 1 else f"; tried {attempt} times"
                raise NoticeFailed(f"the Slack webhook at {self._url.host} {failure.reason}{attempts}")
            await trio.sleep(max(backoff_seconds * random.uniform(0.75, 1.25), failure.retry_after_seconds))
            backoff_seconds *= 2

    async def _attempt(self, body: bytes) -> _Failure | None:
        import httpx

        try:
            with trio.fail_after(ATTEMPT_SECONDS):
                return await self._exchange(body)
        except trio.TooSlowError:
            return _Failure(f"did not answer within {ATTEMPT_SECONDS:g} s")
        except httpx.ConnectError as error:
            return _Failure(f"cannot be reached: {_explain(error)}")
        except httpx.HTTPError as error:
            return _Failure(f"broke the connection ({type(error).__name__})")

    async def _exchange(self, body: bytes) -> _Failure | None:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            if response.is_success:
                return None  # nobody needs to read the word "ok"
            status = response.status_code
            reason = f"answered {status}{self._quote(await _read_some(response))}"
            if status != 429 and status < 500:
                return _Failure(reason, is_final=True)
            return _Failure(reason, retry_after_seconds=parse_retry_after(response.headers.get("retry-after", "")))

    def _quote(self, answer: bytes) -> str:
        """Slack's word for what is wrong (``no_service``), unless it may be something else."""
        word = answer.strip()
        return f" {word.decode('ascii')}" if _REASON.fullmatch(word) and word not in self._url.raw_path else ""


def _explain(error: BaseException) -> str:
    """What kept a connection from being made: the system's or OpenSSL's words, from as far down as there are any."""
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"its certificate is not trusted: {cause.verify_message}"
        elif isinstance(cause, OSError):
            text = cause.strerror or text
        # Several addresses that failed come as a group; one of them will do.
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
    return text or type(error).__name__


async def _read_some(response: httpx.Response) -> bytes:
    answer = b""
    async for chunk in response.aiter_raw():  # to its end: httpx's generators do not like to be left half-way
        answer = (answer + chunk)[:MAX_ANSWER_BYTES]
    return answer


def parse_retry_after(text: str) -> float:
    """Seconds to wait by a ``retry-after`` (RFC 9110 §10.2.3), from 0 to 60; 0 where it says nothing."""
    text = text.strip()
    if re.fullmatch("[0-9]{1,9}", text):
        seconds = float(text)
    else:
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        seconds = (at - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


@asynccontextmanager
async def open_slack_webhook(url: str, *, tls_context: ssl.SSLContext | None = None) -> AsyncIterator[SlackWebhook]:
    """The webhook at ``url``, as long as the block runs; each attempt has a connection of its own.

    ``tls_context`` says which certificates are trusted; by default the system's. Proxies, ``.netrc`` and certificates
    that the environment names are ignored. Raises :exc:`~cgw.errors.ConfigError` where ``url`` is none.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ConfigError(["the URL of the Slack webhook is no URL"]) from None
    async with httpx.AsyncClient(
        verify=ssl.create_default_context() if tls_context is None else tls_context,
        timeout=None,  # each attempt has a deadline as a whole
        limits=httpx.Limits(max_keepalive_connections=0),  # messages are rare, and kept connections go stale
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield SlackWebhook(client, parsed)
