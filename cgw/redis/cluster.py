"""A store that is a cluster: each call goes to the node that has its slot, wherever that moves."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import trio
from redis.crc import key_slot

from cgw.errors import StoreUnavailable
from cgw.redis.address import ClusterAddress
from cgw.redis.command_keys import find_first_key
from cgw.redis.handshake import RedisConnection, ask, connect, describe_refusal, pack_command
from cgw.redis.link import Link, ScriptCall
from cgw.redis.link_set import LinkSet
from cgw.redis.replies import ClusterDown, Redirected, TryAgain
from cgw.redis.shared import QUICK_REDIRECTIONS, Redis, Trips
from cgw.redis.slots import COMMAND, SLOTS, SlotRange, get_host, read_slot_ranges

_REFRESH_SECONDS = 30.0
_REFRESH_SECONDS_IN_TROUBLE = 0.25
_REFRESH_PAUSE_SECONDS = 0.05
"""Least time between two looks at the cluster, however many callers meet a change."""
_RETIRE_SECONDS = 5.0
"""How long a node without slots keeps its links: calls may be under way, and slots on their way to it."""

_PACKED_COMMAND = pack_command(COMMAND)

_logger = logging.getLogger("cgw.store")

Place = tuple[str, int]


class RedisCluster(Redis):
    """The masters of a cluster, each with links of its own."""

    def __init__(
        self, address: ClusterAddress, links: int, timeout_seconds: float, connect_timeout_seconds: float
    ) -> None:
        super().__init__(links, timeout_seconds, connect_timeout_seconds)
        self._seeds = address.nodes
        self._slots: list[LinkSet | None] = [None] * SLOTS
        self._nodes: dict[Place, LinkSet] = {}
        self._retired_at: dict[Place, float] = {}
        self._is_stale = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._turn = 0

    @property
    def is_cluster(self) -> bool:
        """``True``."""
        return True

    # --- start and end ------------------------------------------------------------------------------------------------

    async def look_up(self, connection: RedisConnection | None = None) -> None:
        """Learn the table of slots, from ``connection`` (which is closed) or from the first seed that answers.

        Raises :exc:`StoreUnavailable` when no seed gives one. Cancel-safe.
        """
        reasons = []
        for seed in (connection.address,) if connection is not None else self._seeds:
            try:
                asked = connection or await connect(seed, self._connect_timeout_seconds, self._timeout_seconds)
                self._use_table(await self._ask_table(asked))
            except StoreUnavailable as error:
                reasons.append(str(error))
            else:
                return
        raise StoreUnavailable("; ".join(reasons))

    async def _ask_table(self, connection: RedisConnection) -> list[SlotRange]:
        name = connection.address.display_name
        try:
            with trio.fail_after(self._connect_timeout_seconds):
                reply = await ask(connection, *COMMAND)
        except (trio.TooSlowError, trio.BrokenResourceError) as error:
            raise StoreUnavailable(f"Redis at {name} did not tell the slots of its cluster") from error
        finally:
            await trio.aclose_forcefully(connection.stream)
        if isinstance(reply, Exception):
            raise StoreUnavailable(
                f"Redis at {name} tells no slots of a cluster: it {describe_refusal(reply)}"
            ) from reply
        ranges = read_slot_ranges(reply, connection.address)
        if not ranges:
            raise StoreUnavailable(f"the cluster that Redis at {name} belongs to has no slots yet")
        return ranges

    async def run(self) -> None:
        """Keep the links and the table of slots up to date, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for node in self._nodes.values():
                    nursery.start_soon(node.run)
                nursery.start_soon(self._keep_table)
                nursery.start_soon(self._resend_refused)
        finally:
            self._nursery = None

    async def wait_up(self) -> None:
        """Wait until each node has its links, at most the time-out for connecting.

        Raises :exc:`StoreUnavailable` if none has one then: a part of a cluster is better than nothing. Cancel-safe.
        """
        nodes = list(self._nodes.values())
        with trio.move_on_after(self._connect_timeout_seconds):
            for node in nodes:
                await node.wait_whole()
        if not any(node.find_link() for node in nodes):
            names = ", ".join(node.display_name for node in nodes)
            raise StoreUnavailable(f"none of the cluster's nodes can be reached: {names}")

    async def check(self) -> None:
        """Return if every master answers PING now and all slots have one; raise ``StoreUnavailable`` otherwise."""
        if None in self._slots:
            raise StoreUnavailable("the Redis cluster has slots without a master now")
        links = [node.pick_link() for node in set(self._slots) if node is not None]
        errors: list[Exception] = []

        async def ping(link: Link) -> None:
            try:
                reply = await link.request(pack_command(("PING",)), None, trio.current_time())
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

    # --- routes -------------------------------------------------------------------------------------------------------

    def _route(self, key: Any) -> LinkSet:
        if key is None:
            return self._pick_any()
        slot = key_slot(key if isinstance(key, bytes) else str(key).encode())
        node = self._slots[slot]
        if node is None:
            self._is_stale.set()
            self._counters.failed_fast += 1
            raise StoreUnavailable(f"slot {slot} of the Redis cluster has no master now")
        return node

    def _route_command(self, command: tuple[Any, ...]) -> LinkSet:
        return self._route(find_first_key(command))

    def _list_link_sets(self) -> Sequence[LinkSet]:
        return tuple(self._nodes.values())

    def _pick_any(self) -> LinkSet:
        nodes = [node for place, node in self._nodes.items() if place not in self._retired_at and node.find_link()]
        if not nodes:
            raise StoreUnavailable("there is no link to any node of the Redis cluster now")
        self._turn += 1
        return nodes[self._turn % len(nodes)]

    async def _find_way(self, trips: Trips, link: Link, error: Exception) -> tuple[Link, bool]:
        if isinstance(error, Redirected):
            trips.redirections += 1
            self._counters.redirections += 1
            if trips.redirections > QUICK_REDIRECTIONS:
                await trips.pause()
            trips.is_asking = error.is_ask
            return await self._take_redirection(error, link).wait_link(), trips.is_asking
        if isinstance(error, TryAgain):
            self._counters.retries += 1
            await trips.pause()
            # The keys of a call share a slot, so that any of them leads the way.
            trips.is_asking = False
            return self._route(trips.key).pick_link(), False
        if isinstance(error, ClusterDown):
            self._is_stale.set()
        return await super()._find_way(trips, link, error)

    def _take_redirection(self, error: Redirected, link: Link) -> LinkSet:
        """The links to where a node has sent us; links to a node that is new are begun."""
        place = (error.host or get_host(link.address), error.port)
        node = self._get_node(place)
        if error.is_ask:
            if place in self._retired_at:  # not yet a master of slots: keep it a while longer
                self._retired_at[place] = trio.current_time()
        else:
            self._retired_at.pop(place, None)
            self._slots[error.slot] = node
            self._is_stale.set()  # more slots may have moved
        return node

    def posted_failed(self, link: Link, call: ScriptCall, error: Exception) -> None:
        """As for any store; a call that nobody waits for follows its slot, too."""
        if isinstance(error, Redirected):
            self._counters.redirections += 1
            target = self._take_redirection(error, link).find_link()
            if target is not None:
                target.post(call, is_asking=error.is_ask)
                return
        super().posted_failed(link, call, error)

    def link_was_lost(self) -> None:
        """The node may be no more: look at the table again."""
        self._is_stale.set()

    # --- the table of slots -------------------------------------------------------------------------------------------

    def _get_node(self, place: Place) -> LinkSet:
        node = self._nodes.get(place)
        if node is None:
            address = self._seeds[0].at(*place)

            async def connect_node(seconds: float) -> RedisConnection:
                return await connect(address, seconds, self._timeout_seconds)

            node = self._nodes[place] = self._build_link_set(address.display_name, connect_node)
            if self._nursery is not None:
                self._nursery.start_soon(node.run)
        return node

    def _use_table(self, ranges: Sequence[SlotRange]) -> None:
        """Take up a table: new nodes get links, those without slots lose them after a while."""
        slots: list[LinkSet | None] = [None] * SLOTS
        places = set()
        for entry in ranges:
            place = (entry.host, entry.port)
            places.add(place)
            node = self._get_node(place)
            slots[entry.first : entry.last + 1] = [node] * (entry.last + 1 - entry.first)
        self._slots = slots
        now = trio.current_time()
        for place in list(self._nodes):
            if place in places:
                self._retired_at.pop(place, None)
            elif now - self._retired_at.setdefault(place, now) > max(_RETIRE_SECONDS, self._timeout_seconds):
                self._nodes.pop(place).close()
                del self._retired_at[place]

    async def _keep_table(self) -> None:
        """Look at the table now and then, and soon after anything that hints at a change: one look at a time."""
        while True:
            with trio.move_on_after(self._choose_pause() * random.uniform(0.75, 1.25)):
                await self._is_stale.wait()
            self._is_stale = trio.Event()
            await self._refresh()
            await trio.sleep(_REFRESH_PAUSE_SECONDS)

    def _choose_pause(self) -> float:
        is_whole = None not in self._slots and all(node.find_link() for node in self._nodes.values())
        if not is_whole:
            return _REFRESH_SECONDS_IN_TROUBLE
        return _RETIRE_SECONDS if self._retired_at else _REFRESH_SECONDS

    async def _refresh(self) -> None:
        """Ask a node at random, so that one with an old view does not count for ever; then the others."""
        links = [link for node in self._nodes.values() if (link := node.find_link()) is not None]
        random.shuffle(links)
        for link in links:
            try:
                reply = await link.request(_PACKED_COMMAND, None, trio.current_time())
            except StoreUnavailable:
                continue
            ranges = read_slot_ranges(reply, link.address)
            if ranges:
                self._use_table(ranges)
                return
        try:
            await self.look_up()
        except StoreUnavailable as error:
            _logger.debug("the table of slots can't be read: %s", error)
