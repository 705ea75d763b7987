"""Posting to an OTLP collector over HTTP, from a thread (https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

from __future__ import annotations

import gzip
import random
import ssl
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cgw import __version__
from cgw.errors import explain_os_error
from cgw.telemetry.export_thread import ExportFailed
from cgw.wire.retry_after import parse_retry_after

if TYPE_CHECKING:
    pass  # imported at run time when a collector is opened, because that takes 100 ms

FIRST_BACKOFF_SECONDS = 0.5
"""The pause before the second attempt; each further one is twice as long, and varies by up to a quarter."""

MAX_BACKOFF_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_RETRY_AFTER_SECONDS = 600.0
"""Longer than any batch has: one that is asked to wait as long fails at once."""

_RETRIED_STATUSES = frozenset([429, 502, 503, 504])

Authorize = Callable[[float], Mapping[str, str]]
"""Returns header fields with a credential that is still valid, within a timeout in seconds. Blocks."""


class OtlpCollector:
    """One URL of a collector, over one connection that is kept. For one thread.

    ``timeout_seconds`` is for one batch, retries included. Proxies and certificates of the environment are ignored:
    only ``tls_context`` says who is trusted.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout_seconds: float,
        tls_context: ssl.SSLContext,
        compresses: bool = False,
        authorize: Authorize | None = None,
    ) -> None:
        import httpx

        self._url = httpx.URL(url)
        self._timeout_seconds = timeout_seconds
        self._compresses = compresses
        self._authorize = authorize
        own = {"content-type": "application/x-protobuf", "user-agent": f"cgw/{__version__}"}
        if compresses:
            own["content-encoding"] = "gzip"
        self._client = httpx.Client(
            headers={**headers, **own},
            verify=tls_context,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            follow_redirects=False,  # headers hold keys, which must not go elsewhere
            trust_env=False,
        )

    @property
    def name(self) -> str:
        """Scheme and host, for log lines."""
        return f"{self._url.scheme}://{self._url.host}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def post(self, body: bytes, deadline: float) -> None:
        """Post ``body``; retry while the collector is away or overloaded, within the timeout and ``deadline``.

        Raises :exc:`~cgw.telemetry.export_thread.ExportFailed`. Blocks; once the time is over it may take as long again
        with a collector that sends or takes a byte now and then.
        """
        deadline = min(deadline, time.monotonic() + self._timeout_seconds)
        if self._compresses:
            body = gzip.compress(body, compresslevel=1)
        backoff_seconds = FIRST_BACKOFF_SECONDS
        while True:
            retry_after_seconds, reason = self._attempt(body, deadline)
            if reason is None:
                return
            pause_seconds = max(backoff_seconds * random.uniform(0.75, 1.25), retry_after_seconds or 0.0)
            if retry_after_seconds is None or time.monotonic() + pause_seconds >= deadline:
                raise ExportFailed(reason)
            time.sleep(pause_seconds)
            backoff_seconds = min(backoff_seconds * 2, MAX_BACKOFF_SECONDS)

    def _is_closed(self) -> bool:
        return self._client.is_closed

    def _attempt(self, body: bytes, deadline: float) -> tuple[float | None, str | None]:
        """Return the least pause before a retry, ``None`` for no retry, and what went wrong, ``None`` for nothing."""
        import httpx

        if self._is_closed():  # by another thread, at the end of the process, between two attempts
            return None, "was given up"
        remaining = max(deadline - time.monotonic(), 0.01)
        try:
            fields = {} if self._authorize is None else self._authorize(remaining)
            with self._client.stream("POST", self._url, content=body, headers=fields, timeout=remaining) as response:
                size = 0
                for chunk in response.iter_raw():
                    size += len(chunk)
                    if size > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                        return None, "answers without an end"
        except httpx.TimeoutException:
            return 0.0, f"no answer within {remaining:.1f} s"
        except httpx.ConnectError as error:
            return 0.0, f"cannot be reached ({explain_os_error(error)})"
        except httpx.HTTPError as error:
            return 0.0, f"broke the connection ({type(error).__name__})"
        except RuntimeError:
            # How httpx tells that the client was closed meanwhile: the process ends, and did not wait for this thread.
            if not self._is_closed():
                raise
            return None, "had no time left to answer"
        if response.is_success:
            return None, None
        reason = f"answered {response.status_code}"
        if response.status_code not in _RETRIED_STATUSES:
            return None, reason
        return parse_retry_after(response.headers.get("retry-after", ""), MAX_RETRY_AFTER_SECONDS), reason
