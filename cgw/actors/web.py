"""Requests to the services that know actors: small, few, and bounded in time and size."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import trio
from attrs import field, frozen

from cgw.actors.source import SourceUnavailable
from cgw.errors import explain_os_error
from cgw.telemetry.call_spans import CallTracer, trace_call

if TYPE_CHECKING:
    import httpx  # imported at run time when a client is opened, because that takes 100 ms

REQUEST_SECONDS = 10.0
"""The deadline of one request as a whole, from the connection to the last byte of the answer."""

MAX_ANSWER_BYTES = 16 * 2**20

INLINE_BYTES = 64 * 2**10
"""Larger answers are decoded in a thread: the Trio thread serves streams."""

MAX_CONNECTIONS = 64
"""More than all callers use at once: 16 fetches and a listing of each source, 20 attribution searches, SAMS. With less,
slow searches would keep tokens from being checked, as a request that waits for a connection may run out of time.
"""

MAX_KEPT_CONNECTIONS = 20


@frozen
class WebAnswer:
    """A whole answer. ``what`` is how errors call it, as "GraphQL CheckAccessToken of sourcegraph.com"."""

    what: str
    status: int
    content_type: str
    body: bytes = field(repr=False)

    async def decode(self) -> Any:
        """Return the body as JSON. Raises :exc:`~cgw.actors.source.SourceUnavailable` if it is none."""
        try:
            if len(self.body) <= INLINE_BYTES:
                return json.loads(self.body)
            return await trio.to_thread.run_sync(json.loads, self.body)
        except (ValueError, RecursionError):
            raise self.complain(f"is not JSON but {self._describe()}", is_down=self.status >= 500) from None

    def complain(self, problem: str, *, is_down: bool = False) -> SourceUnavailable:
        """Build the error of an answer that cannot be used: ``problem`` follows "the answer"."""
        return SourceUnavailable(f"{self.what}: the answer {problem}", is_down=is_down)

    def _describe(self) -> str:
        if not self.body:
            return f"empty (status {self.status})"
        kind = self.content_type.partition(";")[0].strip().lower()
        # Only kinds that say something; a header's value is foreign text.
        known = kind if kind in ("text/html", "text/plain", "application/xml", "application/json") else "something else"
        return f"{known} of {len(self.body)} bytes (status {self.status})"


class WebClient:
    """Sends requests over connections that are kept. Opened by :func:`open_web_client`."""

    def __init__(self, client: httpx.AsyncClient, tracer: CallTracer | None = None) -> None:
        self._client = client
        self._tracer = tracer

    async def post(
        self, what: str, url: str, *, headers: Mapping[str, str], body: bytes, span: str | None = None
    ) -> WebAnswer:
        """Post ``body`` and return the answer, whatever its status below 500 but a redirect.

        ``span`` is the name of the call in traces, ``what`` if it is not given.

        Raises :exc:`~cgw.actors.source.SourceUnavailable`, whose text begins with ``what`` and holds neither the
        URL's query nor a header. Takes up to :data:`REQUEST_SECONDS`. Cancel-safe: the connection is closed.
        """
        with trace_call(self._tracer, span or what, urlsplit(url).hostname):
            return await self._post(what, url, headers, body)

    async def _post(self, what: str, url: str, headers: Mapping[str, str], body: bytes) -> WebAnswer:
        import httpx

        try:
            with trio.fail_after(REQUEST_SECONDS):
                return await self._exchange(what, url, headers, body)
        except trio.TooSlowError:
            raise SourceUnavailable(f"{what}: no answer within {REQUEST_SECONDS:g} s") from None
        except httpx.ConnectError as error:
            raise SourceUnavailable(f"{what}: cannot be reached: {explain_os_error(error)}") from None
        except httpx.HTTPError as error:
            raise SourceUnavailable(f"{what}: the connection broke ({type(error).__name__})") from None
        except httpx.InvalidURL:
            raise SourceUnavailable(f"{what}: its URL is not valid") from None

    async def _exchange(self, what: str, url: str, headers: Mapping[str, str], body: bytes) -> WebAnswer:
        # No compression: an answer is not larger than what was received.
        fields = {"accept-encoding": "identity", "accept": "application/json", **headers}
        async with self._client.stream("POST", url, content=body, headers=fields) as response:
            status = response.status_code
            if response.has_redirect_location or 300 <= status < 400:
                raise SourceUnavailable(f"{what}: answered with a redirect ({status}), which is not followed")
            chunks, size = [], 0
            # Closed here: an async generator that is left half-way is closed by the garbage collector, outside Trio.
            async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as received:
                async for chunk in received:
                    size += len(chunk)
                    if size > MAX_ANSWER_BYTES:
                        raise SourceUnavailable(f"{what}: the answer is larger than {MAX_ANSWER_BYTES // 2**20} MiB")
                    chunks.append(chunk)
        if status >= 500 or status == 429:
            raise SourceUnavailable(f"{what}: answered {status}")
        return WebAnswer(what, status, response.headers.get("content-type", ""), b"".join(chunks))


@asynccontextmanager
async def open_web_client(tls_context: ssl.SSLContext, tracer: CallTracer | None = None) -> AsyncIterator[WebClient]:
    """Open a client for the length of the block. Proxies and certificates from the environment are ignored."""
    import httpx

    async with httpx.AsyncClient(
        verify=tls_context,
        timeout=None,  # post() bounds each request as a whole
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_KEPT_CONNECTIONS),
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield WebClient(client, tracer)
