"""Redis from Trio: one or two connections per process, shared by all tasks.

:func:`open_redis` owns the links: each has a supervisor that replaces it when it breaks, so that a caller either
has its answer within the deadline or knows at once that there is none. The commands themselves are redis-py's.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import trio
from attrs import frozen
from redis._parsers import Encoder
from redis.commands import AsyncCoreCommands
from redis.exceptions import NoScriptError

from cgw.errors import ConfigError, StoreUnavailable
from cgw.transport.redis_connect import Connection, RedisAddress, ServerReadOnly, connect, pack_command, parse_redis_url
from cgw.transport.redis_lifetime import run_services
from cgw.transport.redis_link import Link, LinkCounters, Script, ScriptCall

__all__ = ["Redis", "RedisStatistics", "Script", "ScriptCall", "open_redis", "parse_redis_url"]

MAX_KEPT_CALLS = 1_000
"""How many script calls are kept for a server that is away; the oldest are dropped first."""

_FIRST_BACKOFF_SECONDS = 0.01
_LONGEST_BACKOFF_SECONDS = 1.0
_STABLE_SECONDS = 1.0
"""A link that lived this long starts the backoff afresh."""

_logger = logging.getLogger("cgw.store")

# Commands that change the state of the connection, or answer in more or less than one reply: on a shared link they
# would reach into other callers' commands.
_NOT_ON_SHARED_LINKS = frozenset(
    {
        "AUTH",
        "BLMOVE",
        "BLMPOP",
        "BLPOP",
        "BRPOP",
        "BRPOPLPUSH",
        "BZMPOP",
        "BZPOPMAX",
        "BZPOPMIN",
        "DISCARD",
        "EXEC",
        "HELLO",
        "MONITOR",
        "MULTI",
        "PSUBSCRIBE",
        "PSYNC",
        "PUNSUBSCRIBE",
        "QUIT",
        "READONLY",
        "READWRITE",
        "RESET",
        "SELECT",
        "SSUBSCRIBE",
        "SUBSCRIBE",
        "SUNSUBSCRIBE",
        "SYNC",
        "UNSUBSCRIBE",
        "UNWATCH",
        "WAIT",
        "WAITAOF",
        "WATCH",
    }
)


@frozen
class RedisStatistics:
    """How the links are and what they did since they were opened.

    ``calls`` counts commands sent, ``timeouts`` callers turned away at their deadline, ``cancelled`` callers that
    stopped waiting, ``failed_fast`` calls refused because no link was up, ``waiting_calls`` commands in flight,
    ``kept_calls`` script calls kept for a server that is away.
    """

    links: int
    links_up: int
    reconnects: int
    calls: int
    timeouts: int
    cancelled: int
    failed_fast: int
    waiting_calls: int
    kept_calls: int


class Redis(AsyncCoreCommands):
    """A Redis server, by way of shared links. Command methods come from redis-py; replies are as the server sent
    them (``bytes``, RESP3 types), without redis-py's conversions, whatever its annotations say.

    Every command raises :exc:`~cgw.errors.StoreUnavailable` when there is no answer within the deadline or the
    server can't serve now, and :exc:`redis.exceptions.ResponseError` for other error replies. Cancel-safe: a
    cancelled command may still be executed; its reply is dropped, and no other caller notices.
    """

    _is_async_client: Literal[True] = True  # tells redis-py's annotations that commands are awaited
    _event_dispatcher: Any = None  # redis-py's protocol asks for it; its commands don't use it

    def __init__(
        self, address: RedisAddress, links: int, timeout_seconds: float, connect_timeout_seconds: float
    ) -> None:
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._links: list[Link | None] = [None] * links
        self._turn = 0
        self._counters = LinkCounters()
        self._reconnects = 0
        self._failed_fast = 0
        self._kept: deque[ScriptCall] = deque(maxlen=MAX_KEPT_CALLS)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command, as redis-py's methods call it; ``options`` steer conversions that are not done here.

        Raises :exc:`ValueError` for commands that can't share a connection (``SUBSCRIBE``, ``MULTI``, ``BLPOP``, …).
        """
        if isinstance(args[0], str) and " " in args[0]:
            args = (*args[0].split(), *args[1:])
        if str(args[0]).upper() in _NOT_ON_SHARED_LINKS:
            raise ValueError(f"{args[0]} can't run on a link that is shared")
        return _raise_error(await self._request(pack_command(args), None))

    def get_encoder(self) -> Encoder:
        """The encoder that redis-py's command methods ask for."""
        return Encoder("utf-8", "strict", False)  # type: ignore[no-untyped-call]

    async def run_script(
        self,
        script: Script,
        keys: Sequence[bytes | str],
        args: Sequence[bytes | str | int],
        *,
        undo: ScriptCall | None = None,
    ) -> Any:
        """Run ``script`` by its SHA-1, or by its text where the server doesn't know it yet.

        If the answer does not come to the caller (cancelled, deadline, link broken), ``undo`` is sent after it on
        the same link, or once a link is up again; it must do nothing when the script did not run. Raises as the
        commands do.
        """
        call = ScriptCall(script, keys, args)
        reply = await self._request(call.pack_evalsha(), undo)
        if isinstance(reply, NoScriptError):
            reply = await self._request(call.pack_eval(), undo)
        return _raise_error(reply)

    def send_later(self, call: ScriptCall) -> None:
        """Run a script without waiting for its answer: now if a link is up, otherwise when one is again.

        Kept in memory only, at most :data:`MAX_KEPT_CALLS`; the call must be safe to repeat.
        """
        link = self._find_link()
        if link is None:
            self._kept.append(call)
        else:
            link.post(call)

    def statistics(self) -> RedisStatistics:
        """A snapshot of the counters."""
        up = [link for link in self._links if link is not None and link.error is None]
        return RedisStatistics(
            links=len(self._links),
            links_up=len(up),
            reconnects=self._reconnects,
            calls=self._counters.calls,
            timeouts=self._counters.timeouts,
            cancelled=self._counters.cancelled,
            failed_fast=self._failed_fast,
            waiting_calls=sum(link.waiting_calls for link in up),
            kept_calls=len(self._kept),
        )

    async def _request(self, data: bytes, undo: ScriptCall | None) -> Any:
        link = self._pick_link()
        reply = await link.request(data, undo)
        if isinstance(reply, ServerReadOnly):
            # The address leads to a replica now, as after a failover: look it up anew.
            link.kill("leads to a read-only replica")
        return reply

    def _find_link(self) -> Link | None:
        for _ in self._links:
            self._turn = (self._turn + 1) % len(self._links)
            link = self._links[self._turn]
            if link is not None and link.error is None:
                return link
        return None

    def _pick_link(self) -> Link:
        link = self._find_link()
        if link is None:
            self._failed_fast += 1
            raise StoreUnavailable(f"there is no link to Redis at {self._address.display_name} now")
        return link

    async def _connect(self) -> Connection:
        return await connect(self._address, self._connect_timeout_seconds, self._timeout_seconds)

    def _put_up(self, slot: int, connection: Connection) -> Link:
        """Offer a new link to callers, and give it what was kept for it."""
        link = Link(connection, self._address.display_name, self._timeout_seconds, self._counters, self._kept.append)
        self._links[slot] = link
        while self._kept:
            link.post(self._kept.popleft())
        return link

    async def _supervise(self, slot: int, link: Link) -> None:
        """Keep one link up for as long as this runs."""
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            up_since = trio.current_time()
            await self._serve(link)
            _logger.warning("lost a link to Redis at %s: it %s", self._address.display_name, link.error)
            if trio.current_time() - up_since >= _STABLE_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            connection, backoff_seconds = await self._reconnect(backoff_seconds)
            link = self._put_up(slot, connection)
            self._reconnects += 1
            _logger.info("linked to Redis at %s again", self._address.display_name)

    async def _serve(self, link: Link) -> None:
        try:
            await link.run()
        except Exception:
            # A bug in the link must cost a link, not the process: it is reported here, and the link replaced.
            _logger.exception("a link to Redis crashed")

    async def _reconnect(self, backoff_seconds: float) -> tuple[Connection, float]:
        """Connect, however long it takes; returns the connection and how long to wait the next time."""
        told = None
        while True:
            # Jitter, so that many gateways don't come back all at once.
            await trio.sleep(backoff_seconds * random.uniform(0.5, 1.0))
            backoff_seconds = min(backoff_seconds * 2, _LONGEST_BACKOFF_SECONDS)
            try:
                return await self._connect(), backoff_seconds
            except StoreUnavailable as error:
                if str(error) != told:
                    told = str(error)
                    _logger.warning("%s; trying again", told)


def _raise_error(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


@asynccontextmanager
async def open_redis(
    url: str, *, links: int = 1, timeout_seconds: float = 0.1, connect_timeout_seconds: float = 1.0
) -> AsyncIterator[Redis]:
    """Connect ``links`` links to the server at ``url`` and keep them up for the length of the block.

    ``url`` is as in :func:`~cgw.transport.redis_connect.parse_redis_url`. ``timeout_seconds`` is the deadline of
    each command, ``connect_timeout_seconds`` that of connecting, authenticating and waiting for a server that is
    loading. Raises :exc:`~cgw.errors.ConfigError` for a wrong address and :exc:`~cgw.errors.StoreUnavailable`, with
    one sentence naming the server, when it can't be reached or refuses us. When the block is cancelled from
    outside, the links stay up until it has ended, for its shielded cleanup.
    """
    try:
        address = parse_redis_url(url)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    redis = Redis(address, links, timeout_seconds, connect_timeout_seconds)
    connections: list[Connection] = []
    try:
        while len(connections) < links:
            connections.append(await redis._connect())
    except BaseException:
        for connection in connections:
            await trio.aclose_forcefully(connection.stream)
        raise

    up = [redis._put_up(slot, connection) for slot, connection in enumerate(connections)]

    async def serve_links() -> None:
        async with trio.open_nursery() as nursery:
            for slot, link in enumerate(up):
                nursery.start_soon(redis._supervise, slot, link)

    async with run_services(serve_links):
        yield redis
