"""The links to one server: each is replaced by its supervisor when it breaks."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from cgw.errors import StoreUnavailable
from cgw.redis.handshake import RedisConnection
from cgw.redis.link import Link, LinkCounters, PostedCalls

_FIRST_BACKOFF_SECONDS = 0.01
_LONGEST_BACKOFF_SECONDS = 0.25
"""Short, so that all is back within a second of a recovery; one connection attempt is all that it costs a server."""
_STABLE_SECONDS = 1.0
"""A link that lived this long starts the backoff afresh."""

_ATTEMPT_SECONDS = 0.5
_ATTEMPT_ROUND_TRIPS = 5

_logger = logging.getLogger("cgw.store")

Connect = Callable[[float], Awaitable[RedisConnection]]
"""Makes a greeted connection within the seconds it is given, or raises ``StoreUnavailable``."""


class LinkOwner(PostedCalls, Protocol):
    """Who wants to know how the links fare."""

    def link_came_up(self) -> None:
        """There is a link again."""
        ...

    def link_was_lost(self) -> None:
        """A link broke, or the server ended it."""
        ...


class LinkSet:
    """``size`` links to one server. ``run`` keeps them up; without it they are not replaced."""

    def __init__(
        self,
        display_name: str,
        connect: Connect,
        size: int,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        counters: LinkCounters,
        owner: LinkOwner,
    ) -> None:
        self.display_name = display_name
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        # What comes back while an attempt hangs must not wait for the whole of a long time-out. A connection takes
        # five round trips with TLS, each of which is useless if longer than the deadline of a command.
        self._attempt_seconds = min(
            connect_timeout_seconds, max(_ATTEMPT_SECONDS, _ATTEMPT_ROUND_TRIPS * timeout_seconds)
        )
        self._counters = counters
        self._owner = owner
        self._links: list[Link | None] = [None] * size
        self._turn = 0
        self._came_up = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def links(self) -> list[Link | None]:
        """The links, by place; ``None`` where there was none yet."""
        return self._links

    def list_up(self) -> list[Link]:
        """The links that work."""
        return [link for link in self._links if link is not None and link.error is None]

    def find_link(self) -> Link | None:
        """A link that works, in turn."""
        for _ in self._links:
            self._turn = (self._turn + 1) % len(self._links)
            link = self._links[self._turn]
            if link is not None and link.error is None:
                return link
        return None

    def pick_link(self) -> Link:
        """A link that works. Raises :exc:`StoreUnavailable` if there is none."""
        link = self.find_link()
        if link is None:
            self._counters.failed_fast += 1
            raise StoreUnavailable(f"there is no link to Redis at {self.display_name} now")
        return link

    async def wait_link(self) -> Link:
        """A link that works, as soon as there is one. Cancel-safe."""
        while (link := self.find_link()) is None:
            await self._came_up.wait()
        return link

    async def wait_whole(self) -> None:
        """Return when all links work. Cancel-safe."""
        while len(self.list_up()) < len(self._links):
            await self._came_up.wait()

    def put_up(self, place: int, connection: RedisConnection) -> Link:
        """Offer a new link to callers."""
        link = Link(connection, self._timeout_seconds, self._counters, self._owner)
        self._links[place] = link
        self._came_up.set()
        self._came_up = trio.Event()
        self._owner.link_came_up()
        return link

    async def run(self) -> None:
        """Keep the links up until cancelled or closed; those that are not there yet are made."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for place, link in enumerate(self._links):
                    nursery.start_soon(self._supervise, place, link)

    def close(self) -> None:
        """End all links and ``run``. Callers that wait get :exc:`StoreUnavailable`."""
        self._scope.cancel()

    async def _supervise(self, place: int, link: Link | None) -> None:
        """Keep one link up for as long as this runs."""
        backoff_seconds = 0.0
        if link is None:
            link, backoff_seconds = await self._make_link(place, backoff_seconds)
        while True:
            up_since = trio.current_time()
            await self._serve(link)
            _logger.warning("lost a link to Redis at %s: it %s", link.address.display_name, link.error)
            self._owner.link_was_lost()
            if trio.current_time() - up_since >= _STABLE_SECONDS:
                backoff_seconds = 0.0
            link, backoff_seconds = await self._make_link(place, max(backoff_seconds, _FIRST_BACKOFF_SECONDS))
            self._counters.reconnects += 1
            _logger.info("linked to Redis at %s again", link.address.display_name)

    async def _serve(self, link: Link) -> None:
        try:
            await link.run()
        except Exception:
            # A bug in the link must cost a link, not the process: it is reported here, and the link replaced.
            _logger.exception("a link to Redis crashed")

    async def _make_link(self, place: int, backoff_seconds: float) -> tuple[Link, float]:
        """Connect, however long it takes; returns the link and how long to wait the next time."""
        told = None
        while True:
            # Jitter, so that many gateways don't come back all at once.
            await trio.sleep(backoff_seconds * random.uniform(0.5, 1.0))
            backoff_seconds = min(max(backoff_seconds * 2, _FIRST_BACKOFF_SECONDS), _LONGEST_BACKOFF_SECONDS)
            try:
                connection = await self._connect(self._attempt_seconds)
            except StoreUnavailable as error:
                if str(error) != told:
                    told = str(error)
                    _logger.warning("%s; trying again", told)
            else:
                return self.put_up(place, connection), backoff_seconds
