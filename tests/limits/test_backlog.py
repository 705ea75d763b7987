"""The backlog that Redis gets after an outage: the usage, less what time has paid off meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from cgw.errors import StoreUnavailable
from cgw.limits.claims import Claim
from cgw.limits.offline.backlog import MAX_SETTLEMENTS, Backlog
from cgw.limits.offline.outage import Outage
from cgw.limits.scripts import LimitScripts, load_scripts
from cgw.redis.opening import ScriptCall, Store, open_redis
from tests.support.redis_server import RedisServer, run_redis_server

PREFIX = "cgw:{static:acme}:"
RATE = Claim("concurrency", "bucket", f"{PREFIX}chat_completions:rate", 10, 10_000)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Return a clock that only moves by jumps, so that calls of Redis take no time."""
    return trio.testing.MockClock()


@pytest.fixture
async def links(clock: trio.testing.MockClock, server: RedisServer) -> AsyncIterator[Store]:
    async with open_redis(server.url, timeout_seconds=5) as links:
        yield links


@pytest.fixture
def scripts() -> LimitScripts:
    return load_scripts()


async def count_used(links: Store, scripts: LimitScripts, claim: Claim = RATE) -> int:
    """Return the usage of a limit in Redis, in whole tokens."""
    answer = await links.run_script(scripts.peek, [claim.key], [claim.kind, claim.limit, claim.period_ms])
    return claim.limit - int(answer[1])


async def test_usage_that_time_has_paid_off_is_not_charged(
    clock: trio.testing.MockClock, links: Store, scripts: LimitScripts
) -> None:
    """Of 8 used seven seconds ago and 4 used two seconds ago, at 10 per 10 s, 5 are still owed."""
    backlog = Backlog(links, scripts, Outage("local"))
    backlog.add_charge(f"{PREFIX}reservation:", RATE, 8)
    clock.jump(5)
    backlog.add_charge(f"{PREFIX}reservation:", RATE, 4)
    clock.jump(2)
    await backlog.flush()
    assert await count_used(links, scripts) == 5
    assert len(backlog) == 0


async def test_an_outage_longer_than_the_interval_leaves_room(
    clock: trio.testing.MockClock, links: Store, scripts: LimitScripts
) -> None:
    """A steady use within the limit for a minute is not charged to the last ten seconds all at once."""
    backlog = Backlog(links, scripts, Outage("local"))
    for _ in range(60):
        backlog.add_charge(f"{PREFIX}reservation:", RATE, 1)
        clock.jump(1)
    await backlog.flush()
    assert await count_used(links, scripts) == 0


async def test_earlier_debt_is_paid_off_first(
    clock: trio.testing.MockClock, links: Store, scripts: LimitScripts
) -> None:
    """Time pays off the debt that Redis knows of first, so all usage since is charged."""
    backlog = Backlog(links, scripts, Outage("local"))
    backlog.add_charge(f"{PREFIX}reservation:", RATE, 4, debt=5 * RATE.period_ms)
    clock.jump(3)
    await backlog.flush()
    assert await count_used(links, scripts) == 4


async def test_a_limit_whose_numbers_change_keeps_its_usage(
    clock: trio.testing.MockClock, links: Store, scripts: LimitScripts
) -> None:
    """Whole tokens are kept when a limit's interval changes during an outage."""
    backlog = Backlog(links, scripts, Outage("local"))
    longer = evolve(RATE, period_ms=1_000_000)
    backlog.add_charge(f"{PREFIX}reservation:", RATE, 3)
    backlog.add_charge(f"{PREFIX}reservation:", longer, 2)
    clock.jump(20)
    await backlog.flush()
    assert await count_used(links, scripts, longer) == 5


async def test_an_outage_does_not_fill_the_backlog(tmp_path: Path) -> None:
    """However often Redis is tried in vain, the usage of a limit stays one entry, and is charged once."""
    with run_redis_server(tmp_path) as first:
        async with open_redis(first.url, timeout_seconds=5) as links:
            scripts = load_scripts()
            backlog = Backlog(links, scripts, Outage("local"))
            quota = evolve(RATE, period_ms=86_400_000, limit=1_000)
            first.process.kill()
            first.process.wait()
            for _ in range(100):
                backlog.add_charge(f"{PREFIX}reservation:", quota, 1)
                with pytest.raises(StoreUnavailable):
                    await backlog.flush()
                assert len(backlog) <= 2
            with run_redis_server(tmp_path):
                with trio.fail_after(5):
                    while len(backlog):
                        try:
                            await backlog.flush()
                        except StoreUnavailable:
                            await trio.sleep(0.01)
                assert await count_used(links, scripts, quota) == 100


async def test_overflow_is_logged(links: Store, scripts: LimitScripts, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the bound the oldest settlements are dropped: one line when that begins, one with their number later."""
    backlog = Backlog(links, scripts, Outage("local"))
    call = ScriptCall(scripts.settle, ["{t}:record", "{t}:slot"], ["r", 0, "", "lease", 1, 1_000, 1, 0])
    for _ in range(MAX_SETTLEMENTS + 3):
        backlog.add_settlement(call)
    assert len(backlog) == MAX_SETTLEMENTS
    await backlog.flush()
    assert (len(backlog), backlog.dropped) == (0, 0)
    first, last = [record.getMessage() for record in caplog.records if record.name == "cgw.limits"]
    assert "being dropped" in first
    assert last.startswith("3 settlements")
