"""The scope in which requests of a client are served: one per HTTP/1.1 connection, and one per HTTP/2 stream."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable

import trio

from cgw.transport.deadlines import DeadlineKeeper, KeptDeadline


class Cause(enum.Enum):
    """The reason for which a scope was cancelled."""

    LATE = "late"
    """Its deadline has passed."""
    CLIENT_GONE = "client gone"
    DONE = "done"
    """There is nothing to wait for: the connection drains, or is broken."""


class ServingScope(KeptDeadline):
    """A cancel scope with a cheap deadline, in which one request after the other is served.

    ``cause`` says why it was cancelled, ``None`` while it was not; a cancellation from further out leaves it ``None``.
    An exchange that is cancelled still has to answer and to log, which it cannot do inside: while it runs, ``conclude``
    is the function that does so, to be called outside. Whoever owns the scope serves like this::

        try:
            with scope.enter():
                ...  # serve; stop once scope.cause is set, even if everything had ended by then
        finally:
            if scope.conclude is not None:
                await scope.conclude()

    A new scope costs five hundred bytecodes, so it is left only once it was cancelled. Then another one is entered, so
    that a cancellation which comes when its request has just ended does not hurt the next one.
    """

    __slots__ = ("_scope", "cause", "conclude")

    def __init__(self, keeper: DeadlineKeeper) -> None:
        super().__init__(keeper)
        self.cause: Cause | None = None
        self.conclude: Callable[[], Awaitable[None]] | None = None
        self._scope = trio.CancelScope()

    def enter(self) -> trio.CancelScope:
        """Return a new scope, to be entered at once. Forgets why the last one was cancelled, and its deadline."""
        self.cause = None
        self.set_deadline(float("inf"))
        self._scope = trio.CancelScope()
        return self._scope

    def cancel(self, cause: Cause) -> None:
        """Cancel what runs in the scope; the first cause counts."""
        if self.cause is None:
            self.cause = cause
            self._scope.cancel()

    def on_late(self) -> None:
        """See :meth:`KeptDeadline.on_late`."""
        self.cancel(Cause.LATE)
