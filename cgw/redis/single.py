"""A store that is one server: at a fixed address, or wherever the Sentinels say that the master is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from cgw.redis.handshake import RedisConnection
from cgw.redis.link_set import Connect, LinkSet
from cgw.redis.shared import Redis


class RedisServer(Redis):
    """One server. ``connect`` finds it anew for each connection."""

    def __init__(
        self, display_name: str, connect: Connect, links: int, timeout_seconds: float, connect_timeout_seconds: float
    ) -> None:
        super().__init__(links, timeout_seconds, connect_timeout_seconds)
        self._link_set = self._build_link_set(display_name, connect)

    @property
    def is_cluster(self) -> bool:
        """``False``."""
        return False

    def put_up(self, connections: Sequence[RedisConnection]) -> None:
        """Begin with these connections."""
        for place, connection in enumerate(connections):
            self._link_set.put_up(place, connection)

    async def run(self) -> None:
        """Keep the links up, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link_set.run)
            nursery.start_soon(self._resend_refused)

    async def check(self) -> None:
        """Return if the server answers PING now; raise ``StoreUnavailable`` otherwise."""
        await self.execute_command("PING")

    def _route(self, key: Any) -> LinkSet:
        return self._link_set

    def _route_command(self, command: tuple[Any, ...]) -> LinkSet:
        return self._link_set

    def _list_link_sets(self) -> Sequence[LinkSet]:
        return (self._link_set,)
