"""Script calls that are sent without a task that waits for the reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from attrs import frozen

from cgw.errors import StoreUnavailable
from cgw.redis.lua import ScriptCall


class PostedCall(Protocol):
    """A call whose reply goes to a method. Its methods are called from the link's tasks, and must not block or raise.

    The call must be safe to repeat: when its reply is lost, whether it was executed is unknown. One that ``gathers``
    lets further ones join it until it leaves; so it waits for a while, others for the next call at most.
    """

    gathers: ClassVar[bool]

    def pack(self) -> bytes:
        """Return the packed command: called when it is about to be sent, which may be a while after it was posted."""
        ...

    def build_call(self) -> ScriptCall | None:
        """Return a script's call in its general form, to be sent with the text; ``None`` for another command."""
        ...

    def handle_reply(self, reply: Any) -> None:
        """Handle the outcome, of which there is exactly one: the reply, or an exception.

        :exc:`~cgw.errors.StoreUnavailable` when the link went down or the store can't serve now;
        :exc:`redis.exceptions.ResponseError` for other error replies.
        """
        ...


@frozen(eq=False)
class KeptCall:
    """A posted call whose reply is of no interest, and that ``keep`` takes when the store could not run it."""

    gathers: ClassVar[bool] = False
    call: ScriptCall
    keep: Callable[[ScriptCall], None]

    def pack(self) -> bytes:
        """Return the packed ``EVALSHA``."""
        return self.call.pack_evalsha()

    def build_call(self) -> ScriptCall:
        """Return the call."""
        return self.call

    def handle_reply(self, reply: Any) -> None:
        """Keep the call if the store can't serve now; drop it after other errors."""
        if isinstance(reply, StoreUnavailable):
            self.keep(self.call)
