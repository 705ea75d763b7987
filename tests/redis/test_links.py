"""The shared link: right replies, deadlines, and every way a server can fail."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.redis.link import MAX_TIMEOUTS_IN_A_ROW
from cgw.redis.opening import LuaScript, ScriptCall, Store, open_redis
from tests.support.raw_server import open_raw_server
from tests.support.redis_server import RedisServer, run_redis_server, wait_until

PATIENT = 5.0
"""The deadline in tests that are not about deadlines: long, so that a busy machine does not fail them."""
TIMEOUT = 0.1
GRACE = 0.15
"""The most that a busy machine may add to a deadline before a test fails."""

MARK = LuaScript.from_text("redis.call('SET', KEYS[1], ARGV[1]) return 1")
UNMARK = LuaScript.from_text("return redis.call('DEL', KEYS[1])")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with run_redis_server(tmp_path) as server:
        yield server


async def _answers(redis: Store) -> bool:
    try:
        return bool(await redis.execute_command("PING") == b"PONG")
    except StoreUnavailable:
        return False


async def _expect_unavailable(call: Callable[[], Awaitable[object]], match: str) -> float:
    """Expect that the call raises StoreUnavailable; return the seconds it took."""
    started = trio.current_time()
    with pytest.raises(StoreUnavailable, match=match):
        await call()
    return trio.current_time() - started


async def test_redis_py_commands(server: RedisServer) -> None:
    """redis-py's command methods work and return the server's own replies."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        assert await redis.commands.set("name", "value", px=60_000) == b"OK"
        assert await redis.commands.get("name") == b"value"
        assert await redis.commands.hset("hash", mapping={"a": 1}) == 1
        assert await redis.commands.hgetall("hash") == {b"a": b"1"}
        assert redis.statistics().links_up == 1


async def test_wrong_command_is_the_callers_error(server: RedisServer) -> None:
    """An error reply about a command is raised to its caller only."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        await redis.commands.set("text", "x")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await redis.commands.lpush("text", "y")
        assert await redis.commands.get("text") == b"x"


@pytest.mark.parametrize("command", ["SUBSCRIBE", "multi", "CLIENT", "BLPOP"])
async def test_commands_that_hold_a_connection_are_refused(server: RedisServer, command: str) -> None:
    """A command that would affect other callers of the link is refused before it is sent."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        if command == "CLIENT":
            assert b"name=cgw" in await redis.execute_command("CLIENT INFO")
        else:
            with pytest.raises(ValueError, match="shared"):
                await redis.execute_command(command, "x")


async def test_script_runs_known_or_not(server: RedisServer) -> None:
    """A script runs by its SHA-1, and by its text when the server has not cached it."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        for _ in range(2):
            assert await redis.run_script(MARK, ["a"], ["1"]) == 1
        await redis.commands.script_flush()
        assert await redis.run_script(MARK, ["b"], [2]) == 1
        assert await redis.commands.mget("a", "b") == [b"1", b"2"]


@pytest.mark.parametrize("takes_too_long", [False, True])
async def test_one_deadline_for_all_round_trips(takes_too_long: bool) -> None:
    """A script that the server has not cached takes two round trips, within one deadline."""
    delay = TIMEOUT * (0.7 if takes_too_long else 0.1)

    async def play(stream: trio.SocketStream) -> None:
        async for data in stream:
            if b"HELLO" in data or b"PING" in data:
                await stream.send_all(b"%0\r\n" if b"HELLO" in data else b"+PONG\r\n")
            else:
                await trio.sleep(delay)
                await stream.send_all(b"-NOSCRIPT No matching script.\r\n" if b"EVALSHA" in data else b":1\r\n")

    async with open_raw_server(play) as port, open_redis(f"127.0.0.1:{port}", timeout_seconds=TIMEOUT) as redis:
        if takes_too_long:
            took = await _expect_unavailable(lambda: redis.run_script(MARK, ["a"], [1]), "within 100 ms; .*NOSCRIPT")
            assert TIMEOUT <= took < TIMEOUT + delay
            assert (redis.statistics().timeouts, redis.statistics().cancelled) == (1, 0)
        else:
            assert await redis.run_script(MARK, ["a"], [1]) == 1
        await wait_until(lambda: _is_quiet(redis))


async def _is_quiet(redis: Store) -> bool:
    await trio.lowlevel.checkpoint()
    return redis.statistics().waiting_calls == 0


async def test_undo_of_a_lost_call_is_sent_when_the_server_is_back(server: RedisServer) -> None:
    """A call whose reply was lost with the link is undone once there is a link again."""
    async with open_redis(server.url, timeout_seconds=TIMEOUT) as redis:
        await redis.run_script(MARK, ["other"], [1])
        server.send_signal(signal.SIGSTOP)
        undo = ScriptCall(UNMARK, ["mark"], [])
        await _expect_unavailable(lambda: redis.run_script(MARK, ["mark"], [1], undo=undo), "silent")
        assert redis.statistics().kept_calls == 1
        server.send_signal(signal.SIGCONT)
        await wait_until(lambda: _answers(redis))
        assert redis.statistics().kept_calls == 0
        assert await redis.commands.mget("other", "mark") == [b"1", None]


async def test_posted_call_is_loaded_and_retried_while_refused(server: RedisServer) -> None:
    """A posted call runs though its script is not cached, and after the server had no memory."""

    async def is_marked(redis: Store, text: bytes) -> bool:
        return bool(await redis.commands.get("mark") == text)

    async def is_kept(redis: Store) -> bool:
        await trio.lowlevel.checkpoint()
        return redis.statistics().kept_calls == 1

    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        redis.send_later(ScriptCall(MARK, ["mark"], ["first"]))
        await wait_until(lambda: is_marked(redis, b"first"))
        await redis.commands.config_set("maxmemory", "1")
        redis.send_later(ScriptCall(MARK, ["mark"], ["second"]))
        await wait_until(lambda: is_kept(redis))
        await redis.commands.config_set("maxmemory", "0")
        await wait_until(lambda: is_marked(redis, b"second"))
        assert redis.statistics().kept_calls == 0
        redis.send_later(ScriptCall(LuaScript.from_text("return redis.call('LPUSH', KEYS[1], 1)"), ["mark"], []))
        await redis.commands.ping()
        await wait_until(lambda: _is_quiet(redis))
        assert redis.statistics().kept_calls == 0  # dropped: the error is the script's own


@pytest.mark.parametrize(
    ("commands", "code"),
    [
        (["CONFIG SET min-replicas-to-write 1"], "NOREPLICAS"),
        (["CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"], "MASTERDOWN"),
        (["REPLICAOF 127.0.0.1 1"], "READONLY"),
        (["CONFIG SET maxmemory 1"], "OOM"),
    ],
)
async def test_refusals_are_outages_in_scripts_too(server: RedisServer, commands: Sequence[str], code: str) -> None:
    """Refusals that mean "can't serve now" are StoreUnavailable for commands and for scripts."""
    script = LuaScript.from_text("return redis.call('GET', KEYS[1])") if code == "MASTERDOWN" else MARK
    async with (
        open_redis(server.url, timeout_seconds=PATIENT) as redis,
        open_redis(server.url, timeout_seconds=PATIENT) as other,
    ):
        for command in commands:
            await redis.execute_command(*command.split())
        await _expect_unavailable(
            lambda: redis.commands.get("a") if code == "MASTERDOWN" else redis.commands.set("a", 1), code
        )
        await _expect_unavailable(lambda: other.run_script(script, ["a"], [1]), code)


async def test_missing_right_is_an_outage_in_scripts_too(server: RedisServer) -> None:
    """NOPERM for a user who may run scripts but not write is StoreUnavailable."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as operator:
        await operator.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-set")
        async with open_redis(f"unix://reader:secret@{server.path}", timeout_seconds=PATIENT) as redis:
            await _expect_unavailable(lambda: redis.commands.set("a", 1), "NOPERM")
            await _expect_unavailable(lambda: redis.run_script(MARK, ["a"], [1]), "NOPERM")


async def test_failed_snapshots_are_an_outage_in_scripts_too(tmp_path: Path) -> None:
    """MISCONF: a server that can't save its snapshots refuses writes."""
    folder = tmp_path / "gone"
    folder.mkdir()

    async def is_failed() -> bool:
        return "rdb_last_bgsave_status:err" in str(await redis.execute_command("INFO", "persistence"))

    with run_redis_server(tmp_path, "--save", "3600 1", "--dir", str(folder)) as server:
        folder.rmdir()
        async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
            await redis.execute_command("BGSAVE")
            await wait_until(is_failed)
            await _expect_unavailable(lambda: redis.commands.set("a", 1), "MISCONF")
            await _expect_unavailable(lambda: redis.run_script(MARK, ["a"], [1]), "MISCONF")


async def test_silent_server_costs_one_deadline_and_comes_back(server: RedisServer) -> None:
    """A call to a stopped server fails at its deadline, the next one at once; both work when it continues."""
    async with open_redis(server.url, timeout_seconds=TIMEOUT) as redis:
        server.send_signal(signal.SIGSTOP)
        took = await _expect_unavailable(redis.commands.ping, "silent for 100 ms")
        assert TIMEOUT <= took < TIMEOUT + GRACE
        await _expect_unavailable(redis.commands.ping, "no link")
        server.send_signal(signal.SIGCONT)
        await wait_until(lambda: _answers(redis), seconds=2)
        statistics = redis.statistics()
        assert (statistics.timeouts, statistics.reconnects) == (1, 1)
        assert statistics.failed_fast > 0


async def test_paused_server_comes_back(server: RedisServer) -> None:
    """CLIENT PAUSE is handled like any silence."""
    async with open_redis(server.url, timeout_seconds=TIMEOUT) as redis:
        await redis.commands.client_pause(300)
        took = await _expect_unavailable(redis.commands.ping, "silent")
        assert took < TIMEOUT + GRACE
        await wait_until(lambda: _answers(redis), seconds=2)


async def test_killed_connection_is_replaced(server: RedisServer) -> None:
    """A connection that the server closes fails the waiting callers at once and is replaced."""
    async with (
        open_redis(server.url, timeout_seconds=PATIENT) as redis,
        open_redis(server.url, timeout_seconds=PATIENT) as operator,
    ):
        await operator.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
        await wait_until(lambda: _answers(redis))
        assert redis.statistics().reconnects == 1


async def test_killed_server_is_found_again(tmp_path: Path) -> None:
    """kill -9 fails calls at once; an empty server at the same address is used, and scripts are loaded again."""
    with run_redis_server(tmp_path) as first:
        async with open_redis(first.url, timeout_seconds=PATIENT) as redis:
            await redis.run_script(MARK, ["a"], [1])
            first.send_signal(signal.SIGKILL)
            first.process.wait()
            assert await _expect_unavailable(redis.commands.ping, "Redis at") < GRACE
            with run_redis_server(tmp_path):
                await wait_until(lambda: _answers(redis))
                assert await redis.run_script(MARK, ["a"], [1]) == 1


async def test_read_only_server_is_unavailable_and_looked_up_again(server: RedisServer) -> None:
    """READONLY is an outage and replaces the link: after a failover the name leads elsewhere."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        await _expect_unavailable(lambda: redis.commands.set("a", 1), "READONLY")
        await wait_until(lambda: _answers(redis))
        assert redis.statistics().reconnects == 1
        await redis.execute_command("REPLICAOF", "NO", "ONE")
        assert await redis.commands.set("a", 1) == b"OK"


async def test_busy_server_is_unavailable(tmp_path: Path) -> None:
    """BUSY is an outage until the script that causes it ends."""
    async with trio.open_nursery() as nursery:
        with run_redis_server(tmp_path, "--lua-time-limit", "5") as server:
            async with (
                open_redis(server.url, timeout_seconds=PATIENT) as redis,
                open_redis(server.url, timeout_seconds=30) as other,
            ):
                nursery.start_soon(_run_forever, other)
                await wait_until(lambda: _is_busy(redis))
                await redis.commands.script_kill()
                await wait_until(lambda: _answers(redis))


async def _run_forever(redis: Store) -> None:
    with pytest.raises(ResponseError, match="killed"):
        await redis.commands.eval("while true do end", 0)


async def _is_busy(redis: Store) -> bool:
    try:
        await redis.commands.ping()
    except StoreUnavailable as error:
        return "BUSY" in str(error)
    return False


async def test_slow_server_opens_the_circuit() -> None:
    """A link on which call after call times out is closed: until the server is quick, calls fail at once."""
    delay = 0.0

    async def play(stream: trio.SocketStream) -> None:
        async for data in stream:
            for _ in range(max(1, data.count(b"PING"))):
                await trio.sleep(delay)
                await stream.send_all(b"%0\r\n" if b"HELLO" in data else b"+PONG\r\n")

    async def call(redis: Store) -> None:
        try:
            await redis.commands.ping()
        except StoreUnavailable as error:
            reasons.append(str(error))

    reasons: list[str] = []
    async with open_raw_server(play) as port, open_redis(f"127.0.0.1:{port}", timeout_seconds=0.2) as redis:
        delay = 0.04  # much less than the deadline, so that the machine's own pauses don't look like silence
        async with trio.open_nursery() as callers_nursery:
            for _ in range(MAX_TIMEOUTS_IN_A_ROW * 3):
                callers_nursery.start_soon(call, redis)
        delay = 0.8
        assert len(reasons) >= MAX_TIMEOUTS_IN_A_ROW
        assert redis.statistics().timeouts >= MAX_TIMEOUTS_IN_A_ROW
        await wait_until(lambda: _is_down(redis))
        await _expect_unavailable(redis.commands.ping, "no link")
        assert redis.statistics().failed_fast >= 1
        delay = 0.0
        await wait_until(lambda: _answers(redis))


async def _is_down(redis: Store) -> bool:
    await trio.lowlevel.checkpoint()
    return redis.statistics().links_up == 0


@pytest.mark.parametrize("garbage", [b"?what\r\n", b"+PONG\r\n+ONE TOO MANY\r\n"])
async def test_broken_protocol_costs_the_link_only(garbage: bytes) -> None:
    """A reply that breaks the protocol closes the connection; the next one is used."""
    connections = 0

    async def play(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        is_first, pings = connections == 1, 0
        async for data in stream:
            pings += b"PING" in data
            reply = b"%0\r\n" if b"HELLO" in data else b"+PONG\r\n"
            await stream.send_all(garbage if is_first and pings == 2 else reply)

    async with open_raw_server(play) as port, open_redis(f"127.0.0.1:{port}") as redis:
        try:
            await redis.commands.ping()
        except StoreUnavailable as error:
            assert "protocol" in str(error)
        await wait_until(lambda: _is_reconnected(redis))
        assert await redis.execute_command("PING") == b"PONG"


async def _is_reconnected(redis: Store) -> bool:
    await trio.lowlevel.checkpoint()
    statistics = redis.statistics()
    return statistics.reconnects == 1 and statistics.links_up == 1


async def test_own_stall_is_not_the_servers_fault(server: RedisServer) -> None:
    """When this process stalls for longer than the deadline, replies that came in time still count."""
    async with open_redis(server.url, timeout_seconds=0.05) as redis, trio.open_nursery() as nursery:
        replies: list[object] = []

        async def call() -> None:
            replies.append(await redis.commands.echo("x"))

        for _ in range(10):
            await redis.commands.echo("y")  # whose deadline passes during the stall
            nursery.start_soon(call)
            await trio.lowlevel.checkpoint()
            time.sleep(0.08)  # noqa: ASYNC251 - the stall is the point
            await wait_until(lambda: _is_quiet(redis))
        assert (redis.statistics().timeouts, redis.statistics().reconnects) == (0, 0)
    assert replies == [b"x"] * 10


async def test_cleanup_can_still_use_the_links(server: RedisServer) -> None:
    """A cancelled block can still use the store in its shielded cleanup."""
    with trio.CancelScope() as client_scope:
        async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
            try:
                client_scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(1, shield=True):
                    await redis.commands.set("settled", 1)
    assert client_scope.cancelled_caught
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        assert await redis.commands.get("settled") == b"1"


async def test_errors_of_the_block_come_out_as_they_are(server: RedisServer) -> None:
    """An exception of the block is not wrapped in an exception group."""
    with pytest.raises(KeyError, match="mine"):
        async with open_redis(server.url, timeout_seconds=PATIENT):
            raise KeyError("mine")


async def test_nothing_is_left_when_the_block_ends(server: RedisServer) -> None:
    """The end of the block closes the connection and leaves no task behind."""
    async with trio.open_nursery() as nursery:
        async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
            assert len((await redis.execute_command("CLIENT LIST", "TYPE", "normal")).splitlines()) == 1
        assert not nursery.child_tasks
        with pytest.raises(StoreUnavailable, match="no link"):
            await redis.commands.ping()
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        await wait_until(lambda: _is_alone(redis))


async def _is_alone(redis: Store) -> bool:
    return len((await redis.execute_command("CLIENT LIST", "TYPE", "normal")).splitlines()) == 1
