"""A store reached over shared links: its calls, with one deadline for all round trips that a call takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import trio
from redis.exceptions import NoScriptError

from cgw.errors import StoreUnavailable
from cgw.redis.command_keys import NOT_ON_SHARED_LINKS
from cgw.redis.commands import StoreCommands
from cgw.redis.handshake import pack_command
from cgw.redis.link import Link
from cgw.redis.link_owner import LinkCounters
from cgw.redis.lua import LuaScript, ScriptCall
from cgw.redis.posted_call import KeptCall, PostedCall
from cgw.redis.replies import ServerReadOnly
from cgw.redis.retried_call import RetriedCall
from cgw.redis.store import RedisStatistics
from cgw.redis.supervised_link import Connect, SupervisedLink
from cgw.telemetry.metrics import MetricReading

MAX_KEPT_CALLS = 1_000
"""The number of posted calls that are kept for an unavailable server; the oldest are dropped first."""

SCANNED_AT_ONCE = 500
"""Keys that a server looks at for one page of a scan, while it serves no other call: some 0.1 ms."""

_FIRST_RESEND_SECONDS = 0.02
_LONGEST_RESEND_SECONDS = 0.5


class LinkedStore(ABC):
    """Calls of a store, over one link for each server. Satisfies :class:`~cgw.redis.store.Store`.

    A call takes one round trip in the usual case, which is the fast path of every request of the gateway: it must
    not await or allocate more than it does. An error reply leads to :meth:`_retry`, which may send the call again.
    Where a method only chooses a link, it returns the link's coroutine: one of its own would cost the caller a frame
    each time that it waits.
    """

    def __init__(self, timeout_seconds: float, connect_timeout_seconds: float) -> None:
        self.commands = StoreCommands(self)
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._counters = LinkCounters()
        # With maxlen, appending to a full deque drops the oldest call.
        self._kept: deque[ScriptCall] = deque(maxlen=MAX_KEPT_CALLS)
        self._has_refused_calls = trio.Event()
        self._packed_loads: Sequence[bytes] = ()

    @property
    @abstractmethod
    def is_cluster(self) -> bool:
        """True when keys are spread over nodes, so that all keys of one call must share a hash tag."""

    @abstractmethod
    async def check(self) -> None:
        """Return if the store (every master of it) answers PING now; raise ``StoreUnavailable`` otherwise."""

    @abstractmethod
    async def run(self) -> None:
        """Keep the store's links up, until cancelled."""

    @abstractmethod
    def handle_link_lost(self) -> None:
        """Handle that a link went down; its supervisor replaces it."""

    @abstractmethod
    def _route(self, key: Any) -> SupervisedLink:
        """Return the link to the server that has ``key``, or to any server for ``None``.

        Raises :exc:`StoreUnavailable` when there is no such server now.
        """

    @abstractmethod
    def _route_command(self, command: tuple[Any, ...]) -> SupervisedLink:
        """Return the link to the server for a command given as words. Raises :exc:`StoreUnavailable`."""

    @abstractmethod
    def _list_links(self) -> Sequence[SupervisedLink]:
        """Return the links to all servers."""

    # --- calls --------------------------------------------------------------------------------------------------------

    async def run_script(
        self,
        script: LuaScript,
        keys: Sequence[bytes | str],
        args: Sequence[bytes | str | int],
        *,
        undo: ScriptCall | None = None,
    ) -> Any:
        """Run ``script`` by its SHA-1, or by its text where the server has not cached it.

        ``undo`` is sent on the same link behind the call that it undoes, or, if the link is down, once there is one
        again. See :meth:`cgw.redis.store.Store.run_script`.
        """
        call = ScriptCall(script, keys, args)
        build_undo = None if undo is None else lambda: undo
        # All keys share a slot, so the first one is enough to find the node.
        return await self.run_packed(call.pack_evalsha(), keys[0] if keys else None, lambda: call, build_undo)

    def run_packed(
        self,
        data: bytes,
        key: bytes | str | None,
        build_call: Callable[[], ScriptCall],
        build_undo: Callable[[], ScriptCall] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Run a script by its packed EVALSHA. See :meth:`cgw.redis.store.Store.run_packed`."""
        return self._route(key).get_link().request(data, build_undo, build_call)

    async def retry_script(
        self,
        link: Link,
        error: Exception,
        sent_at: float,
        data: bytes,
        build_call: Callable[[], ScriptCall],
        undo: Callable[[], ScriptCall] | None,
    ) -> Any:
        """Send a script again after an error reply. See :meth:`cgw.redis.link_owner.LinkOwner.retry_script`."""
        retried = RetriedCall(data, sent_at + self._timeout_seconds, script_call=build_call(), undo=undo)
        return await self._retry(retried, link, error)

    async def execute_command(self, *args: Any) -> Any:
        """Run one command, given as words (``"CLIENT INFO"`` counts as two, as in redis-py).

        See :meth:`cgw.redis.store.Store.execute_command`.
        """
        # redis-py's methods write subcommands so; the server wants separate words.
        if isinstance(args[0], str) and " " in args[0]:
            args = (*args[0].split(), *args[1:])
        if str(args[0]).upper() in NOT_ON_SHARED_LINKS:
            raise ValueError(f"{args[0]} needs a connection of its own: it can't run on a link that is shared")
        deadline = trio.current_time() + self._timeout_seconds
        link = self._route_command(args).get_link()
        data = pack_command(args)
        reply = await link.request(data)
        if isinstance(reply, Exception):
            return await self._retry(RetriedCall(data, deadline, command=args), link, reply)
        return reply

    async def scan(self, pattern: str) -> AsyncGenerator[Sequence[bytes], None]:
        """Yield the keys that match ``pattern``, page by page. See :meth:`cgw.redis.store.Store.scan`."""
        # A snapshot: nodes may come and go meanwhile.
        for server in tuple(self._list_links()):
            cursor: bytes | str = "0"
            while True:
                data = pack_command(("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED_AT_ONCE))
                # Not by execute_command: SCAN has no key, so it would go to any one of the nodes, each time.
                reply = await server.get_link().request(data)
                if isinstance(reply, Exception):
                    raise reply
                cursor, keys = reply
                yield keys
                if cursor == b"0":
                    break

    async def _retry(self, call: RetriedCall, link: Link, error: Exception) -> Any:
        """Send a call again after an error reply, until it succeeds or its deadline passes.

        Raises the error if the call cannot succeed by being sent again.
        """
        # Each request has a watchdog deadline of its own, counted from when it is sent. This scope is the caller's
        # deadline, counted from the first request, and always the earlier one.
        with trio.move_on_at(call.deadline):
            while True:
                link = await self._find_next_link(call, link, error)
                call.is_waiting = True
                reply = await link.request(call.data, call.undo, is_asking=call.is_asking)
                call.is_waiting = False
                if not isinstance(reply, Exception):
                    return reply
                error = reply
        self._counters.timeouts += 1
        # The scope has cancelled the request, which counted that as a caller's cancellation.
        self._counters.cancelled -= call.is_waiting
        raise StoreUnavailable(
            f"Redis at {link.address.display_name} did not answer within {self._timeout_seconds * 1000:g} ms; "
            f"the last reply was: {error}"
        ) from error

    async def _find_next_link(self, call: RetriedCall, link: Link, error: Exception) -> Link:
        """Prepare ``call`` to be sent again, and return the link to use. Raises ``error`` if that would not help."""
        if isinstance(error, NoScriptError) and call.script_call is not None and not call.has_text:
            call.data, call.has_text = call.script_call.pack_eval(), True
            return link  # is_asking stays set: the refused EVALSHA has used up its ASKING, so another one is needed
        self._replace_read_only(link, error)
        raise error

    @staticmethod
    def _replace_read_only(link: Link, error: Exception) -> None:
        # After a failover the same address may lead to the new master, but only a new connection gets there.
        if isinstance(error, ServerReadOnly):
            link.kill("leads to a read-only replica")

    # --- posted calls: no caller waits for their replies --------------------------------------------------------------
    #
    #     send_later ──link up──► Link.post ──reply──► done
    #         │                      │ └──"cannot serve now"──► kept ──_resend_refused──► send_later
    #         └──link down──► kept ◄─┘ link lost
    #                          └──a link comes up──► send_later
    #
    # A call that is refused must be sent again by a timer, because no link comes up that would do it. Calls posted by
    # post_script are not kept here: their owner handles each outcome.

    def send_later(self, call: ScriptCall) -> None:
        """Run a script without waiting for its reply. At most :data:`MAX_KEPT_CALLS` are kept in memory.

        See :meth:`cgw.redis.store.Store.send_later`.
        """
        try:
            link = self._route(call.keys[0] if call.keys else None).find_link()
        except StoreUnavailable:
            link = None
        if link is None:
            self._kept.append(call)
        else:
            link.post(KeptCall(call, self.keep_call))

    def post_script(self, posted: PostedCall, key: bytes | str, *, may_wait: bool = False) -> None:
        """Send a call without waiting for its reply. See :meth:`cgw.redis.store.Store.post_script`."""
        try:
            link = self._route(key).get_link()
        except StoreUnavailable as error:
            posted.handle_reply(error)
            return
        if may_wait:
            link.postpone(posted)
        else:
            link.post(posted)

    def send_postponed(self) -> None:
        """Send the calls that were to wait for others."""
        for one in self._list_links():
            link = one.find_link()
            if link is not None:
                link.send_postponed()

    def keep_call(self, call: ScriptCall) -> None:
        """Keep a call that could not be run, until there is a link, or until the server serves again."""
        self._kept.append(call)

    def handle_posted_error(self, link: Link, posted: PostedCall, error: Exception) -> None:
        """Hand the error reply to its posted call, and arrange a retry if the store keeps that call."""
        self._replace_read_only(link, error)
        posted.handle_reply(error)
        if self._kept and isinstance(error, StoreUnavailable):
            self._has_refused_calls.set()

    def preload(self, scripts: Sequence[LuaScript]) -> None:
        """Load scripts over each link, now and whenever one comes up. See :meth:`cgw.redis.store.Store.preload`."""
        self._packed_loads = [script.pack_load() for script in scripts]
        for one in self._list_links():
            link = one.find_link()
            if link is not None:
                link.load_scripts(self._packed_loads)

    def handle_link_up(self, link: Link) -> None:
        """Load the scripts into the server, and send the calls that were kept."""
        # Before any other call of the link, so that none of them finds a script missing.
        link.load_scripts(self._packed_loads)
        self._send_kept()

    def _send_kept(self) -> None:
        # Swapped first: a call whose server is still unavailable is kept again, and must not be met in this loop.
        kept, self._kept = self._kept, deque(maxlen=MAX_KEPT_CALLS)
        for call in kept:
            self.send_later(call)

    async def _resend_refused(self) -> None:
        """Retry the posted calls that a reachable server refused, with growing pauses."""
        pause_seconds = _FIRST_RESEND_SECONDS
        while True:
            await self._has_refused_calls.wait()
            await trio.sleep(pause_seconds)
            # Reset before sending, so that a refusal of the calls sent now is seen below.
            self._has_refused_calls = trio.Event()
            self._send_kept()
            # A call that is refused again is so within the deadline of a call, unless the link goes down.
            with trio.move_on_after(self._timeout_seconds) as quiet_scope:
                await self._has_refused_calls.wait()
            is_over = quiet_scope.cancelled_caught
            pause_seconds = _FIRST_RESEND_SECONDS if is_over else min(pause_seconds * 2, _LONGEST_RESEND_SECONDS)

    # --- links --------------------------------------------------------------------------------------------------------

    def _build_link(self, display_name: str, connect: Connect) -> SupervisedLink:
        return SupervisedLink(
            display_name, connect, self._timeout_seconds, self._connect_timeout_seconds, self._counters, self
        )

    def statistics(self) -> RedisStatistics:
        """Return a snapshot of the counters."""
        links = self._list_links()
        up = [link for one in links if (link := one.find_link()) is not None]
        counters = self._counters
        return RedisStatistics(
            links=len(links),
            links_up=len(up),
            reconnects=counters.reconnects,
            calls=counters.calls,
            timeouts=counters.timeouts,
            cancelled=counters.cancelled,
            failed_fast=counters.failed_fast,
            waiting_calls=sum(link.waiting_calls for link in up),
            kept_calls=len(self._kept),
            redirections=counters.redirections,
            retries=counters.retries,
        )

    def read_latency(self) -> Iterator[MetricReading]:
        """Return the latency of commands. See :meth:`cgw.redis.store.Store.read_latency`."""
        return self._counters.latency.read()
