"""Steady requests to three gateways, one per policy, while the Redis that they share is made to fail."""

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
    """A request, the time it was sent (Trio's clock) and took, and its response.

    ``is_counted`` is set when the response shows that Redis counted the request.
    """

    sent_at: float
    took_seconds: float
    status: int
    is_counted: bool
    has_retry_after: bool

    @property
    def answered_at(self) -> float:
        """The time of the response."""
        return self.sent_at + self.took_seconds


@define(eq=False)
class LoadedGateway:
    """A gateway under steady load, and the responses of its clients."""

    policy: str
    gateway: Service
    samples: list[Sample] = field(factory=list)
    healthy_at: float | None = None

    async def send_steadily(self, nursery: trio.Nursery) -> None:
        """Send requests at a fixed rate, each on a new connection, without waiting for earlier ones."""
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
        """Return the first request sent after ``moment`` that Redis counted; ``local`` does not show it."""
        return next((one for one in self.samples if one.sent_at >= moment and one.is_counted), None)


@define(eq=False)
class GatewayDrill:
    """Three gateways under steady load, and the moments of the fault. Times are Trio's clock."""

    name: str
    lines: list[LoadedGateway]
    load_scope: trio.CancelScope
    load_ended: trio.Event
    stalls: Stalls
    began_at: float = field(factory=trio.current_time)
    failed_at: float = 0.0
    stalled_before: float = 0.0
    recovered_at: float = 0.0

    async def wait_calm(self) -> None:
        """Measure how it is without a fault. The fault begins when this returns."""
        await self._wait(lambda: all(len(line.samples) >= 15 for line in self.lines))
        self.failed_at = trio.current_time()
        self.stalled_before = self.stalls.total_seconds

    def recovered(self) -> None:
        """Note that the fault is over now."""
        self.recovered_at = trio.current_time()

    async def finish(self) -> None:
        """Wait for the recovery, end the load, and wait until all reservations are settled."""
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
            while not is_true():  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.002)

    # --- figures ------------------------------------------------------------------------------------------------------

    @property
    def stalled_seconds(self) -> float:
        """The seconds that this process was stalled since the fault."""
        return self.stalls.total_seconds - self.stalled_before

    def usual_seconds(self, line: LoadedGateway) -> float:
        """Return the median time of a request before the fault."""
        return statistics.median(one.took_seconds for one in line.samples if one.answered_at < self.failed_at)

    def longest_wait_seconds(self, line: LoadedGateway) -> float:
        """Return the longest time of a request from the fault on, less the usual time."""
        longest = max(one.took_seconds for one in line.samples if one.answered_at >= self.failed_at)
        return longest - self.usual_seconds(line)

    def back_seconds(self, line: LoadedGateway) -> float:
        """Return the seconds from the recovery to the first response to a request that Redis counted."""
        first = line.first_counted_after(self.recovered_at)
        assert first is not None
        return max(0.0, first.answered_at - self.recovered_at)

    def healthy_seconds(self, line: LoadedGateway) -> float:
        """Return the seconds from the recovery to when the gateway's health says so."""
        assert line.healthy_at is not None
        return max(0.0, line.healthy_at - self.recovered_at)

    def list_wrong(self, line: LoadedGateway) -> list[Sample]:
        """Return the responses that the policy does not allow."""
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
        """Return the number of requests with status 200 that Redis did not count, less what may have been refilled."""
        charged = sum(one.status == 200 for line in self.lines for one in line.samples)
        usage = await get_usage(self.lines[0].gateway)
        assert usage <= charged
        refilled = (trio.current_time() - self.began_at) * LIMIT / DAY_SECONDS + 1
        return max(0.0, charged - usage - refilled)


@asynccontextmanager
async def open_gateway_drill(name: str, folder: Path, redis_url: str) -> AsyncIterator[GatewayDrill]:
    """Run three gateways on the store at ``redis_url``, under load for the length of the block."""
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
            lines.append(LoadedGateway(policy, gateway))
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
            yield GatewayDrill(name, lines, load_scope, load_ended, stalls)
            nursery.cancel_scope.cancel()
