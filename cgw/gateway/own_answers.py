"""Answers of cgw itself instead of the upstream's: refusals, in the dialect of the client's API."""

from __future__ import annotations

import contextlib

import trio

from cgw.errors import ClientGone, Headers, OutOfDescriptors, Refusal, UpstreamError, UpstreamTimeout
from cgw.providers.dialect import ErrorStyle
from cgw.transport.client_side import ClientSide

CUT_ANSWER_SECONDS = 1.0
"""The time that the answer of an exchange which is cut may take."""

_RETRY_SOON: Headers = [(b"retry-after", b"1")]

CUT = Refusal(
    503, "the gateway is shutting down, please retry", code="overloaded", headers=_RETRY_SOON, must_close=True
)


def explain_failure(error: UpstreamError, provider: str) -> Refusal:
    """Build what the client is told of ``error``. Its text is for the log alone: it may name the operator's hosts."""
    if isinstance(error, UpstreamTimeout):
        return Refusal(504, f"request to upstream provider {provider} timed out")
    if isinstance(error, OutOfDescriptors):
        text = "the gateway has too many open connections, please retry"
        return Refusal(503, text, code="overloaded", headers=_RETRY_SOON)
    return Refusal(502, f"failed to make request to upstream provider {provider}")


async def send_refusal(client: ClientSide, style: ErrorStyle, refusal: Refusal) -> None:
    """Send ``refusal`` as the response. Raises :exc:`~cgw.errors.ClientGone`."""
    headers, body = style.render(refusal)
    if refusal.must_close:
        client.close_after_response()
    await client.send_response(refusal.status, [*headers, *refusal.headers], body)


async def send_cut(client: ClientSide, style: ErrorStyle) -> None:
    """Send :data:`CUT`, although everything around is cancelled. Takes up to :data:`CUT_ANSWER_SECONDS`."""
    # The connection is being cut, too: shielded, or nothing would be sent.
    with trio.move_on_after(CUT_ANSWER_SECONDS, shield=True), contextlib.suppress(ClientGone):
        await send_refusal(client, style, CUT)
