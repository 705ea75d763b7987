"""What the rooms above may ask of the store, whether it is one server, a cluster, or a master that Sentinels watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from attrs import frozen

from cgw.redis.link import LuaScript, ScriptCall


@frozen
class RedisStatistics:
    """How the links are and what they did since they were opened, over all nodes.

    ``calls`` counts commands sent, ``timeouts`` callers turned away at their deadline, ``cancelled`` callers that
    stopped waiting, ``failed_fast`` calls refused because no link was up, ``waiting_calls`` commands in flight,
    ``kept_calls`` script calls kept for a server that is away, ``nodes`` the servers that there are links to,
    ``redirections`` the MOVED and ASK that were followed, ``retries`` the TRYAGAIN that were tried again.
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
    nodes: int = 1
    redirections: int = 0
    retries: int = 0


class Store(Protocol):
    """A Redis or Valkey that counts.

    Calls raise :exc:`~cgw.errors.StoreUnavailable` when there is no answer within the deadline or the store can't
    serve now, and :exc:`redis.exceptions.ResponseError` for other error replies (WRONGTYPE, CROSSSLOT, a script's
    own). They are cancel-safe: a cancelled call may still be executed.
    """

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over nodes, so that all keys of one call must share a hash tag."""
        ...

    async def run_script(
        self,
        script: LuaScript,
        keys: Sequence[bytes | str],
        args: Sequence[bytes | str | int],
        *,
        undo: ScriptCall | None = None,
    ) -> Any:
        """Run ``script`` on ``keys``, all of one slot; one deadline for all trips that this takes.

        ``undo`` runs after it if its answer does not come to the caller; it must do nothing if the script did not
        run, and must be safe to repeat.
        """
        ...

    def send_later(self, call: ScriptCall) -> None:
        """Run a script without waiting for its answer: now if possible, else when the store is back."""
        ...

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; on a cluster, at the node of its first key, or at any node if it has none."""
        ...

    async def check(self) -> None:
        """Return if the store (every master of it) answers PING now; raise ``StoreUnavailable`` otherwise."""
        ...

    def statistics(self) -> RedisStatistics:
        """A snapshot of the counters."""
        ...
