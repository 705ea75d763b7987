"""Answers of cgw itself instead of the upstream's: refusals, in the dialect of the client's API."""

from __future__ import annotations

import contextlib

import trio

from cgw.errors import ClientGone, Headers, OutOfDescriptors, Refusal, UpstreamError, UpstreamRefusal, UpstreamTimeout
from cgw.gateway.admission import AdmittedRequest
from cgw.gateway.answer import build_answer_headers, build_model_header, describe_unread_timeout
from cgw.gateway.parts import Gateway
from cgw.limits.admissions import Admission
from cgw.providers.dialect import Dialect, ErrorStyle, PreparedRequest
from cgw.transport.client_side import ClientSide
from cgw.wire.messages import RequestHead, ResponseHead

CUT_ANSWER_SECONDS = 1.0
"""The time that the answer of an exchange which is cut may take."""

_RETRY_SOON: Headers = [(b"retry-after", b"1")]

CUT = Refusal(
    503, "the gateway is shutting down, please retry", code="overloaded", headers=_RETRY_SOON, must_close=True
)


def build_own_headers(admission: Admission, head: RequestHead) -> Headers:
    """Build the fields that cgw adds to the answer of an admitted request, besides the model's name."""
    limits = admission.build_headers()
    warning = describe_unread_timeout(head)
    return limits if warning is None else [*limits, (b"x-cgw-warning", warning.encode("ascii"))]


def build_relayed_headers(
    gateway: Gateway, dialect: Dialect, admitted: AdmittedRequest, head: RequestHead, upstream_head: ResponseHead
) -> Headers:
    """Build the fields of an answer that passes on the upstream's."""
    return build_answer_headers(
        upstream_head,
        admitted.prepared.model,
        dialect.retry_after_seconds,
        build_own_headers(admitted.admission, head),
        passes_account_fields=gateway.passes_account_fields,
    )


def build_failure_headers(admitted: AdmittedRequest, head: RequestHead) -> Headers:
    """Build the fields of the answer to an admitted request that its upstream did not answer."""
    return [*build_own_headers(admitted.admission, head), build_model_header(admitted.prepared.model)]


def explain_failure(error: UpstreamError, provider: str, headers: Headers) -> Refusal:
    """Build what the client is told of ``error``. Its text is for the log alone: it may name the operator's hosts."""
    if isinstance(error, UpstreamRefusal):
        return Refusal(error.status, error.message, headers=[*headers, *error.headers])
    if isinstance(error, UpstreamTimeout):
        return Refusal(504, f"request to upstream provider {provider} timed out", headers=headers)
    if isinstance(error, OutOfDescriptors):
        text = "the gateway has too many open connections, please retry"
        return Refusal(503, text, code="overloaded", headers=[*headers, *_RETRY_SOON])
    return Refusal(502, f"failed to make request to upstream provider {provider}", headers=headers)


def explain_late_upstream(gateway: Gateway, deadline: float) -> UpstreamTimeout:
    """Build the reason for which an upstream was not waited for any longer: all time is over, or that of the head."""
    if trio.current_time() >= deadline:
        return UpstreamTimeout("the exchange's time was over")
    return UpstreamTimeout(f"no response head within {gateway.pool.deadlines.head_seconds:g} seconds")


def explain_late(prepared: PreparedRequest) -> Refusal:
    """Build the refusal of a request whose time is over while Redis is asked: how its limits stand is not known."""
    text = "the request's time was over before its limits were checked"
    return Refusal(504, text, headers=[build_model_header(prepared.model)])


async def send_refusal(client: ClientSide, style: ErrorStyle, refusal: Refusal) -> None:
    """Send ``refusal`` as the response. Raises :exc:`~cgw.errors.ClientGone`."""
    headers, body = style.render(refusal, client.head.trace.trace_id)
    if refusal.must_close:
        client.close_after_response()
    await client.send_response(refusal.status, [*headers, *refusal.headers], body)


async def send_cut(client: ClientSide, style: ErrorStyle) -> None:
    """Send :data:`CUT`, although everything around is cancelled. Takes up to :data:`CUT_ANSWER_SECONDS`."""
    # The connection is being cut, too: shielded, or nothing would be sent.
    with trio.move_on_after(CUT_ANSWER_SECONDS, shield=True), contextlib.suppress(ClientGone):
        await send_refusal(client, style, CUT)
