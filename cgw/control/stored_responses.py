"""Stored responses of OpenAI's Responses API: ``GET`` and ``DELETE /openai/v1/responses/{id}``, and what is below it.

Small requests for what an actor's own exchanges have stored, so they are answered here as a whole. They cost nothing
upstream, and count on the rate of free requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import trio
from attrs import frozen

from cgw.control.responses import ControlResponse
from cgw.errors import Headers, Refusal, UpstreamError
from cgw.gateway.answer import answer_status
from cgw.gateway.own_answers import explain_failure
from cgw.gateway.parts import Gateway
from cgw.model import Actor
from cgw.providers.dialect import Dialect
from cgw.providers.openai.responses import OpenAIResponses
from cgw.transport.whole_response import fetch_whole
from cgw.wire.messages import RequestHead

MAX_RESPONSE_BYTES = 16 * 2**20
"""The largest stored response that is passed on; it is held in memory as a whole."""

_PATH = re.compile(r"/([A-Za-z0-9_-]{1,200})(|/cancel|/input_items)")
_METHODS = {"": ["GET", "DELETE"], "/cancel": ["POST"], "/input_items": ["GET"]}
_PASSED_ON = (b"content-type", b"x-request-id", b"openai-processing-ms", b"openai-version")
_STREAMS = re.compile(rb"(?:^|&)stream=(?!false(?:&|$))")


@frozen
class StoredRoute:
    """A route that was asked for: what is stored under ``id``. ``methods`` are those that it has."""

    dialect: OpenAIResponses
    id: str
    suffix: str
    methods: list[str]


def find_stored_route(dialects: Iterable[Dialect], path: str) -> StoredRoute | None:
    """Return the route at ``path``; ``None`` if there is none."""
    for dialect in dialects:
        if isinstance(dialect, OpenAIResponses) and path.startswith(f"{dialect.path}/"):
            match = _PATH.fullmatch(path, len(dialect.path))
            if match is not None:
                return StoredRoute(dialect, match[1], match[0], _METHODS[match[2]])
    return None


async def answer_stored(
    gateway: Gateway, route: StoredRoute, actor: Actor, head: RequestHead, headers: Headers
) -> ControlResponse:
    """Return the upstream's answer about a stored response of the actor's, with ``headers``.

    Raises :exc:`~cgw.errors.Refusal`: 404, in the API's words, for one that is not the actor's or that there is not;
    otherwise as an exchange would answer. Cancel-safe.
    """
    if _STREAMS.search(head.target.partition(b"?")[2]):
        # Only responses in the background are streamed again, and there are none.
        raise Refusal(400, "stream: stored responses are not streamed by this gateway", param="stream")
    provider = route.dialect.provider
    if await gateway.stored.find_foreign(actor, provider, [route.id]) is not None:
        raise Refusal(404, f"Response with id '{route.id[:100]}' not found.", code="not_found", headers=headers)
    deadline = trio.current_time() + gateway.timeout_seconds
    request = route.dialect.build_stored_request(head, route.suffix)
    try:
        answer = await fetch_whole(
            gateway.pool, request, deadline, MAX_RESPONSE_BYTES, gateway.pool.deadlines.head_seconds
        )
    except UpstreamError as error:
        raise explain_failure(error, provider, headers) from None
    if answer_status(answer.head.status) == 503:
        wait = (b"retry-after", b"%d" % route.dialect.retry_after_seconds)
        text = f"the upstream provider {provider} is overloaded, please retry later"
        raise Refusal(503, text, headers=[*headers, wait])
    passed = [field for field in answer.head.headers if field[0] in _PASSED_ON]
    return ControlResponse(answer.head.status, (*passed, *headers), answer.body)
