"""A store that could not be reached at start: it becomes the real one as soon as that is there."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

import trio

from cgw.errors import StoreUnavailable
from cgw.redis.commands import StoreCommands
from cgw.redis.linked_store import MAX_KEPT_CALLS, LinkedStore
from cgw.redis.lua import LuaScript, ScriptCall
from cgw.redis.posted_call import PostedCall
from cgw.redis.store import RedisStatistics
from cgw.telemetry.metrics import MetricReading

_FIRST_BACKOFF_SECONDS = 0.01
_LONGEST_BACKOFF_SECONDS = 0.25
"""As for links: a store that comes up is in use within a second."""

_logger = logging.getLogger("cgw.store")


class AwaitedStore:
    """Until ``connect`` succeeds, calls fail at once; then it passes them on. ``run`` connects.

    Satisfies :class:`~cgw.redis.store.Store`. Only the first connection tells whether there is one server or a cluster
    behind an address, so there is no store to begin with that would only lack its links.
    """

    def __init__(self, connect: Callable[[], Awaitable[LinkedStore]], failure: StoreUnavailable) -> None:
        self.commands = StoreCommands(self)
        self._connect = connect
        self._failure = str(failure)
        self._store: LinkedStore | None = None
        self._scripts: Sequence[LuaScript] = ()
        self._kept: deque[ScriptCall] = deque(maxlen=MAX_KEPT_CALLS)
        self._failed_fast = 0

    @property
    def is_cluster(self) -> bool:
        """True when keys are spread over nodes; also before that is known, because such calls suit both."""
        return self._store is None or self._store.is_cluster

    async def run(self) -> None:
        """Connect, however long it takes, and keep the links up, until cancelled."""
        store = await self._connect_patiently()
        store.preload(self._scripts)
        # From here to its run() there is no checkpoint: the first connection cannot be lost in between.
        self._store = store
        for call in self._kept:
            store.send_later(call)
        self._kept.clear()
        await store.run()

    async def _connect_patiently(self) -> LinkedStore:
        _logger.warning("%s; trying again", self._failure)
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            # Jitter, so that the gateways that wait for a server don't connect in the same moment.
            await trio.sleep(backoff_seconds * random.uniform(0.5, 1.0))
            backoff_seconds = min(backoff_seconds * 2, _LONGEST_BACKOFF_SECONDS)
            try:
                store = await self._connect()
            except StoreUnavailable as error:
                # Also a refusal for good: once the service runs, whoever mends it need not start it again.
                if str(error) != self._failure:
                    self._failure = str(error)
                    _logger.warning("%s; trying again", self._failure)
            else:
                _logger.info("linked to Redis for the first time")
                return store

    def _get_store(self) -> LinkedStore:
        if self._store is None:
            self._failed_fast += 1
            raise StoreUnavailable(self._failure)
        return self._store

    # --- calls; those that only return a coroutine cost no task a frame of its own ------------------------------------

    def run_script(
        self,
        script: LuaScript,
        keys: Sequence[bytes | str],
        args: Sequence[bytes | str | int],
        *,
        undo: ScriptCall | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """See :meth:`cgw.redis.store.Store.run_script`."""
        return self._get_store().run_script(script, keys, args, undo=undo)

    def run_packed(
        self,
        data: bytes,
        key: bytes | str | None,
        build_call: Callable[[], ScriptCall],
        build_undo: Callable[[], ScriptCall] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """See :meth:`cgw.redis.store.Store.run_packed`."""
        return self._get_store().run_packed(data, key, build_call, build_undo)

    def execute_command(self, *args: Any) -> Coroutine[Any, Any, Any]:
        """See :meth:`cgw.redis.store.Store.execute_command`."""
        return self._get_store().execute_command(*args)

    def scan(self, pattern: str) -> AsyncGenerator[Sequence[bytes], None]:
        """See :meth:`cgw.redis.store.Store.scan`."""
        return self._get_store().scan(pattern)

    async def check(self) -> None:
        """See :meth:`cgw.redis.store.Store.check`."""
        await self._get_store().check()

    def send_later(self, call: ScriptCall) -> None:
        """See :meth:`cgw.redis.store.Store.send_later`."""
        if self._store is None:
            self._kept.append(call)
        else:
            self._store.send_later(call)

    def post_script(self, posted: PostedCall, key: bytes | str, *, may_wait: bool = False) -> None:
        """See :meth:`cgw.redis.store.Store.post_script`."""
        try:
            store = self._get_store()
        except StoreUnavailable as error:
            posted.handle_reply(error)
        else:
            store.post_script(posted, key, may_wait=may_wait)

    def send_postponed(self) -> None:
        """See :meth:`cgw.redis.store.Store.send_postponed`."""
        if self._store is not None:
            self._store.send_postponed()

    def preload(self, scripts: Sequence[LuaScript]) -> None:
        """See :meth:`cgw.redis.store.Store.preload`."""
        self._scripts = scripts
        if self._store is not None:
            self._store.preload(scripts)

    def statistics(self) -> RedisStatistics:
        """Return a snapshot of the counters: before it is there, one link that is down."""
        if self._store is not None:
            return self._store.statistics()
        return RedisStatistics(
            links=1,
            links_up=0,
            reconnects=0,
            calls=0,
            timeouts=0,
            cancelled=0,
            failed_fast=self._failed_fast,
            waiting_calls=0,
            kept_calls=len(self._kept),
            redirections=0,
            retries=0,
        )

    def read_latency(self) -> Iterable[MetricReading]:
        """Return the latency of commands; none before the store is there."""
        return () if self._store is None else self._store.read_latency()
