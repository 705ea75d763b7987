"""The store's side of its links: the counters that they share, and the calls that they hand back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field

from cgw.redis.command_latency import CommandLatency
from cgw.redis.lua import ScriptCall
from cgw.redis.posted_call import PostedCall

if TYPE_CHECKING:
    from cgw.redis.link import Link


@define
class LinkCounters:
    """Counters that all links of one store share, see :class:`~cgw.redis.store.RedisStatistics`."""

    calls: int = 0
    timeouts: int = 0
    cancelled: int = 0
    failed_fast: int = 0
    reconnects: int = 0
    redirections: int = 0
    retries: int = 0
    latency: CommandLatency = field(factory=CommandLatency)


class LinkOwner(Protocol):
    """The store that a link belongs to. Its plain methods are called from the link's tasks and must not block."""

    def keep_call(self, call: ScriptCall) -> None:
        """Keep an undo, to be sent when there is a link that can run it."""
        ...

    async def retry_script(
        self,
        link: Link,
        error: Exception,
        sent_at: float,
        data: bytes,
        build_call: Callable[[], ScriptCall],
        undo: Callable[[], ScriptCall] | None,
    ) -> Any:
        """Return the reply to a script that was sent at ``sent_at`` and got ``error``: send it again if that helps.

        Unlike the other methods it waits, in the caller's task. Raises ``error`` if it would not help, and
        :exc:`~cgw.errors.StoreUnavailable` at the deadline. Cancel-safe.
        """
        ...

    def handle_posted_error(self, link: Link, posted: PostedCall, error: Exception) -> None:
        """Handle the error reply to a posted call: send it elsewhere, or hand it the error."""
        ...

    def handle_link_up(self, link: Link) -> None:
        """Handle that a link was connected."""
        ...

    def handle_link_lost(self) -> None:
        """Handle that a link broke, or was closed by the server."""
        ...
