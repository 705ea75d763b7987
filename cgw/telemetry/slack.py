"""Posting to a Slack webhook (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).

The URL is a secret: errors, log lines and reprs contain its host at most.
"""

from __future__ import annotations

import json
import random
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from cgw.errors import CgwError, ConfigError, explain_os_error
from cgw.telemetry.call_spans import CallTracer, trace_call
from cgw.wire.retry_after import parse_retry_after

if TYPE_CHECKING:
    import httpx  # imported at run time when a webhook is opened, because that takes 100 ms

MAX_ATTEMPTS = 4
ATTEMPT_SECONDS = 15.0
"""The timeout of one attempt as a whole (as in the reference, its §10)."""

FIRST_BACKOFF_SECONDS = 1.0
"""The pause before the second attempt; each further one is twice as long. All vary by up to a quarter."""

MAX_RETRY_AFTER_SECONDS = 60.0
"""The longest pause that a ``retry-after`` can ask for."""

MAX_ANSWER_BYTES = 4096
"""The part of an answer that is kept. Slack's answers are one word."""

_REASON = re.compile(rb"[a-z_]{1,40}")


class SlackPostFailed(CgwError):
    """Slack did not accept a message. The text never contains the webhook's path."""


@frozen
class _Failure:
    """A failed attempt: ``reason`` is the end of a sentence about the webhook; ``is_final`` rules out a retry."""

    reason: str
    is_final: bool = False
    retry_after_seconds: float = 0.0


class SlackWebhook:
    """A webhook to post messages to. Made by :func:`open_slack_webhook`."""

    def __init__(self, client: httpx.AsyncClient, url: httpx.URL, tracer: CallTracer | None = None) -> None:
        self._client = client
        self._url = url
        self._tracer = tracer

    def __repr__(self) -> str:
        return f"<SlackWebhook at {self._url.host}>"

    async def post(self, payload: Mapping[str, Any]) -> None:
        """Post ``payload`` as JSON; return when Slack has accepted it.

        Retries after 429, 5xx and failures of the connection, up to :data:`MAX_ATTEMPTS` attempts in about four
        minutes; a message whose answer was lost may therefore appear twice. Redirects are not followed. Raises
        :exc:`SlackPostFailed`. Cancel-safe: the connection is closed, and Slack may or may not have the message.
        """
        with trace_call(self._tracer, "Slack webhook", self._url.host):
            await self._post(json.dumps(payload).encode("ascii"))

    async def _post(self, body: bytes) -> None:
        backoff_seconds = FIRST_BACKOFF_SECONDS
        for attempt in range(1, MAX_ATTEMPTS + 1):
            failure = await self._attempt(body)
            if failure is None:
                return
            # Only the last failure is named.
            if failure.is_final or attempt == MAX_ATTEMPTS:
                attempts = "" if attempt == 1 else f"; tried {attempt} times"
                raise SlackPostFailed(f"the Slack webhook at {self._url.host} {failure.reason}{attempts}")
            # The jitter keeps replicas, which alert at the same time, from retrying at the same time.
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
            return _Failure(f"cannot be reached: {explain_os_error(error)}")
        except httpx.HTTPError as error:
            return _Failure(f"broke the connection ({type(error).__name__})")

    async def _exchange(self, body: bytes) -> _Failure | None:
        # No compression, because _read_some() reads the bytes as they come.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            if response.is_success:
                return None  # the body is the word "ok"
            status = response.status_code
            reason = f"answered {status}{self._quote(await _read_some(response))}"
            # The URL or the message is wrong: a retry would fail in the same way.
            if status != 429 and status < 500:
                return _Failure(reason, is_final=True)
            pause_seconds = parse_retry_after(response.headers.get("retry-after", ""), MAX_RETRY_AFTER_SECONDS)
            return _Failure(reason, retry_after_seconds=pause_seconds)

    def _quote(self, answer: bytes) -> str:
        """Return Slack's error code (``no_service``), or nothing where the answer is something else."""
        word = answer.strip()
        # An answer that repeats a part of the URL would show the secret.
        return f" {word.decode('ascii')}" if _REASON.fullmatch(word) and word not in self._url.raw_path else ""


async def _read_some(response: httpx.Response) -> bytes:
    answer = b""
    # Read to the end, within the attempt's timeout: an async generator of httpx that is left half-way is closed by the
    # garbage collector, outside of its task.
    async for chunk in response.aiter_raw():
        answer = (answer + chunk)[:MAX_ANSWER_BYTES]
    return answer


@asynccontextmanager
async def open_slack_webhook(
    url: str, *, tls_context: ssl.SSLContext | None = None, tracer: CallTracer | None = None
) -> AsyncIterator[SlackWebhook]:
    """Open the webhook at ``url`` for the length of the block. Each attempt opens a connection of its own.

    ``tls_context`` says which certificates are trusted; the default is the system's. Proxies, ``.netrc`` and
    certificates from the environment are ignored. Raises :exc:`~cgw.errors.ConfigError` if ``url`` is not valid.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ConfigError(["the URL of the Slack webhook is not valid"]) from None
    async with httpx.AsyncClient(
        verify=ssl.create_default_context() if tls_context is None else tls_context,
        timeout=None,  # _attempt() bounds each attempt as a whole
        limits=httpx.Limits(max_keepalive_connections=0),  # messages are rare: a kept connection would be stale
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield SlackWebhook(client, parsed, tracer)
