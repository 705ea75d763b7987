"""Checking the limits of whole gateways: keys in Redis, answers to clients, and events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from attrs import frozen

from cgw.events.reading import read_events
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, open_gateway
from tests.support.requests import HEADERS

CHAT_PREFIX = "cgw:{static:acme}:chat_completions:"
QUOTA = f"{CHAT_PREFIX}quota"
IN_FLIGHT = f"{CHAT_PREFIX}in_flight"
PROVIDER_IN_FLIGHT = "cgw:{{provider:{}}}:in_flight"

PATIENT = {"CODY_GATEWAY_REDIS_TIMEOUT": "20s"}
"""For tests that count answers: pauses of a busy machine must not look like an outage of Redis."""

Event = tuple[str, Mapping[str, Any]]


@asynccontextmanager
async def open_patient_gateway(
    data_dir: Path,
    upstream_url: str,
    *,
    limit: int = 1000,
    concurrent_requests: int = 1000,
    chat_lines: str = "",
    more: Mapping[str, str] | None = None,
) -> AsyncIterator[Service]:
    """Run a gateway as :func:`~tests.support.gateway.open_gateway`, with a long timeout for Redis."""
    async with open_gateway(
        data_dir,
        upstream_url,
        limit=limit,
        concurrent_requests=concurrent_requests,
        chat_lines=chat_lines,
        more={**PATIENT, **(more or {})},
    ) as gateway:
        yield gateway


def read_recorded(data_dir: Path) -> list[Event]:
    """Return name and metadata of every event that a gateway recorded."""
    return [(event.name, event.metadata) for event in read_events(data_dir / "events")]


def open_http(gateway: Service, **headers: str) -> httpx.AsyncClient:
    """Return a client of ``gateway`` with acme's token, unless ``headers`` have another (``_`` stands for ``-``)."""
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.AsyncClient(base_url=gateway.url, headers={**HEADERS, **own}, timeout=30)


async def get_usage(gateway: Service, feature: str = "chat_completions") -> int:
    """Return acme's usage by ``/v1/limits``."""
    async with open_http(gateway) as client:
        answer = await client.get("/v1/limits")
    assert answer.status_code == 200
    usage = answer.json()[feature]["usage"]
    assert isinstance(usage, int)
    return usage


BOUNDED = "max_in_flight = 3"
PROVIDER_BOUND = {"CODY_GATEWAY_ANTHROPIC_MAX_IN_FLIGHT": "5"}
"""Bounds on what is in flight: a line of an actor's limits, and a setting."""

MARKS = (b"settled", b"void")
"""Records that hold nothing: of usage without Redis, so that it is charged once, and of an admission that was given up,
in case it arrives later."""


@frozen
class Held:
    """The numbers of slots and reservations that Redis holds for requests in flight."""

    slots: int
    reservations: int


async def count_held(gateway: Service) -> Held:
    """Count slots, of actors and providers, and records of reservations. Slow: looks at all keys."""
    gateway.redis.send_postponed()  # charges that wait for an admission hold nothing
    ask = gateway.redis.execute_command
    keys: Sequence[bytes] = await ask("KEYS", "cgw:*")
    slots = [await ask("ZCARD", key) for key in keys if key.endswith(b":in_flight")]
    records = [await ask("GET", key) for key in keys if b":reservation:" in key]
    return Held(sum(slots), sum(record not in (None, *MARKS) for record in records))


async def wait_nothing_held(gateway: Service, seconds: float = 1.0) -> None:
    """Wait until nothing is held any more; fail with what is held after ``seconds``."""
    held = await count_held(gateway)
    with trio.move_on_after(seconds):
        while held != Held(0, 0):
            await trio.sleep(0.005)
            held = await count_held(gateway)
    assert held == Held(0, 0)


def slow_down(upstream: ScriptedUpstream, answer: str = "word " * 40) -> None:
    """Make responses stream for a long time."""
    for model, key in ((ANTHROPIC_MODEL, ANTHROPIC_KEY), (OPENAI_MODEL, OPENAI_KEY)):
        upstream.scripts[model] = Script(answer=answer, tokens_per_second=20, api_key=key)
