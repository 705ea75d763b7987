"""Asking the upstream up to the head of its response: is its model available, is there a second place to ask?"""

from __future__ import annotations

import logging

import trio

from cgw.errors import (
    ConnectTimeout,
    Headers,
    Refusal,
    UpstreamError,
    UpstreamRefusal,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from cgw.gateway.journal import Journal
from cgw.gateway.parts import Gateway
from cgw.providers.dialect import Dialect, PreparedRequest
from cgw.providers.fallback import Fallback
from cgw.providers.upstream_words import describe_words
from cgw.transport.serving_scope import Cause, ServingScope
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.messages import UpstreamRequest, add_field
from cgw.wire.trace_context import RequestTrace

MAX_ERROR_BYTES = 16 * 1024
"""The most that is read of the body of an error that cgw tells in its own words."""

ERROR_BODY_SECONDS = 1.0
"""The time that it may take."""

logger = logging.getLogger("cgw.upstream")

_ENTITY_FIELDS = frozenset([b"content-type", b"content-length", b"content-encoding", b"x-accel-buffering"])


def tell_trace(gateway: Gateway, trace: RequestTrace, request: UpstreamRequest) -> UpstreamRequest:
    """Return ``request`` with the header field that tells the provider our trace, where the operator wants that."""
    if gateway.build_traceparent is None:
        return request
    return add_field(request, b"traceparent", gateway.build_traceparent(trace))


async def open_upstream(
    gateway: Gateway,
    dialect: Dialect,
    prepared: PreparedRequest,
    scope: ServingScope,
    deadline: float,
    head_seconds: float,
    journal: Journal,
) -> UpstreamResponse:
    """Return the response to ``prepared`` once its head is there, as :meth:`UpstreamPool.open` does.

    ``scope`` ends the waiting: its deadline is that of the head, which a fallback gets anew, at most ``deadline``.

    Raises what that raises, and :exc:`~cgw.errors.UpstreamRefusal` for a model that fails all the time. The outcome is
    recorded for that.
    """
    model, load, status = prepared.model, gateway.load, None
    if not load.admits(model):
        retry_after = (b"retry-after", b"%d" % dialect.retry_after_seconds)
        raise UpstreamRefusal(503, f"model {model} is currently unavailable", headers=[retry_after])
    try:
        fallback = gateway.fallbacks.get(dialect.provider)
        if fallback is None:
            response = await gateway.pool.open(prepared.upstream)
        else:
            response = await _open_either(gateway, fallback, prepared, scope, deadline, head_seconds, journal)
        status = response.head.status
        return response
    except UpstreamTimeout:
        status = 504
        raise
    except trio.Cancelled:
        # By the deadline of the head. Not by the exchange's own, which the client may have chosen: one caller must not
        # be able to make a model unavailable for all. Nor by a client that left.
        is_late = scope.cause is Cause.LATE and scope.deadline < deadline
        status = 504 if is_late else None
        raise
    finally:
        load.record(model, status)


async def _open_either(
    gateway: Gateway,
    fallback: Fallback,
    prepared: PreparedRequest,
    scope: ServingScope,
    deadline: float,
    head_seconds: float,
    journal: Journal,
) -> UpstreamResponse:
    """Ask the fallback once if the first upstream answers 5xx, or cannot be connected to."""
    pool, request = gateway.pool, prepared.upstream
    try:
        response = await pool.open(request)
        if response.head.status < 500:
            return response
        reason = f"it answered {response.head.status}"
        pool.give_back(response)
    except (UpstreamUnreachable, ConnectTimeout) as error:
        # Only where nothing was sent: a request that reached a provider may have cost money.
        reason = str(error)
    logger.debug("asking the fallback of %s: %s", request.origin, reason)
    journal.fell_back(f"the fallback was asked instead of {request.origin.host}: {reason}")
    scope.set_deadline(min(deadline, trio.current_time() + head_seconds))
    response = await pool.open(fallback.redirect(request))
    response.asked_at = None  # the first upstream's time is not cgw's own
    return response


async def read_error_body(response: UpstreamResponse) -> bytes:
    """Return up to :data:`MAX_ERROR_BYTES` of a body, secrets masked, as far as it comes within a second.

    A body that was read to its end lets its connection be kept. Raises nothing.
    """
    body = b""
    with trio.move_on_after(ERROR_BODY_SECONDS):
        try:
            while len(body) <= MAX_ERROR_BYTES and (chunk := await response.receive_chunk()) is not None:
                body += chunk
        except UpstreamError:
            pass  # what has come is all there is to log
    return body[:MAX_ERROR_BYTES]


async def explain_overload(
    response: UpstreamResponse, prepared: PreparedRequest, provider: str, headers: Headers, journal: Journal
) -> Refusal:
    """Return cgw's own answer for an upstream that is overloaded or limits the rate. ``headers`` are of the answer.

    Not the upstream's body: SDKs and litellm take its ``rate_limit_error`` for a limit of their own, and some name the
    operator's account in it. It goes to the log.
    """
    status = response.head.status
    model = prepared.model
    words = describe_words(
        await read_error_body(response), prepared.upstream.body, (model, model.partition("/")[2], *prepared.other_names)
    )
    journal.upstream_refused(f"the upstream answered {status}: {words}")
    problem = "limits the gateway's rate" if status == 429 else "is overloaded"
    own = [field for field in headers if field[0] not in _ENTITY_FIELDS]
    return Refusal(503, f"the upstream provider {provider} {problem}, please retry later", headers=own)
