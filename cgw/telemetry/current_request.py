"""The request that the running task serves, so that each line of the log says to which request it belongs."""

from __future__ import annotations

from contextvars import ContextVar

CURRENT_REQUEST: ContextVar[str | None] = ContextVar("current_request", default=None)
"""The id of the request, which is that of its trace; ``None`` in tasks that serve none.

Set once per request. Trio runs each task in a context of its own, which tasks that it starts inherit.
"""
