"""Steady requests to three gateways, one for each policy, while the Redis that they share is made to fail."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen

from cgw.service.lifecycle import Service
from tests.support.gateway import ANTHROPIC_KEY, open_gateway
from tests.support.limits import get_usage, wait_nothing_held
from tests.support.raw_client import open_client
from tests.support.replicas import open_gated_upstream
from tests.support.requests import build_request
from tests.support.stalls import Stalls

POLICIES = ("local", "open", "closed")
DEADLINE_SECONDS = 0.1
REQUESTS_PER_SECOND = 25
"""For each of the gateways."""
PATH = "/v1/completions/anthropic-messages"
MODEL = "claude-open"
LIMIT = 5_000
DAY_SECONDS = 86_400


@frozen
class Sample:
    """One request: when it was sent (Trio's clock), how long it took, and what came. ``is_counted``: by Redis, as far
    as its answer tells."""

    sent_at: float
    took_seconds: float
    status: int
    is_counted: bool
    has_retry_after: bool

    @property
    def answered_at(self) -> float:
        """When its answer was there."""
        return self.sent_at + self.took_seconds


@define(eq=False)
class Line:
    """One gateway and what its clients got."""

    policy: str
    gateway: Service
    samples: list[Sample] = field(factory=list)
    healthy_at: float | None = None

    async def send_steadily(self, nursery: trio.Nursery) -> None:
        """Send requests on connections of their own, whatever became of those before."""
        next_at = trio.current_time()
        while True:
            nursery.start_soon(self._ask)
            next_at += 1 / REQUESTS_PER_SECOND
            await trio.sleep_until(next_at)

    async def _ask(self) -> None:
        async with open_client(self.gateway.port) as client:
            sent_at = trio.current_time()
            answer = await client.ask(build_request(PATH, stream=False, model=MODEL))
            took_seconds = trio.current_time() - sent_at
        is_counted = answer.status == 200 and "ratelimit" in answer.headers
        self.samples.append(Sample(sent_at, took_seconds, answer.status, is_counted, "retry-after" in answer.headers))

    def first_counted_after(self, moment: float) -> Sample | None:
        """The first request sent after ``moment`` that Redis counted; the policy ``local`` does not let us see it."""
        return next((one for one in self.samples if one.sent_at >= moment and one.is_counted), None)


@define(eq=False)
class Drill:
    """Three gateways under steady load, and the moments of the fault. Times are Trio's clock."""

    name: str
    lines: list[Line]
    load_scope: trio.CancelScope
    load_ended: trio.Event
    stalls: Stalls
    began_at: float = field(factory=trio.current_time)
    failed_at: float = 0.0
    stalled_before: float = 0.0
    recovered_at: float = 0.0

    async def wait_calm(self) -> None:
        """Take the measure of how it is without a fault. The fault begins when this returns."""
        await self._wait(lambda: all(len(line.samples) >= 15 for line in self.lines))
        self.failed_at = trio.current_time()
        self.stalled_before = self.stalls.total_seconds

    def recovered(self) -> None:
        """The fault is over now."""
        self.recovered_at = trio.current_time()

    async def finish(self) -> None:
        """Wait until all is as before, end the load, and hold the store to what was answered."""
        await self._wait(self._is_back)
        await trio.sleep(0.2)
        self.load_scope.cancel()
        await self.load_ended.wait()
        await self._wait(lambda: all(line.gateway.gateway.limiter.statistics().backlog == 0 for line in self.lines))
        await wait_nothing_held(self.lines[0].gateway)

    def _is_back(self) -> bool:
        now = trio.current_time()
        for line in self.lines:
            if line.healthy_at is None and not line.gateway.gateway.limiter.outage.is_on:
                line.healthy_at = now
        return all(line.healthy_at and line.first_counted_after(self.recovered_at) for line in self.lines)

    async def _wait(self, is_true: Callable[[], bool], seconds: float = 10) -> None:
        with trio.fail_after(seconds):
            while not is_true():  # noqa: ASYNC110 - what is waited for is announced by nobody
                await trio.sleep(0.002)

    # --- figures ------------------------------------------------------------------------------------------------------

    @property
    def stalled_seconds(self) -> float:
        """How long this process was held up since the fault: not the gateways' fault."""
        return self.stalls.total_seconds - self.stalled_before

    def usual_seconds(self, line: Line) -> float:
        """How long a request takes without a fault: the median."""
        return statistics.median(one.took_seconds for one in line.samples if one.answered_at < self.failed_at)

    def longest_wait_seconds(self, line: Line) -> float:
        """The longest that a request was held up from the fault on, beyond what is usual."""
        longest = max(one.took_seconds for one in line.samples if one.answered_at >= self.failed_at)
        return longest - self.usual_seconds(line)

    def back_seconds(self, line: Line) -> float:
        """From the recovery to the answer of the first request that Redis counted."""
        first = line.first_counted_after(self.recovered_at)
        assert first is not None
        return max(0.0, first.answered_at - self.recovered_at)

    def healthy_seconds(self, line: Line) -> float:
        """From the recovery to when the gateway says so."""
        assert line.healthy_at is not None
        return max(0.0, line.healthy_at - self.recovered_at)

    def list_wrong(self, line: Line) -> list[Sample]:
        """Answers that are not what the policy says."""
        if line.policy != "closed":
            return [one for one in line.samples if one.status != 200]
        back_at = self.recovered_at + self.back_seconds(line)
        return [
            one
            for one in line.samples
            if one.status != 200
            and not (one.status == 503 and one.has_retry_after and self.failed_at <= one.answered_at <= back_at)
        ]

    async def count_missed(self) -> float:
        """How many of the requests that were answered 200 Redis does not know of; what refilled is allowed for."""
        charged = sum(one.status == 200 for line in self.lines for one in line.samples)
        usage = await get_usage(self.lines[0].gateway)
        assert usage <= charged
        refilled = (trio.current_time() - self.began_at) * LIMIT / DAY_SECONDS + 1
        return max(0.0, charged - usage - refilled)


@asynccontextmanager
async def open_drill(name: str, folder: Path, redis_url: str) -> AsyncIterator[Drill]:
    """Three gateways on the store at ``redis_url``, with the load running from here on."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(open_gated_upstream())
        lines = []
        for policy in POLICIES:
            data_dir = folder / policy
            data_dir.mkdir()
            more = {
                "REDIS_ENDPOINT": redis_url,
                "CODY_GATEWAY_REDIS_TIMEOUT": f"{DEADLINE_SECONDS * 1000:g}ms",
                "CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN": policy,
                "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": ANTHROPIC_KEY,
                "CODY_GATEWAY_ANTHROPIC_ALLOWED_MODELS": MODEL,
            }
            gateway = await stack.enter_async_context(
                open_gateway(data_dir, upstream.url, limit=LIMIT, chat_lines="max_in_flight = 500", more=more)
            )
            lines.append(Line(policy, gateway))
        async with trio.open_nursery() as nursery:
            load_scope, load_ended = trio.CancelScope(), trio.Event()

            async def send() -> None:
                async with trio.open_nursery() as requests_nursery:
                    with load_scope:
                        async with trio.open_nursery() as load_nursery:
                            for line in lines:
                                load_nursery.start_soon(line.send_steadily, requests_nursery)
                load_ended.set()

            nursery.start_soon(send)
            stalls = Stalls()
            nursery.start_soon(stalls.watch)
            yield Drill(name, lines, load_scope, load_ended, stalls)
            nursery.cancel_scope.cancel()
