"""The commands and scripts of a store, with one deadline for whatever a call takes."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import trio
from redis._parsers import Encoder
from redis.commands import AsyncCoreCommands
from redis.exceptions import NoScriptError

from cgw.errors import StoreUnavailable
from cgw.redis.command_keys import NOT_ON_SHARED_LINKS, find_first_key
from cgw.redis.handshake import pack_command
from cgw.redis.link import Link, LinkCounters, LuaScript, ScriptCall
from cgw.redis.link_set import Connect, LinkSet
from cgw.redis.replies import ServerReadOnly
from cgw.redis.store import RedisStatistics

MAX_KEPT_CALLS = 1_000
"""How many script calls are kept for a server that is away; the oldest are dropped first."""

_FIRST_RESEND_SECONDS = 0.02
_LONGEST_RESEND_SECONDS = 0.5
_FIRST_RETRY_SECONDS = 0.002
_LONGEST_RETRY_SECONDS = 0.025
QUICK_REDIRECTIONS = 3
"""So many are followed at once. Nodes that send a call to and fro more often have not yet agreed."""


class Redis(AsyncCoreCommands):
    """A store, by way of shared links. Command methods come from redis-py; replies are as the server sent
    them (``bytes``, RESP3 types), without redis-py's conversions, whatever its annotations say.

    Every command raises :exc:`~cgw.errors.StoreUnavailable` when there is no answer within the deadline or the
    server can't serve now, and :exc:`redis.exceptions.ResponseError` for other error replies. The deadline is one
    for all trips that a call takes. Cancel-safe: a cancelled command may still be executed; its reply is dropped,
    and no other caller notices. Satisfies :class:`~cgw.redis.store.Store`.
    """

    _is_async_client: Literal[True] = True  # tells redis-py's annotations that commands are awaited
    _event_dispatcher: Any = None  # redis-py's protocol asks for it; its commands don't use it

    def __init__(self, links: int, timeout_seconds: float, connect_timeout_seconds: float) -> None:
        self._size = links
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._counters = LinkCounters()
        self._kept: deque[ScriptCall] = deque(maxlen=MAX_KEPT_CALLS)
        self._has_refused_calls = trio.Event()

    @property
    @abstractmethod
    def is_cluster(self) -> bool:
        """Whether keys are spread over nodes, so that all keys of one call must share a hash tag."""

    @abstractmethod
    def _route(self, key: Any) -> LinkSet:
        """The links to the server that has ``key``; of ``None``: any. Raises :exc:`StoreUnavailable`."""

    @abstractmethod
    def _route_command(self, command: tuple[Any, ...]) -> LinkSet:
        """The links to the server for a command in its words. Raises :exc:`StoreUnavailable`."""

    @abstractmethod
    def _list_link_sets(self) -> Sequence[LinkSet]:
        """All links, by server."""

    @abstractmethod
    async def check(self) -> None:
        """Return if the store (every master of it) answers PING now; raise ``StoreUnavailable`` otherwise."""

    @abstractmethod
    async def run(self) -> None:
        """Keep the store's links up, until cancelled."""

    # --- calls --------------------------------------------------------------------------------------------------------

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command, as redis-py's methods call it; ``options`` steer conversions that are not done here.

        On a cluster it goes to the node of its first key, or to any node if it has none. Raises :exc:`ValueError`
        for commands that can't share a connection (``SUBSCRIBE``, ``MULTI``, ``BLPOP``, …).
        """
        if isinstance(args[0], str) and " " in args[0]:
            args = (*args[0].split(), *args[1:])
        if str(args[0]).upper() in NOT_ON_SHARED_LINKS:
            raise ValueError(f"{args[0]} can't run on a link that is shared")
        now = trio.current_time()
        link = self._route_command(args).pick_link()
        data = pack_command(args)
        reply = await link.request(data, None, now)
        if isinstance(reply, Exception):
            return await self._follow(Trips(data, now + self._timeout_seconds, command=args), link, reply)
        return reply

    def get_encoder(self) -> Encoder:
        """The encoder that redis-py's command methods ask for."""
        return Encoder("utf-8", "strict", False)  # type: ignore[no-untyped-call]

    async def run_script(
        self,
        script: LuaScript,
        keys: Sequence[bytes | str],
        args: Sequence[bytes | str | int],
        *,
        undo: ScriptCall | None = None,
    ) -> Any:
        """Run ``script`` by its SHA-1, or by its text where the server doesn't know it yet.

        If the answer does not come to the caller (cancelled, deadline, link broken), ``undo`` is sent after it on
        the same link, or once a link is up again; it must do nothing when the script did not run, and must be safe
        to repeat. Raises as the commands do.
        """
        call = ScriptCall(script, keys, args)
        now = trio.current_time()
        link = self._route(keys[0] if keys else None).pick_link()
        data = call.pack_evalsha()
        reply = await link.request(data, undo, now)
        if isinstance(reply, Exception):
            return await self._follow(Trips(data, now + self._timeout_seconds, call=call, undo=undo), link, reply)
        return reply

    async def _follow(self, trips: Trips, link: Link, reply: Exception) -> Any:
        """Go on after an error reply, until the deadline of the call: where it was sent, by text, or once more.

        Raises the error if there is no way on.
        """
        with trio.move_on_at(trips.deadline):
            while True:
                link, is_asking = await self._find_way(trips, link, reply)
                trips.is_under_way = True
                next_reply = await link.request(trips.data, trips.undo, trio.current_time(), is_asking=is_asking)
                trips.is_under_way = False
                if not isinstance(next_reply, Exception):
                    return next_reply
                reply = next_reply
        self._counters.timeouts += 1
        self._counters.cancelled -= trips.is_under_way
        raise StoreUnavailable(
            f"Redis at {link.address.display_name} did not answer within {self._timeout_seconds * 1000:g} ms; "
            f"the last reply was: {reply}"
        ) from reply

    async def _find_way(self, trips: Trips, link: Link, error: Exception) -> tuple[Link, bool]:
        """The link to try next, and whether the call must ask there. Raises ``error`` if there is nothing to try."""
        if isinstance(error, NoScriptError) and trips.call is not None and not trips.has_text:
            trips.data, trips.has_text = trips.call.pack_eval(), True
            return link, trips.is_asking
        if isinstance(error, ServerReadOnly):
            # The address leads to a replica now, as after a failover: look it up anew.
            link.kill("leads to a read-only replica")
        raise error

    # --- calls that nobody waits for ----------------------------------------------------------------------------------

    def send_later(self, call: ScriptCall) -> None:
        """Run a script without waiting for its answer: now if a link is up, otherwise when one is again.

        Kept in memory only, at most :data:`MAX_KEPT_CALLS`; sent again while the server can't serve it; dropped if
        its answer is another error. The call must be safe to repeat.
        """
        try:
            link = self._route(call.keys[0] if call.keys else None).find_link()
        except StoreUnavailable:
            link = None
        if link is None:
            self._kept.append(call)
        else:
            link.post(call)

    def keep(self, call: ScriptCall) -> None:
        """Keep a call whose answer was lost with its link, until there is a link."""
        self._kept.append(call)

    def posted_failed(self, link: Link, call: ScriptCall, error: Exception) -> None:
        """A call that nobody waits for had an error for an answer: try it again if the server couldn't serve it."""
        if isinstance(error, ServerReadOnly):
            link.kill("leads to a read-only replica")
        if isinstance(error, StoreUnavailable):
            self._kept.append(call)
            self._has_refused_calls.set()

    def link_came_up(self) -> None:
        """Send what was kept for a server that was away."""
        kept, self._kept = self._kept, deque(maxlen=MAX_KEPT_CALLS)
        for call in kept:
            self.send_later(call)

    def link_was_lost(self) -> None:
        """Nothing to do: the link's supervisor replaces it."""

    async def _resend_refused(self) -> None:
        """Send again, with growing pauses, what was refused by a server that is there."""
        pause_seconds = _FIRST_RESEND_SECONDS
        while True:
            await self._has_refused_calls.wait()
            await trio.sleep(pause_seconds)
            self._has_refused_calls = trio.Event()
            self.link_came_up()
            # Whatever is refused again is so within a deadline, unless the link breaks.
            with trio.move_on_after(self._timeout_seconds) as quiet_scope:
                await self._has_refused_calls.wait()
            is_over = quiet_scope.cancelled_caught
            pause_seconds = _FIRST_RESEND_SECONDS if is_over else min(pause_seconds * 2, _LONGEST_RESEND_SECONDS)

    # --- links --------------------------------------------------------------------------------------------------------

    def _build_link_set(self, display_name: str, connect: Connect) -> LinkSet:
        return LinkSet(
            display_name,
            connect,
            self._size,
            self._timeout_seconds,
            self._connect_timeout_seconds,
            self._counters,
            self,
        )

    def statistics(self) -> RedisStatistics:
        """A snapshot of the counters."""
        link_sets = self._list_link_sets()
        up = [link for link_set in link_sets for link in link_set.list_up()]
        counters = self._counters
        return RedisStatistics(
            links=sum(len(link_set.links) for link_set in link_sets),
            links_up=len(up),
            reconnects=counters.reconnects,
            calls=counters.calls,
            timeouts=counters.timeouts,
            cancelled=counters.cancelled,
            failed_fast=counters.failed_fast,
            waiting_calls=sum(link.waiting_calls for link in up),
            kept_calls=len(self._kept),
            nodes=len(link_sets),
            redirections=counters.redirections,
            retries=counters.retries,
        )


class Trips:
    """A call that takes more than one trip: a script call, or a command in its words."""

    __slots__ = (
        "call",
        "command",
        "data",
        "deadline",
        "has_text",
        "is_asking",
        "is_under_way",
        "pause_seconds",
        "redirections",
        "undo",
    )

    def __init__(
        self,
        data: bytes,
        deadline: float,
        *,
        command: tuple[Any, ...] = (),
        call: ScriptCall | None = None,
        undo: ScriptCall | None = None,
    ) -> None:
        self.data = data
        self.deadline = deadline
        self.command = command
        self.call = call
        self.undo = undo
        self.has_text = False
        self.is_asking = False
        self.is_under_way = False
        self.redirections = 0
        self.pause_seconds = _FIRST_RETRY_SECONDS

    @property
    def key(self) -> Any:
        """The key by which it finds its node, or ``None``."""
        if self.call is None:
            return find_first_key(self.command)
        return self.call.keys[0] if self.call.keys else None

    async def pause(self) -> None:
        """Wait a moment, longer each time, with jitter."""
        await trio.sleep(self.pause_seconds * random.uniform(0.5, 1.0))
        self.pause_seconds = min(self.pause_seconds * 2, _LONGEST_RETRY_SECONDS)
