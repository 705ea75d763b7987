"""A store that is a cluster: each call goes to the node that serves its slot, and follows slots that move."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import trio
from redis.crc import key_slot

from cgw.errors import StoreRefused, StoreUnavailable
from cgw.redis.address import ClusterAddress
from cgw.redis.command_keys import find_first_key
from cgw.redis.handshake import (
    ASK_ERRORS,
    RedisConnection,
    ask,
    connect,
    describe_refusal,
    pack_command,
)
from cgw.redis.link import Link
from cgw.redis.linked_store import LinkedStore
from cgw.redis.posted_call import PostedCall
from cgw.redis.replies import ClusterDown, Redirected, TryAgain, join_failures
from cgw.redis.retried_call import RetriedCall
from cgw.redis.slots import COMMAND, SLOTS, SlotRange, get_host, read_slot_ranges
from cgw.redis.supervised_link import SupervisedLink

QUICK_REDIRECTIONS = 3
"""This many redirections of a call are followed without a pause. If there are more, the nodes contradict each other,
and need time to agree."""

_REFRESH_SECONDS = 30.0
_REFRESH_SECONDS_IN_TROUBLE = 0.25
_REFRESH_PAUSE_SECONDS = 0.05
"""The least time between two refreshes of the slot table, however many callers meet a change."""
_RETIRE_SECONDS = 5.0
"""How long a node without slots keeps its link: calls may be in flight, and slots may be moving to it."""

_PACKED_COMMAND = pack_command(COMMAND)
_PACKED_PING = pack_command(("PING",))

_logger = logging.getLogger("cgw.store")

HostPort = tuple[str, int]


class ClusterStore(LinkedStore):
    """The masters of a cluster, each with a link.

    ``_slots`` maps each slot to its node's link. It is replaced as a whole by a refresh (periodic, and soon after
    anything that hints at a change), and corrected slot by slot by MOVED replies. A node's life::

        named by the table, or by a redirection ──► has a link ◄──► retired: serves no slot ──5 s──► link closed
    """

    def __init__(self, address: ClusterAddress, timeout_seconds: float, connect_timeout_seconds: float) -> None:
        super().__init__(timeout_seconds, connect_timeout_seconds)
        self._seeds = address.nodes
        # No slot has a node until load_slots() has been called.
        self._slots: list[SupervisedLink | None] = [None] * SLOTS
        self._nodes: dict[HostPort, SupervisedLink] = {}
        self._retired_at: dict[HostPort, float] = {}
        self._is_stale = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._next_node = 0

    @property
    def is_cluster(self) -> bool:
        """Always ``True``."""
        return True

    # --- life ---------------------------------------------------------------------------------------------------------

    async def load_slots(self, connection: RedisConnection | None = None) -> None:
        """Read the slot table, from ``connection`` (which is closed) or from the first seed that answers.

        Raises :exc:`StoreUnavailable` when there is no table to be had. Cancel-safe.
        """
        errors: list[StoreUnavailable] = []
        # ``connection`` is the one that showed that its server belongs to a cluster. It does not become a link: the
        # links have the addresses that the table names, which may differ from the one in the settings.
        for seed in (connection.address,) if connection is not None else self._seeds:
            try:
                asked = connection or await connect(seed, self._connect_timeout_seconds, self._timeout_seconds)
                self._use_table(await self._request_table(asked))
            except StoreUnavailable as error:
                errors.append(error)
            else:
                return
        raise join_failures("", errors)

    async def _request_table(self, connection: RedisConnection) -> list[SlotRange]:
        name = connection.address.display_name
        try:
            with trio.fail_after(self._connect_timeout_seconds):
                reply = await ask(connection, *COMMAND)
        except ASK_ERRORS as error:
            raise StoreUnavailable(f"Redis at {name} gave no answer to CLUSTER SLOTS") from error
        finally:
            # This connection was for the table only; links open their own.
            await trio.aclose_forcefully(connection.stream)
        if isinstance(reply, Exception):
            # ERR: it belongs to no cluster. Otherwise it cannot tell now (LOADING, CLUSTERDOWN, ...).
            kind = StoreUnavailable if isinstance(reply, StoreUnavailable) else StoreRefused
            raise kind(f"Redis at {name} tells no slots of a cluster: it {describe_refusal(reply)}") from reply
        ranges = read_slot_ranges(reply, connection.address)
        if not ranges:
            raise StoreUnavailable(f"the cluster that Redis at {name} belongs to has no slots yet")
        return ranges

    async def run(self) -> None:
        """Keep the links and the slot table up to date, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for node in self._nodes.values():
                    nursery.start_soon(node.run)
                nursery.start_soon(self._keep_table)
                nursery.start_soon(self._resend_refused)
        finally:
            self._nursery = None  # a nursery that has ended starts no more tasks

    async def wait_up(self) -> None:
        """Wait until each node's link is up, at most the timeout for connecting.

        Raises :exc:`StoreUnavailable` if none is up then: a part of a cluster is better than nothing. Cancel-safe.
        """
        nodes = list(self._nodes.values())
        with trio.move_on_after(self._connect_timeout_seconds):
            for node in nodes:  # in sequence: they connect at the same time, and the timeout is for all together
                await node.wait_link()
        if not any(node.find_link() for node in nodes):
            names = ", ".join(node.display_name for node in nodes)
            raise StoreUnavailable(f"none of the cluster's nodes can be reached: {names}")

    async def check(self) -> None:
        """Return if every master answers PING now and all slots have one; raise ``StoreUnavailable`` otherwise."""
        if None in self._slots:
            raise StoreUnavailable("the Redis cluster has slots without a master now")
        # A set, because a node serves many slots. get_link() raises for a node whose link is down.
        links = [node.get_link() for node in set(self._slots) if node is not None]
        errors: list[Exception] = []

        async def ping(link: Link) -> None:
            # Not by execute_command: PING has no key, so it would go to any one of the nodes.
            try:
                reply = await link.request(_PACKED_PING)
            except StoreUnavailable as error:
                errors.append(error)
            else:
                if isinstance(reply, Exception):
                    errors.append(reply)

        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(ping, link)
        if errors:
            raise StoreUnavailable(str(errors[0])) from errors[0]

    # --- routing ------------------------------------------------------------------------------------------------------

    def _route(self, key: Any) -> SupervisedLink:
        if key is None:
            return self._pick_any()
        slot = key_slot(key if isinstance(key, bytes) else str(key).encode())
        node = self._slots[slot]
        if node is None:
            # A failover may be over by now: refresh the table at once.
            self._is_stale.set()
            self._counters.failed_fast += 1
            raise StoreUnavailable(f"slot {slot} of the Redis cluster has no master now")
        return node

    def _route_command(self, command: tuple[Any, ...]) -> SupervisedLink:
        return self._route(find_first_key(command))

    def _list_links(self) -> Sequence[SupervisedLink]:
        return tuple(self._nodes.values())

    def _pick_any(self) -> SupervisedLink:
        # Without the retired nodes, which may have left the cluster.
        nodes = [node for place, node in self._nodes.items() if place not in self._retired_at and node.find_link()]
        if not nodes:
            raise StoreUnavailable("there is no link to any node of the Redis cluster now")
        self._next_node += 1
        return nodes[self._next_node % len(nodes)]

    # --- redirections and retries -------------------------------------------------------------------------------------

    async def _find_next_link(self, call: RetriedCall, link: Link, error: Exception) -> Link:
        if isinstance(error, Redirected):
            call.redirections += 1
            self._counters.redirections += 1
            if call.redirections > QUICK_REDIRECTIONS:
                await call.pause()
            call.is_asking = error.is_ask
            # The link to a node that is new here is still connecting; the call's deadline limits the wait.
            return await self._follow_redirection(error, link).wait_link()
        if isinstance(error, TryAgain):
            # Some keys of the call have moved already and some have not: only the end of the move helps. Start again
            # at the slot's node of the table, which redirects to the other one when that has all keys.
            self._counters.retries += 1
            await call.pause()
            call.is_asking = False
            return self._route(call.key).get_link()
        if isinstance(error, ClusterDown):
            # Not retried: a failover takes longer than the deadline of a call. The refresh finds the new master.
            self._is_stale.set()
        return await super()._find_next_link(call, link, error)

    def _follow_redirection(self, error: Redirected, link: Link) -> SupervisedLink:
        """Return the link to where the node behind ``link`` has redirected a call; a new node gets its link here."""
        place = (error.host or get_host(link.address), error.port)
        node = self._get_node(place)
        if error.is_ask:
            # A slot that is still moving belongs to the old node. The new one may serve no slot yet: do not retire it.
            if place in self._retired_at:
                self._retired_at[place] = trio.current_time()
        else:
            self._retired_at.pop(place, None)
            self._slots[error.slot] = node
            self._is_stale.set()  # more slots may have moved
        return node

    def handle_posted_error(self, link: Link, posted: PostedCall, error: Exception) -> None:
        """Follow a redirection of a posted call, if there is a link to where it leads; otherwise as any store."""
        if isinstance(error, Redirected):
            self._counters.redirections += 1
            target = self._follow_redirection(error, link).find_link()
            if target is not None:
                target.post(posted, is_asking=error.is_ask)
                return
        # Redirected is a StoreUnavailable: without a link to its target, the call has failed for now.
        super().handle_posted_error(link, posted, error)

    def handle_link_lost(self) -> None:
        """Refresh the slot table: the node may have left the cluster."""
        self._is_stale.set()

    # --- the slot table -----------------------------------------------------------------------------------------------

    def _get_node(self, place: HostPort) -> SupervisedLink:
        node = self._nodes.get(place)
        if node is None:
            # Login and TLS are the same for all nodes of a cluster, and only the configured address has them.
            address = self._seeds[0].at(*place)

            async def connect_node(seconds: float) -> RedisConnection:
                return await connect(address, seconds, self._timeout_seconds)

            node = self._nodes[place] = self._build_link(address.display_name, connect_node)
            if self._nursery is not None:  # before run(): it starts the nodes that are there then
                self._nursery.start_soon(node.run)
        return node

    def _use_table(self, ranges: Sequence[SlotRange]) -> None:
        """Replace the slot table. New nodes get links; nodes without slots are retired, and closed after a while."""
        slots: list[SupervisedLink | None] = [None] * SLOTS
        places = set()
        for entry in ranges:
            place = (entry.host, entry.port)
            places.add(place)
            node = self._get_node(place)
            slots[entry.first : entry.last + 1] = [node] * (entry.last + 1 - entry.first)
        # Replaced in one assignment: no caller routes by a table that is half old and half new.
        self._slots = slots
        now = trio.current_time()
        for place in list(self._nodes):
            if place in places:
                self._retired_at.pop(place, None)
            # Not before the calls in flight there have ended: none takes longer than the timeout.
            elif now - self._retired_at.setdefault(place, now) > max(_RETIRE_SECONDS, self._timeout_seconds):
                self._nodes.pop(place).close()
                del self._retired_at[place]

    async def _keep_table(self) -> None:
        """Refresh the table periodically, and soon after a hint at a change; one refresh at a time."""
        while True:
            # Jitter, so that the gateways that share a cluster don't ask in the same moment.
            with trio.move_on_after(self._choose_pause() * random.uniform(0.75, 1.25)):
                await self._is_stale.wait()
            # Before the refresh: a hint that comes during it may be newer than the reply, and needs another one.
            self._is_stale = trio.Event()
            await self._refresh()
            await trio.sleep(_REFRESH_PAUSE_SECONDS)

    def _choose_pause(self) -> float:
        is_whole = None not in self._slots and all(node.find_link() for node in self._nodes.values())
        if not is_whole:
            return _REFRESH_SECONDS_IN_TROUBLE
        return _RETIRE_SECONDS if self._retired_at else _REFRESH_SECONDS

    async def _refresh(self) -> None:
        # In random order, so that a node with an outdated view is not believed every time.
        links = [link for node in self._nodes.values() if (link := node.find_link()) is not None]
        random.shuffle(links)
        for link in links:
            try:
                reply = await link.request(_PACKED_COMMAND)
            except StoreUnavailable:
                continue
            # An error reply has no ranges: then the next node is asked.
            ranges = read_slot_ranges(reply, link.address)
            if ranges:
                # The first table that is not empty counts; MOVED replies correct it where it is outdated.
                self._use_table(ranges)
                return
        # No node answered over its link: all of them may have moved. Start again from the configured addresses.
        try:
            await self.load_slots()
        except StoreUnavailable as error:
            _logger.debug("the slot table of the Redis cluster can't be read: %s", error)
