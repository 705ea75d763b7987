"""``/maintenance/…``: flagged prompts, for those who look into abuse (the reference's §6.3)."""

from __future__ import annotations

import logging
from urllib.parse import unquote

import msgspec
import trio

from cgw.actors.authorization import extract_token
from cgw.actors.portal.introspection import SamsIntrospection
from cgw.actors.source import SourceUnavailable
from cgw.control.responses import JSON, TEXT, ControlResponse
from cgw.errors import Refusal, StoreUnavailable
from cgw.flagging.recorder import PromptName, PromptRecorder
from cgw.wire.messages import RequestHead

PREFIX = "/maintenance/"

SCOPE = "cody_gateway::flaggedprompts::read"

MAX_AT_ONCE = 5
"""Tokens that are introspected at once: anybody can present some, and SAMS must not feel it."""

MAX_TOKEN_CHARACTERS = 4096

_LIST = f"{PREFIX}flagged-requests"

logger = logging.getLogger("cgw.control")


class Maintenance:
    """Answers the routes, for callers whose SAMS tokens have :data:`SCOPE`."""

    def __init__(self, introspection: SamsIntrospection, prompts: PromptRecorder) -> None:
        self._introspection = introspection
        self._prompts = prompts
        self._slots = trio.CapacityLimiter(MAX_AT_ONCE)

    async def answer(self, head: RequestHead) -> ControlResponse:
        """Answer a request below :data:`PREFIX`. Raises :exc:`~cgw.errors.Refusal`."""
        await self._authorize(head)
        path = head.path.decode("latin-1")
        try:
            if path == _LIST:
                return await self._list()
            if path.startswith(f"{_LIST}/"):
                return await self._read(unquote(path.removeprefix(f"{_LIST}/")))
        except StoreUnavailable:
            retry_after = (b"retry-after", b"1")
            raise Refusal(503, "flagged prompts cannot be read right now", headers=[retry_after]) from None
        raise Refusal(404, "404 page not found", code="not_found")

    async def _authorize(self, head: RequestHead) -> None:
        """Raise :exc:`~cgw.errors.Refusal` unless a request's token may read prompts. Texts are the reference's."""
        try:
            token = extract_token(head.header)
        except Refusal:
            token = ""
        if not token or len(token) > MAX_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()):
            raise Refusal(401, "Unauthorized", code="unauthorized")
        try:
            # Without waiting, as attribution does.
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            busy = "too many requests at once, please retry"
            raise Refusal(503, busy, headers=[(b"retry-after", b"1")]) from None
        try:
            found = await self._introspection.introspect(token)
        except SourceUnavailable as error:
            logger.warning("a token for %s could not be checked: %s", PREFIX, error)
            raise Refusal(500, "the token cannot be checked right now") from None
        finally:
            self._slots.release()
        if not found.is_active:
            raise Refusal(401, "Unauthorized: Inactive token", code="unauthorized")
        if SCOPE not in found.scopes:
            raise Refusal(403, "Forbidden: Missing required scope", code="forbidden")

    async def _list(self) -> ControlResponse:
        prompts = [
            {"key": str(name), "traceId": name.trace_id, "feature": name.feature, "userId": name.actor_id}
            for name in await self._prompts.list_names()
        ]
        return ControlResponse(200, JSON, msgspec.json.encode({"prompts": prompts}))

    async def _read(self, key: str) -> ControlResponse:
        name = PromptName.parse(key)
        if name is None:
            raise Refusal(400, "Invalid prompt key", code="invalid_key")
        prompt = await self._prompts.read(name)
        if prompt is None:
            raise Refusal(404, "Prompt not found", code="not_found")
        logger.info(
            "flagged prompt %s was read", name
        )  # who looks into prompts leaves a trace, at any level but errors
        return ControlResponse(200, TEXT, prompt)
