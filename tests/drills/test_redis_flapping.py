"""A store that stops and continues all the time: nothing is charged twice, no charge is lost, no slot stays taken."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

import pytest
import trio
from attrs import define, evolve, field

from cgw.limits.limiter import Limiter
from cgw.limits.options import LimiterOptions
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.opening import Store, open_redis
from tests.support.limits import MARKS
from tests.support.redis_server import RedisServer, run_redis_server, wait_until

CHAT = Feature.CHAT_COMPLETIONS
DEADLINE_SECONDS = 0.02
EXCHANGES = 1_500
SPAN_SECONDS = 3.0
# Refills one request in 1,000 s, so that the usage at the end is the number of charges.
LIMIT = RateLimit(20_000, 2 * 10**10, ("*",), 20_000, 2 * 10**10, max_in_flight=10_000)
# The last actor has no slots, so that its charges are postponed.
LIMITS = [LIMIT, LIMIT, evolve(LIMIT, max_in_flight=None)]
ACTORS = [Actor(f"actor-{number}", "", "static", True, {CHAT: limit}) for number, limit in enumerate(LIMITS)]


@define
class RandomExchanges:
    """Exchanges at random times, some of whose clients leave while they wait for their limits."""

    limiter: Limiter
    dice: random.Random
    charged: Counter[str] = field(factory=Counter)
    local: int = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(EXCHANGES):
                nursery.start_soon(self.run_exchange, ACTORS[number % len(ACTORS)])

    async def run_exchange(self, actor: Actor) -> None:
        dice = self.dice
        await trio.sleep(dice.random() * SPAN_SECONDS)
        admission = None
        with trio.move_on_after(dice.choice([10, 10, 10, 0.001, 0.01])):  # the client scope
            admission = await self.limiter.admit(actor, CHAT, actor.rate_limits[CHAT])
        if admission is None:
            return
        self.local += admission.is_local
        await trio.sleep(dice.random() * 0.2)
        is_charged = dice.random() < 0.5
        if dice.random() < 0.5:
            await self.limiter.settle(admission, is_charged=is_charged)
        else:
            self.limiter.settle_later(admission, is_charged=is_charged)
        self.charged[actor.id] += is_charged


async def flap(server: RedisServer, dice: random.Random) -> None:
    """Stop the server repeatedly, for less and for more than the deadline."""
    for _ in range(12):
        await trio.sleep(dice.random() * SPAN_SECONDS / 10)
        server.send_signal(signal.SIGSTOP)
        await trio.sleep(dice.choice([0.005, 0.015, 0.025, 0.06, 0.2]))
        server.send_signal(signal.SIGCONT)


async def list_leftovers(links: Store) -> list[bytes]:
    """Return reservations that were never settled or given up, and slots that are still taken."""
    left: list[bytes] = []
    keys: list[bytes] = await links.execute_command("KEYS", "cgw:*")
    for key in keys:
        if key.endswith(b":in_flight"):
            left += [key] * int(await links.commands.zcard(key))
        elif b":reservation:" in key and await links.commands.get(key) not in MARKS:
            left.append(key)
    return left


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_counted_twice_or_lost(tmp_path: Path, seed: int) -> None:
    """After any sequence of stops the store has counted exactly the charges, and holds no reservation."""
    dice = random.Random(seed)
    with run_redis_server(tmp_path) as server:
        async with (
            open_redis(server.url, timeout_seconds=DEADLINE_SECONDS) as links,
            open_redis(server.url, timeout_seconds=5) as observer,
            trio.open_nursery() as services_nursery,
        ):
            # Leases of 30 s: none ends by itself in this test.
            limiter = Limiter(links, LimiterOptions(heartbeat_seconds=10))
            services_nursery.start_soon(limiter.run)
            exchanges = RandomExchanges(limiter, dice)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flap, server, dice)
                nursery.start_soon(exchanges.run)

            async def is_told() -> bool:
                await trio.lowlevel.checkpoint()
                limits, calls = limiter.statistics(), links.statistics()
                return not (limits.backlog or limits.is_redis_away or calls.waiting_calls or calls.kept_calls)

            await wait_until(is_told)
            assert exchanges.local > 0
            assert links.statistics().cancelled > 0
            counted = {actor.id: (await Limiter(observer).peek(actor))[CHAT].usage for actor in ACTORS}
            assert counted == exchanges.charged
            assert await list_leftovers(observer) == []
            services_nursery.cancel_scope.cancel()
