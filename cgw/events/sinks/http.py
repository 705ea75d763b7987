"""The sink ``http``: batches are posted as JSON lines to a URL, compressed and signed.

::

    POST <url>
    content-type: application/x-ndjson
    content-encoding: gzip
    idempotency-key: <the batch's id, the same when it is sent again>
    x-cgw-timestamp: <seconds since 1970>
    x-cgw-signature: sha256=<hex of HMAC-SHA256(secret, "<timestamp>.<idempotency key>." + the body as sent)>

The timestamp and key are part of what is signed, so that a receiver can tell a replay (as Standard Webhooks and Stripe
do). A receiver answers 2xx once it has all events durably, and removes duplicates by their ids.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from cgw.config.kinds import Secret
from cgw.errors import explain_os_error
from cgw.events.settings import HttpSinkSettings
from cgw.events.sinks.sink import RejectedEvent, SinkUnavailable
from cgw.wire.retry_after import parse_retry_after

if TYPE_CHECKING:
    import httpx  # imported at run time when the sink is opened, because that takes 100 ms

MAX_ANSWER_BYTES = 4096
"""The part of an answer that is kept."""

MAX_READ_BYTES = 64 * 1024
"""The part of an answer that is read so that its connection can be used again; of a longer one it is closed."""

READ_SECONDS = 2.0
"""How long the body of an answer may take, whose status has told everything already."""

MAX_RETRY_AFTER_SECONDS = 900.0

MAX_HALVINGS = 250
"""Refused ranges of one batch that are halved, with two posts each: enough to find 20 bad events among 10,000."""

HALVING_SECONDS = 120.0
"""How long halving may take in all, well below the time that a delivery may take."""

TRANSIENT_STATUSES = {408, 409, 425, 429}
"""Of the client errors, those that pass."""

CONFIGURATION_STATUSES = {401, 402, 403, 404, 405, 406, 407, 410, 411, 415, 426, 431, 451, 511}
"""These are about the URL, the secret or the receiver's account, not about an event: the operator mends that."""


class HttpSink:
    """A URL that batches are posted to. Made by :func:`open_http_sink`."""

    name = "http"
    max_batch_events = 10_000
    max_batch_bytes = 8 * 2**20

    def __init__(self, client: httpx.AsyncClient, url: httpx.URL, settings: HttpSinkSettings) -> None:
        self._client = client
        self._url = url
        self._secret: Secret | None = settings.secret
        self._timeout_seconds = settings.timeout_seconds

    def __repr__(self) -> str:
        return f"<HttpSink at {self._url.host}>"

    async def send(self, lines: Sequence[bytes], batch_id: str) -> Sequence[RejectedEvent]:
        """Post events. A batch that is refused for good is halved until the events that are refused are alone.

        After :data:`MAX_HALVINGS` or :data:`HALVING_SECONDS`, the rest of a refused range counts as refused.
        """
        refusal = await self._post(lines, batch_id)
        if refusal is None:
            return ()
        rejected: list[RejectedEvent] = []
        # Each refused range, and its refusal; the earlier half is tried first.
        ranges = [(0, len(lines), refusal)]
        halvings, deadline = 0, trio.current_time() + HALVING_SECONDS
        while ranges:
            start, end, refusal = ranges.pop()
            if end - start == 1:
                rejected.append(RejectedEvent(start, refusal))
                continue
            if halvings == MAX_HALVINGS or trio.current_time() >= deadline:
                # A receiver that refuses everything: asking for each of 10,000 events would hold up all others, and
                # those set aside can be sent again by `cgw events retry`.
                reason = f"{refusal} (to {end - start} events together; too many were refused to try each alone)"
                rejected += [RejectedEvent(index, reason) for index in range(start, end)]
                continue
            halvings += 1
            middle = (start + end) // 2
            for first, last in ((middle, end), (start, middle)):
                answer = await self._post(lines[first:last], f"{batch_id}.{first}-{last}")
                if answer is not None:
                    ranges.append((first, last, answer))
        return rejected

    async def _post(self, lines: Sequence[bytes], batch_id: str) -> str | None:
        """Post events; return ``None`` when they were taken, otherwise why they are refused for good.

        Raises :exc:`SinkUnavailable`.
        """
        import httpx

        # Level 1 is three times as fast as 6, for a tenth more bytes. zlib lets other threads run.
        body = await trio.to_thread.run_sync(lambda: gzip.compress(b"".join(lines), 1, mtime=0))
        try:
            with trio.fail_after(self._timeout_seconds):
                return await self._exchange(body, batch_id)
        except trio.TooSlowError:
            raise SinkUnavailable(f"{self._url.host} did not answer within {self._timeout_seconds:g} s") from None
        except httpx.ConnectError as error:
            raise SinkUnavailable(f"{self._url.host} cannot be reached: {explain_os_error(error)}") from None
        except httpx.HTTPError as error:
            raise SinkUnavailable(f"{self._url.host} broke the connection ({type(error).__name__})") from None

    async def _exchange(self, body: bytes, batch_id: str) -> str | None:
        headers = self._build_headers(body, batch_id)
        async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            answer = await _read_some(response)
            status = response.status_code
            if response.is_success:
                return None
        where = f"{self._url.host} answered {status}"
        if status in TRANSIENT_STATUSES or status >= 500:
            pause = parse_retry_after(response.headers.get("retry-after", ""), MAX_RETRY_AFTER_SECONDS)
            raise SinkUnavailable(where, retry_after_seconds=pause)
        if status < 400 or status in CONFIGURATION_STATUSES:
            raise SinkUnavailable(
                f"{where}: check CODY_GATEWAY_EVENTS_HTTP_URL and _SECRET, and the receiver",
            )
        # The receiver's own words, for `cgw events failed`.
        return f"{where}: {answer.decode('utf-8', 'replace').strip()}"

    def _build_headers(self, body: bytes, batch_id: str) -> dict[str, str]:
        headers = {
            "content-type": "application/x-ndjson",
            "content-encoding": "gzip",
            "accept-encoding": "identity",  # _read_some() reads the bytes as they come
            "idempotency-key": batch_id,
        }
        if self._secret is not None:
            timestamp = str(int(time.time()))
            signature = sign(self._secret.reveal(), timestamp, batch_id, body)
            headers |= {"x-cgw-timestamp": timestamp, "x-cgw-signature": f"sha256={signature}"}
        return headers


def sign(secret: str, timestamp: str, batch_id: str, body: bytes) -> str:
    """Return the signature of a request in hexadecimal. Pure."""
    return hmac.new(secret.encode(), f"{timestamp}.{batch_id}.".encode() + body, hashlib.sha256).hexdigest()


async def _read_some(response: httpx.Response) -> bytes:
    answer, read_bytes = b"", 0
    # What was taken is not sent again because the rest of the answer drips, or does not end.
    with trio.move_on_after(READ_SECONDS):
        async for chunk in response.aiter_raw():
            answer = (answer + chunk[:MAX_ANSWER_BYTES])[:MAX_ANSWER_BYTES]
            read_bytes += len(chunk)
            if read_bytes > MAX_READ_BYTES:
                break
    return answer


@asynccontextmanager
async def open_http_sink(settings: HttpSinkSettings, tls_context: ssl.SSLContext) -> AsyncIterator[HttpSink]:
    """Open the sink for the length of the block. Proxies and ``.netrc`` of the environment are ignored."""
    import httpx

    assert settings.url is not None
    async with httpx.AsyncClient(verify=tls_context, timeout=None, follow_redirects=False, trust_env=False) as client:
        yield HttpSink(client, httpx.URL(settings.url.reveal()), settings)
