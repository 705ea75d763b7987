"""A store that is one server: at a fixed address, or the master that the Sentinels name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from cgw.redis.handshake import RedisConnection
from cgw.redis.linked_store import LinkedStore
from cgw.redis.supervised_link import Connect, SupervisedLink


class ServerStore(LinkedStore):
    """One server, with ``first`` as its first connection. ``connect`` looks the server up for each later one."""

    def __init__(
        self,
        display_name: str,
        connect: Connect,
        first: RedisConnection,
        timeout_seconds: float,
        connect_timeout_seconds: float,
    ) -> None:
        super().__init__(timeout_seconds, connect_timeout_seconds)
        self._link = self._build_link(display_name, connect)
        self._link.put_up(first)

    @property
    def is_cluster(self) -> bool:
        """Always ``False``."""
        return False

    async def run(self) -> None:
        """Keep the link up, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._resend_refused)

    async def check(self) -> None:
        """Return if the server answers PING now; raise ``StoreUnavailable`` otherwise."""
        await self.execute_command("PING")

    def handle_link_lost(self) -> None:
        """Do nothing."""

    def _route(self, key: Any) -> SupervisedLink:
        return self._link

    def _route_command(self, command: tuple[Any, ...]) -> SupervisedLink:
        return self._link

    def _list_links(self) -> Sequence[SupervisedLink]:
        return (self._link,)
