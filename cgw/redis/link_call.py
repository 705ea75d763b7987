"""The entries in a link's queue of calls that have no reply yet."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any

import outcome
import trio

from cgw.redis.command_latency import ReplyTimes
from cgw.redis.lua import ScriptCall
from cgw.redis.posted_call import PostedCall

if TYPE_CHECKING:
    from cgw.redis.link import Link


class LinkCall(outcome.Outcome[Any]):
    """An entry in the queue of calls that have no reply yet.

    ``task`` is the waiting caller, and ``undo`` builds what undoes its call; both are ``None`` once the caller is
    cancelled or timed out. ``posted`` is a posted call, which has neither. ``times`` count the time to its reply.

    It is also the outcome that wakes its caller with ``reply``: an :class:`outcome.Value` per reply, which guards
    against being used twice, would cost as much as all else that the reader does for it.
    """

    __slots__ = ("_link", "posted", "reply", "sent_at", "task", "times", "undo")

    def __init__(
        self,
        link: Link,
        task: trio.lowlevel.Task | None,
        sent_at: float,
        times: ReplyTimes,
        undo: Callable[[], ScriptCall] | None = None,
        posted: PostedCall | None = None,
    ) -> None:
        self._link = link
        self.task = task
        self.sent_at = sent_at
        self.times = times
        self.undo = undo
        self.posted = posted
        self.reply: Any = None

    def abort(self, _: object) -> trio.lowlevel.Abort:
        """Stop waiting, because the caller is cancelled."""
        self._link.cancel(self)
        return trio.lowlevel.Abort.SUCCEEDED

    def unwrap(self) -> Any:
        """Return the reply: Trio calls this in the caller's task."""
        return self.reply

    # Required of an outcome, for use without Trio.

    def send(self, gen: Generator[Any, Any, object]) -> Any:
        """Send the reply into a generator."""
        return gen.send(self.reply)

    async def asend(self, agen: AsyncGenerator[Any, Any]) -> Any:
        """Send the reply into an asynchronous generator."""
        return await agen.asend(self.reply)
