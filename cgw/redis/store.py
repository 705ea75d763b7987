"""The interface of the store, which is one server, a cluster, or a master behind Sentinels."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from attrs import frozen

from cgw.redis.commands import StoreCommands
from cgw.redis.lua import LuaScript, ScriptCall
from cgw.redis.posted_call import PostedCall
from cgw.telemetry.metrics import MetricReading


@frozen
class RedisStatistics:
    """The state of the links and the counters since the store was opened, over all nodes.

    ``links`` is the number of servers that have a link (one each), ``links_up`` those whose link works now.
    ``calls`` counts commands sent, ``timeouts`` callers whose deadline passed, ``cancelled`` callers that were
    cancelled while they waited, ``failed_fast`` calls refused because no link was up. ``waiting_calls`` are
    commands in flight, ``kept_calls`` script calls that wait for an unavailable server. ``redirections`` counts
    MOVED and ASK replies that were followed, ``retries`` TRYAGAIN replies after which the call was retried.
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
    redirections: int
    retries: int


class Store(Protocol):
    """A Redis or Valkey that counts limits.

    Calls raise :exc:`~cgw.errors.StoreUnavailable` when there is no reply within the deadline or the store cannot
    serve now, and :exc:`redis.exceptions.ResponseError` for other error replies (WRONGTYPE, CROSSSLOT, a script's
    own). They are cancel-safe: the command of a cancelled call may still be executed.
    """

    @property
    def is_cluster(self) -> bool:
        """True when keys are spread over nodes, so that all keys of one call must share a hash tag."""
        ...

    @property
    def commands(self) -> StoreCommands:
        """redis-py's command methods, for control work."""
        ...

    async def run_script(
        self,
        script: LuaScript,
        keys: Sequence[bytes | str],
        args: Sequence[bytes | str | int],
        *,
        undo: ScriptCall | None = None,
    ) -> Any:
        """Run ``script`` on ``keys``, all in one cluster slot; one deadline covers all round trips of the call.

        ``undo`` is run after it when the reply does not reach the caller (cancelled, deadline, link broken). It must
        do nothing if the script did not run, and must be safe to repeat.
        """
        ...

    def run_packed(
        self,
        data: bytes,
        key: bytes | str | None,
        build_call: Callable[[], ScriptCall],
        build_undo: Callable[[], ScriptCall] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Run a script as :meth:`run_script` does, by its packed ``EVALSHA`` about ``key``.

        ``build_call`` builds the same call in its general form, and ``build_undo`` what undoes it: both are needed
        rarely. To be awaited at once; it raises as a call does, before or while it is awaited.
        """
        ...

    def send_later(self, call: ScriptCall) -> None:
        """Run a script without waiting for its reply: now if possible, otherwise when the store is available again.

        The call must be safe to repeat. It is kept in memory only, and dropped when the reply is an error other than
        that the store cannot serve now.
        """
        ...

    def post_script(self, posted: PostedCall, key: bytes | str, *, may_wait: bool = False) -> None:
        """Send ``posted``, which is about ``key``, without waiting; it gets the reply, or an exception.

        With ``may_wait``, it leaves with another call to the same server, but at most
        :data:`~cgw.redis.link.POSTPONE_SECONDS` later, and is packed when it leaves. If there is no link, ``posted``
        has the exception before this returns.
        """
        ...

    def send_postponed(self) -> None:
        """Send now what :meth:`post_script` was allowed to let wait."""
        ...

    def preload(self, scripts: Sequence[LuaScript]) -> None:
        """Load ``scripts`` into each server now, and again whenever a link to it comes up; nothing waits for it.

        A restart or failover loses a server's scripts. Calls that are sent as text then arrive later than calls that
        were sent after them, which matters for posted ones.
        """
        ...

    async def execute_command(self, *args: Any) -> Any:
        """Run one command; on a cluster, on the node of its first key, or on any node if it has no key.

        Raises :exc:`ValueError` for commands that need a connection of their own (``SUBSCRIBE``, ``MULTI``,
        ``BLPOP``, ...).
        """
        ...

    def scan(self, pattern: str) -> AsyncGenerator[Sequence[bytes], None]:
        """Yield the keys that match the glob ``pattern``, page by page, from every master; for operators' commands.

        Each page takes the server well under a millisecond, whatever the number of keys; a whole scan of a large store
        takes long, so bound it. A key may come twice, and one that is written or moved to another node meanwhile may be
        left out. Raises :exc:`~cgw.errors.StoreUnavailable` rather than leave out a master.
        """
        ...

    async def check(self) -> None:
        """Return if the store (every master of it) answers PING now; raise ``StoreUnavailable`` otherwise."""
        ...

    def statistics(self) -> RedisStatistics:
        """Return a snapshot of the counters."""
        ...

    def read_latency(self) -> Iterable[MetricReading]:
        """Return the latency of commands as histograms, by command and error (the reference's ``redis_latency``)."""
        ...
