"""``POST /v1/attribution``: the repositories that contain a snippet, from Sourcegraph.com (the reference's §7).

For Sourcegraph instances, whose licence grants it even where completions are off.
"""

from __future__ import annotations

import logging

import msgspec
import trio

from cgw.actors.dotcom.client import DotcomClient
from cgw.actors.policies import PRODUCT_SUBSCRIPTION
from cgw.actors.source import SourceUnavailable
from cgw.control.bodies import receive_body
from cgw.control.responses import JSON, ControlResponse
from cgw.errors import Refusal
from cgw.model import Actor
from cgw.transport.asgi_host import Receive
from cgw.wire.messages import RequestHead

MAX_REPOSITORIES = 4
"""The most repositories that are asked for; also what no limit, or a wrong one, stands for."""

MAX_BODY_BYTES = 1024 * 1024
"""Snippets are some lines of code."""

MAX_AT_ONCE = 20
"""Searches under way at once: no limit counts them, and Sourcegraph.com must not feel one instance's loop."""

logger = logging.getLogger("cgw.control")


class _Request(msgspec.Struct):
    # `null` counts as absent, as for the reference.
    snippet: str | None = None
    limit: int | None = None


class _Repository(msgspec.Struct):
    name: str


class _Answer(msgspec.Struct, omit_defaults=True):
    # Required, so that it is never left out; clients expect its capital.
    repositories: list[_Repository] | None = msgspec.field(name="Repositories")
    total_count: int = msgspec.field(default=0, name="totalCount")
    limit_hit: bool = msgspec.field(default=False, name="limitHit")


class Attribution:
    """Searches for snippets with ``client``; ``None`` where attribution is off."""

    def __init__(self, client: DotcomClient | None) -> None:
        self._client = client
        self._slots = trio.CapacityLimiter(MAX_AT_ONCE)

    async def answer(self, actor: Actor, head: RequestHead, receive: Receive) -> ControlResponse:
        """Answer ``actor``'s request with ``head``, whose body comes from ``receive``.

        Raises :exc:`~cgw.errors.Refusal`, checked in this order: 401 for actors of other sources, 503 if attribution is
        off, 400 and 413 for the body, 503 above :data:`MAX_AT_ONCE`, 502 if Sourcegraph.com gives no answer.
        """
        if actor.source != PRODUCT_SUBSCRIPTION:
            raise Refusal(401, "only available for enterprise product subscriptions", code="wrong_source")
        if self._client is None:
            raise Refusal(503, "attribution search not enabled", code="attribution_off")
        request = _parse_request(await receive_body(head, receive, MAX_BODY_BYTES))
        limit = request.limit or 0
        first = limit if 0 < limit <= MAX_REPOSITORIES else MAX_REPOSITORIES
        try:
            # Without waiting: a queue in front of a slow service only makes it slower.
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            busy = "too many attribution searches at once, please retry"
            raise Refusal(503, busy, headers=[(b"retry-after", b"1")]) from None
        try:
            found = await self._client.snippet_attribution(request.snippet or "", first)
        except SourceUnavailable as error:
            logger.warning("attribution search for actor %s failed: %s", actor.id, error)
            # Its details are not for clients.
            raise Refusal(502, "fetching SnippetAttribution from sourcegraph.com failed") from None
        finally:
            self._slots.release()
        names = [_Repository(name) for name in found.repository_names]
        answer = _Answer(names or None, found.total_count, found.limit_hit)
        return ControlResponse(200, JSON, msgspec.json.encode(answer))


def _parse_request(body: bytes) -> _Request:
    try:
        return msgspec.json.decode(body, type=_Request)
    except msgspec.MsgspecError as error:
        problem = str(error)  # has the path and the expected type, never the value
    except UnicodeDecodeError:
        problem = "it is not valid UTF-8"
    except RecursionError:
        problem = "it is nested too deeply"
    raise Refusal(400, f"the body is not a valid attribution request: {problem}", code="invalid_body")
