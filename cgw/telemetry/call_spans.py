"""Spans of cgw's own calls to other services: GraphQL, the portal, Sourcegraph Accounts, webhooks.

A call that is made while an exchange is served is a child of that exchange's root span, also from the tasks that it
started: they inherit :data:`served_trace`. Other calls (syncs, alerts) have traces of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType

from cgw.errors import CgwError
from cgw.telemetry.trace_encoding import CallSpan
from cgw.wire.trace_context import RequestTrace, begin_trace

served_trace: ContextVar[RequestTrace | None] = ContextVar("served_trace", default=None)
"""The trace of the exchange that the current task serves."""

_NOTHING = nullcontext()


class CallTracer:
    """Makes spans of calls and hands them to ``put``, those that ``wants`` approves of: it gets the served trace."""

    def __init__(self, put: Callable[[CallSpan], None], wants: Callable[[RequestTrace | None], bool]) -> None:
        self._put = put
        self._wants = wants

    def trace(self, name: str, server: str | None = None) -> AbstractContextManager[None]:
        """Return a context manager whose block becomes a span. ``name`` has few values; ``server`` is a host."""
        served = served_trace.get()
        if not self._wants(served):
            return _NOTHING
        return _Call(self._put, name, server, served)


def trace_call(tracer: CallTracer | None, name: str, server: str | None = None) -> AbstractContextManager[None]:
    """Return :meth:`CallTracer.trace`, or a context manager that does nothing where there is no tracing."""
    return _NOTHING if tracer is None else tracer.trace(name, server)


class _Call(AbstractContextManager[None]):
    def __init__(
        self, put: Callable[[CallSpan], None], name: str, server: str | None, served: RequestTrace | None
    ) -> None:
        self._put = put
        self._name = name
        self._server = server
        self._served = served

    def __enter__(self) -> None:
        self._start_ns = time.time_ns()
        self._start = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ids, served = begin_trace(), self._served
        self._put(
            CallSpan(
                name=self._name,
                trace_id=ids.trace_id if served is None else served.trace_id,
                span_id=ids.span_id,
                parent_span_id=None if served is None else served.span_id,
                start_ns=self._start_ns,
                end_ns=self._start_ns + time.perf_counter_ns() - self._start,
                server=self._server,
                # Only cgw's own errors are known to have texts without secrets.
                error=None if error is None else str(error) if isinstance(error, CgwError) else type(error).__name__,
            )
        )
