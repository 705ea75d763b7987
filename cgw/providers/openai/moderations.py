"""OpenAI's Moderations API, which costs nothing: it counts on the rate of free requests."""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen

from cgw.providers.dialect import Caller, PreparedRequest
from cgw.providers.openai.sdk_body import BETAS, set_model
from cgw.providers.openai.sdk_route import OpenAISdkRoute
from cgw.providers.request_body import BodyReader
from cgw.providers.route import FreeRoute
from cgw.providers.upstream_requests import query_of, select_headers
from cgw.wire.messages import RequestHead

MODERATION_MODELS = (
    "omni-moderation-latest",
    "omni-moderation-2024-09-26",
    "text-moderation-latest",
    "text-moderation-stable",
)
"""The models of this API, without prefix."""


@define
class ModerationBody:
    """The fields that are checked; all others pass. Without a model, the API chooses its default."""

    input: Any
    model: str = MODERATION_MODELS[0]


def _build_reader() -> BodyReader[ModerationBody]:
    return BodyReader(ModerationBody)


@frozen
class OpenAIModerations(OpenAISdkRoute, FreeRoute):
    """``/openai/v1/moderations``."""

    path: str = field(default="/openai/v1/moderations", kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[ModerationBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, _ = self.read(self._reader, body, caller)
        model = parsed.model.removeprefix(self.prefix)
        return self.build_free_request(
            set_model(body, parsed.model, model),
            model,
            headers=select_headers(head, BETAS),
            query=query_of(head),
        )
