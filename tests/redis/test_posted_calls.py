"""Posted calls: postponed or sent at once, one outcome each, and repeated without counting twice."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from redis.crc import key_slot
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.redis.link import GATHER_SECONDS, MAX_POSTPONED, POSTPONE_SECONDS
from cgw.redis.opening import LuaScript, ScriptCall, Store, open_redis
from tests.support.redis_cluster import run_redis_cluster
from tests.support.redis_server import RedisServer, run_redis_server, wait_until

PATIENT = 5.0
"""The deadline in tests that are not about deadlines: long, so that a busy machine does not fail them."""
PUSH = LuaScript.from_text("return redis.call('RPUSH', KEYS[1], ARGV[1])")
ADD_ONCE = LuaScript.from_text(
    "if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then return redis.call('INCR', KEYS[2]) end return 0"
)

ADD_BOTH = LuaScript.from_text(
    "redis.call('INCRBY', KEYS[1], ARGV[1]) redis.call('INCRBY', KEYS[2], ARGV[1]) return ARGV[1]"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with run_redis_server(tmp_path) as server:
        yield server


class Posted:
    """A posted call that notes its outcomes, and repeats itself when there was no reply."""

    gathers: ClassVar[bool] = True

    def __init__(self, redis: Store, call: ScriptCall, *, repeats: bool = False) -> None:
        self._redis = redis
        self._call = call
        self._repeats = repeats
        self.outcomes: list[Any] = []

    def pack(self) -> bytes:
        """Return the packed call."""
        return self._call.pack_evalsha()

    def build_call(self) -> ScriptCall:
        """Return the call."""
        return self._call

    def handle_reply(self, reply: Any) -> None:
        """Note one outcome."""
        self.outcomes.append(reply)
        if self._repeats and isinstance(reply, StoreUnavailable):
            self._redis.send_later(self._call)

    def post(self, *, may_wait: bool = False) -> None:
        """Send the call."""
        self._redis.post_script(self, self._call.keys[0], may_wait=may_wait)


def _push(redis: Store, text: str) -> Posted:
    return Posted(redis, ScriptCall(PUSH, ["list"], [text]))


async def _read(redis: Store) -> list[bytes]:
    found: list[bytes] = await redis.execute_command("LRANGE", "list", 0, -1)
    return found


async def test_postponed_calls_leave_with_another_one(server: RedisServer) -> None:
    """Postponed calls gather for a moment, and run before the next call of their link after that."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        await redis.run_script(PUSH, ["list"], ["first"])
        before = redis.statistics().calls
        second, third = _push(redis, "second"), _push(redis, "third")
        second.post(may_wait=True)
        third.post(may_wait=True)
        assert redis.statistics().calls == before
        assert redis.statistics().waiting_calls == 2
        time.sleep(GATHER_SECONDS)  # noqa: ASYNC251 - in a sleep of Trio, they could leave alone
        assert await redis.run_script(PUSH, ["list"], ["fourth"]) == 4
        assert (second.outcomes, third.outcomes) == ([2], [3])
        assert redis.statistics().waiting_calls == 0


async def test_many_postponed_calls_leave_with_the_next_one(server: RedisServer) -> None:
    """As many calls as may be postponed do not gather any longer."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        for number in range(MAX_POSTPONED):
            _push(redis, str(number)).post(may_wait=True)
        assert await redis.run_script(PUSH, ["list"], ["last"]) == MAX_POSTPONED + 1


async def test_each_postponed_call_has_its_time(server: RedisServer) -> None:
    """A call that is postponed after others have left does not leave by their alarm, but has time of its own."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        _push(redis, "first").post(may_wait=True)
        time.sleep(GATHER_SECONDS)  # noqa: ASYNC251 - as above
        assert await redis.run_script(PUSH, ["list"], ["second"]) == 2
        third, posted_at = _push(redis, "third"), trio.current_time()
        third.post(may_wait=True)
        await wait_until(lambda: _has_outcome(third))
        assert trio.current_time() - posted_at > POSTPONE_SECONDS * 0.9


async def test_postponed_call_leaves_by_itself(server: RedisServer) -> None:
    """Without a next call, a postponed call leaves after a short while, as often as there is one."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        await redis.run_script(PUSH, ["list"], ["first"])
        for count in (2, 3):
            posted, posted_at = _push(redis, "later"), trio.current_time()
            posted.post(may_wait=True)
            await wait_until(lambda posted=posted: _has_outcome(posted))  # type: ignore[misc]
            assert posted.outcomes == [count]
            assert POSTPONE_SECONDS * 0.8 < trio.current_time() - posted_at < POSTPONE_SECONDS + 0.5


async def _has_outcome(posted: Posted) -> bool:
    await trio.lowlevel.checkpoint()
    return bool(posted.outcomes)


async def test_script_is_loaded_and_errors_reach_the_call(server: RedisServer) -> None:
    """A posted call runs though its script is not cached; the script's own error is its outcome."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        for may_wait in (False, True):
            await redis.commands.script_flush()
            posted = _push(redis, "x")
            posted.post(may_wait=may_wait)
            await wait_until(lambda posted=posted: _has_outcome(posted))  # type: ignore[misc]
            assert posted.outcomes == [1 + may_wait]
        await redis.commands.set("list", "text")
        broken = _push(redis, "y")
        broken.post()
        await wait_until(lambda: _has_outcome(broken))
        assert isinstance(broken.outcomes[0], ResponseError)
        assert redis.statistics().kept_calls == 0


async def test_without_a_link_the_outcome_is_there_at_once(server: RedisServer) -> None:
    """While there is no link, and when it goes down first, the outcome is StoreUnavailable."""
    async with open_redis(server.url, timeout_seconds=0.1) as redis:
        server.send_signal(signal.SIGSTOP)
        sent, waiting = _push(redis, "sent"), _push(redis, "waiting")
        sent.post()
        await trio.sleep(0.08)
        waiting.post(may_wait=True)
        await wait_until(lambda: _has_outcome(sent))
        refused = _push(redis, "refused")
        refused.post(may_wait=True)
        for posted in (sent, waiting, refused):
            (outcome,) = posted.outcomes
            assert isinstance(outcome, StoreUnavailable)
        server.send_signal(signal.SIGCONT)


async def test_each_call_counts_once_though_links_are_killed(server: RedisServer) -> None:
    """Of calls posted while connections are killed again and again, each has one outcome and counts once."""
    posted: list[Posted] = []
    async with (
        open_redis(server.url, timeout_seconds=PATIENT) as redis,
        open_redis(server.url, timeout_seconds=PATIENT) as operator,
    ):
        for number in range(400):
            call = ScriptCall(ADD_ONCE, ["seen", "count"], [number])
            posted.append(Posted(redis, call, repeats=True))
            posted[-1].post(may_wait=number % 3 > 0)
            if number % 40 == 39:
                await operator.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            elif number % 7 == 0:
                await trio.sleep(0.001)

        async def is_settled() -> bool:
            await trio.lowlevel.checkpoint()
            statistics = redis.statistics()
            is_quiet = statistics.links_up and not statistics.kept_calls and not statistics.waiting_calls
            return bool(is_quiet) and all(one.outcomes for one in posted)

        await wait_until(is_settled)
        assert Counter(len(one.outcomes) for one in posted) == {1: 400}
        assert int(await operator.execute_command("GET", "count")) == 400
        assert redis.statistics().reconnects > 0


async def test_posted_call_follows_its_slot(tmp_path: Path) -> None:
    """In a cluster the outcome is that of the node that has the slot now; between two nodes it is TRYAGAIN."""
    keys, slot = ["{posted}:a", "{posted}:b"], key_slot(b"posted")

    async def post(redis: Store, *, may_wait: bool) -> object:
        posted = Posted(redis, ScriptCall(ADD_BOTH, keys, [1]))
        posted.post(may_wait=may_wait)
        await wait_until(lambda: _has_outcome(posted))
        (outcome,) = posted.outcomes
        return outcome

    with run_redis_cluster(tmp_path) as cluster:
        async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
            assert await post(redis, may_wait=False) == b"1"
            for may_wait in (False, True):
                source = await cluster.find_owner(slot)
                target = cluster.others(source)[0]
                await cluster.move_slot(slot, source, target)
                assert await post(redis, may_wait=may_wait) == b"1"
                await cluster.begin_move(slot, target, source)
                await cluster.move_keys(slot, target, source, most=1)
                assert "TRYAGAIN" in str(await post(redis, may_wait=may_wait))
                await cluster.move_keys(slot, target, source)
                assert await post(redis, may_wait=may_wait) == b"1"
                await cluster.end_move(slot, source)
            assert await redis.commands.mget(keys) == [b"5", b"5"]
