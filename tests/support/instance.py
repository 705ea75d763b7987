"""A stand-in for the HTTP client of a Sourcegraph instance, with its policy of silent retries.

The reference's §9.11: 429 and 5xx (but not 501) are retried up to 20 times, unless ``retry-after`` (seconds or an HTTP
date) is longer than 3 s; the wait is ``retry-after``, otherwise random with an exponential bound, from 0.2 to 3 s.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import trio
from attrs import define

MAX_ATTEMPTS = 20
SHORTEST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 3.0


@define
class Instance:
    """Sends requests as an instance does. ``attempts`` counts what went over the wire."""

    client: httpx.AsyncClient
    attempts: int = 0

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send a request, again and again as the policy says; return the last response."""
        attempt = 0
        while True:
            self.attempts += 1
            answer = await self.client.post(path, json=body)
            delay = choose_delay(answer, attempt)
            attempt += 1
            if delay is None or attempt == MAX_ATTEMPTS:
                return answer
            await trio.sleep(delay)


def choose_delay(answer: httpx.Response, attempt: int) -> float | None:
    """Return the seconds until the next attempt, or ``None`` for none."""
    status = answer.status_code
    if status != 429 and (status < 500 or status == 501):
        return None
    wait = read_retry_after(answer)
    if wait is not None and wait > LONGEST_DELAY_SECONDS:
        return None
    if wait is None:
        wait = random.uniform(0, SHORTEST_DELAY_SECONDS * 2**attempt)
    return min(max(wait, SHORTEST_DELAY_SECONDS), LONGEST_DELAY_SECONDS)


def read_retry_after(answer: httpx.Response) -> float | None:
    """Return ``retry-after`` in seconds, ``None`` where it is absent or cannot be read."""
    text = answer.headers.get("retry-after", "")
    if text.isdigit():
        return float(text)
    try:
        return (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except ValueError:
        return None
