"""A master, its replica, and the Sentinels that watch them, on loopback, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from attrs import field, frozen

from cgw.redis.address import RedisAddress
from tests.support.redis_cluster import find_free_ports
from tests.support.redis_server import RedisServer, ask_server, run_redis_server, run_server_process, wait_until

SERVICE = "mymaster"
_CONFIGURATION = """\
port {port}
bind 127.0.0.1
unixsocket {path}
dir {folder}
sentinel monitor {service} 127.0.0.1 {master_port} {quorum}
sentinel down-after-milliseconds {service} {down_after_ms}
sentinel failover-timeout {service} 3000
{more}
"""


@frozen
class WatchedServer:
    """A server and the TCP port at which Sentinels reach it."""

    server: RedisServer
    port: int


@frozen
class SentinelGroup:
    """The running servers: the first master, its replica, the Sentinels."""

    master: WatchedServer
    replica: WatchedServer
    sentinels: Sequence[WatchedServer]
    sentinel_password: str | None = field(default=None, repr=False)

    async def ask_sentinel(self, number: int, *command: str | int) -> object:
        """Return the reply of one Sentinel; error replies are raised."""
        path = str(self.sentinels[number].server.path)
        return await ask_server(RedisAddress(path=path, password=self.sentinel_password), "SENTINEL", *command)

    @property
    def url(self) -> str:
        """Its address as cgw takes it."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/{SERVICE}"

    async def find_master_port(self, sentinel: int = 0) -> int:
        """Return the port of the master according to one Sentinel."""
        reply = await self.ask_sentinel(sentinel, "GET-MASTER-ADDR-BY-NAME", SERVICE)
        assert isinstance(reply, list)
        return int(reply[1])


@asynccontextmanager
async def run_sentinel_group(
    folder: Path,
    sentinels: int = 1,
    *,
    down_after_ms: int = 500,
    server_options: Sequence[str] = (),
    sentinel_lines: str = "",
    sentinel_password: str | None = None,
) -> AsyncIterator[SentinelGroup]:
    """Run all in ``folder`` (its path must be short) until they know each other; all are killed at the end."""
    ports = find_free_ports(2 + sentinels)
    with ExitStack() as stack:
        servers = []
        for port, options in ((ports[0], ()), (ports[1], ("--replicaof", f"127.0.0.1 {ports[0]}"))):
            place = folder / f"s{port}"
            place.mkdir()
            more = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *server_options, *options)
            run = run_redis_server(place, "--port", str(port), "--bind", "127.0.0.1", *more)
            servers.append(WatchedServer(stack.enter_context(run), port))
        watchers = []
        for number, port in enumerate(ports[2:]):
            place = folder / f"w{port}"
            place.mkdir()
            configuration = place / "sentinel.conf"
            text = _CONFIGURATION.format(
                port=port,
                path=place / "redis.sock",
                folder=place,
                service=SERVICE,
                master_port=ports[0],
                # The first Sentinel notices a failure first and is elected by the others. If all stood for election at
                # once, the votes could be split, and the next election is 6 s later.
                quorum=1,
                down_after_ms=down_after_ms * (10 if number else 1),
                more=sentinel_lines,
            )
            configuration.write_text(text, "utf-8")
            run = run_server_process(place / "redis.sock", str(configuration), "--sentinel")
            watchers.append(WatchedServer(stack.enter_context(run), port))
        group = SentinelGroup(servers[0], servers[1], watchers, sentinel_password)
        await _wait_acquainted(group)
        yield group


async def _wait_acquainted(group: SentinelGroup) -> None:
    numbers = range(len(group.sentinels))
    for number in numbers:
        # By default they ask each other every 10 s, which would slow the tests down. Not shorter than these periods: a
        # replica that missed five PINGs is not promoted.
        periods = ("INFO-PERIOD", 300, "PING-PERIOD", 200, "PUBLISH-PERIOD", 200, "ASK-PERIOD", 100)
        await group.ask_sentinel(number, "DEBUG", *periods)

    async def know_all() -> bool:
        for number in numbers:
            state = await group.ask_sentinel(number, "MASTER", SERVICE)
            replicas = await group.ask_sentinel(number, "REPLICAS", SERVICE)
            assert isinstance(state, dict)
            assert isinstance(replicas, list)
            if int(state[b"num-other-sentinels"]) != len(group.sentinels) - 1:
                return False
            if [(one[b"flags"], one[b"master-link-status"]) for one in replicas] != [(b"slave", b"ok")]:
                return False
        return True

    await wait_until(know_all, seconds=20)
