"""A link to one server, replaced by its supervisor when it goes down."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import trio

from cgw.errors import StoreUnavailable
from cgw.redis.handshake import RedisConnection
from cgw.redis.link import Link
from cgw.redis.link_owner import LinkCounters, LinkOwner

_FIRST_BACKOFF_SECONDS = 0.01
_LONGEST_BACKOFF_SECONDS = 0.25
"""Short, so that calls succeed within a second of a recovery; an attempt costs the server only one connection."""
_STABLE_SECONDS = 1.0
"""A link that was up for this long resets the backoff."""

_ATTEMPT_SECONDS = 0.5
_ATTEMPT_ROUND_TRIPS = 5

_logger = logging.getLogger("cgw.store")

Connect = Callable[[float], Awaitable[RedisConnection]]
"""Makes a connection within the seconds it is given, or raises ``StoreUnavailable``."""


class SupervisedLink:
    """A link to one server. ``run`` connects it when it is down; without ``run`` it is not replaced.

    ::

        connecting ──► up ──the link goes down──► backing off ──► connecting ...
            └─────────────the attempt failed───────────▲
    """

    def __init__(
        self,
        display_name: str,
        connect: Connect,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        counters: LinkCounters,
        owner: LinkOwner,
    ) -> None:
        self.display_name = display_name
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        # A server that recovers while an attempt hangs must not wait for the rest of a long timeout. Connecting takes
        # five round trips with TLS, and round trips longer than the deadline of a command are of no use.
        self._attempt_seconds = min(
            connect_timeout_seconds, max(_ATTEMPT_SECONDS, _ATTEMPT_ROUND_TRIPS * timeout_seconds)
        )
        self._counters = counters
        self._owner = owner
        self._link: Link | None = None
        self._came_up = trio.Event()
        self._scope = trio.CancelScope()

    def find_link(self) -> Link | None:
        """Return the link if it is up."""
        link = self._link
        return link if link is not None and link.error is None else None

    def get_link(self) -> Link:
        """Return the link. Raises :exc:`StoreUnavailable` if it is down."""
        link = self._link
        if link is None or link.error is not None:
            self._counters.failed_fast += 1
            raise StoreUnavailable(f"there is no link to Redis at {self.display_name} now")
        return link

    async def wait_link(self) -> Link:
        """Return the link as soon as it is up. Cancel-safe."""
        # A loop: the link may be down again before this task runs.
        while (link := self.find_link()) is None:
            await self._came_up.wait()
        return link

    def put_up(self, connection: RedisConnection) -> Link:
        """Make ``connection`` the link that calls use from now on."""
        link = self._link = Link(connection, self._timeout_seconds, self._counters, self._owner)
        self._came_up.set()
        self._came_up = trio.Event()  # events can't be cleared: the next outage waits for a new one
        # Last, because the owner sends what it has kept over the link that is in place now.
        self._owner.handle_link_up(link)
        return link

    async def run(self) -> None:
        """Connect the link if it is not up yet, and replace it when it goes down, until cancelled or closed."""
        with self._scope:
            backoff_seconds = 0.0
            link = self._link
            if link is None:
                link, backoff_seconds = await self._reconnect(backoff_seconds)
            while True:
                up_since = trio.current_time()
                await self._serve(link)
                _logger.warning("lost the link to Redis at %s: it %s", link.address.display_name, link.error)
                self._owner.handle_link_lost()
                # A server that accepts connections and drops them at once must not reset the backoff each time.
                if trio.current_time() - up_since >= _STABLE_SECONDS:
                    backoff_seconds = 0.0
                link, backoff_seconds = await self._reconnect(max(backoff_seconds, _FIRST_BACKOFF_SECONDS))
                self._counters.reconnects += 1
                _logger.info("linked to Redis at %s again", link.address.display_name)

    def close(self) -> None:
        """End the link and ``run``. Waiting callers get :exc:`StoreUnavailable`."""
        self._scope.cancel()

    async def _serve(self, link: Link) -> None:
        try:
            await link.run()
        except Exception:
            # The boundary of a link: a bug in it must cost the link, not the process, and is reported here.
            _logger.exception("the link to Redis at %s crashed; replacing it", link.address.display_name)

    async def _reconnect(self, backoff_seconds: float) -> tuple[Link, float]:
        """Connect, however long it takes; return the link, and the backoff before the next attempt after it."""
        logged = None
        while True:
            # Jitter, so that the gateways that share a server don't reconnect in the same moment.
            await trio.sleep(backoff_seconds * random.uniform(0.5, 1.0))
            backoff_seconds = min(max(backoff_seconds * 2, _FIRST_BACKOFF_SECONDS), _LONGEST_BACKOFF_SECONDS)
            try:
                connection = await self._connect(self._attempt_seconds)
            except StoreUnavailable as error:
                # Four attempts a second: log a reason once, not for each of them.
                if str(error) != logged:
                    logged = str(error)
                    _logger.warning("%s; trying again", logged)
            else:
                return self.put_up(connection), backoff_seconds
