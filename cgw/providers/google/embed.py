"""Embeddings of the Gemini API, for its SDKs: ``:embedContent`` and ``:batchEmbedContents``.

They count on the actor's limits for embeddings. Fields are those of https://ai.google.dev/api/embeddings.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field, frozen

from cgw.errors import Refusal
from cgw.model import BodyWindow, Feature
from cgw.providers.dialect import Caller, PreparedRequest
from cgw.providers.google.generate import Part, Turn, count_text
from cgw.providers.google.sdk import GoogleSdkRoute, check_same_model
from cgw.providers.google.usage import FIGURES
from cgw.providers.json_body import change_fields
from cgw.providers.request_body import BodyReader
from cgw.providers.route import ReadBody
from cgw.providers.usage_reading import Reading, find_usage
from cgw.wire.messages import RequestHead


@define
class EmbedBody:
    """The fields that are read of one text's request."""

    content: Turn
    model: str | None = None


@define
class BatchEmbedBody:
    """The fields that are read of a request for several texts."""

    requests: list[EmbedBody]


def read_embeddings(body: BodyWindow) -> Reading:
    """Read the tokens of a response, which only today's models tell."""
    figures = find_usage(body, "usageMetadata")
    tokens = None if figures is None else FIGURES.take_parts(figures).promptTokenCount
    return Reading(tokens, 0 if tokens is not None else None, 0, is_final=True)


@frozen
class _GoogleSdkEmbeddings(GoogleSdkRoute):
    default_feature: ClassVar[Feature | None] = Feature.EMBEDDINGS
    read_whole: ClassVar[ReadBody] = read_embeddings
    read_stream: ClassVar[ReadBody] = read_embeddings

    def _build(self, head: RequestHead, body: bytes, requests: list[EmbedBody], path: str) -> PreparedRequest:
        """``path`` is that of a request in the body, with ``{index}`` for its number."""
        model = self.read_model(head)
        for index, request in enumerate(requests):
            check_same_model(request.model, model, f"{path.format(index=index)}model")
        return self.build_request(
            change_fields(body, {}),  # refuses fields that are there twice
            model,
            suffix=self.build_suffix(model),
            is_stream=False,
            prompt_character_count=count_text(request.content for request in requests),
            max_completion_tokens=0,
            metadata={"batch_size": len(requests)},
        )


@frozen
class GoogleSdkEmbed(_GoogleSdkEmbeddings):
    """``:embedContent``."""

    _reader: BodyReader[EmbedBody] = field(
        factory=lambda: BodyReader(EmbedBody, Part, Turn), init=False, repr=False, eq=False
    )
    method: ClassVar[str] = "embedContent"

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, _ = self._reader.read(body)
        return self._build(head, body, [parsed], "")


@frozen
class GoogleSdkBatchEmbed(_GoogleSdkEmbeddings):
    """``:batchEmbedContents``, which ``google-genai`` uses for any number of texts."""

    _reader: BodyReader[BatchEmbedBody] = field(
        factory=lambda: BodyReader(BatchEmbedBody, Part, Turn, EmbedBody), init=False, repr=False, eq=False
    )
    method: ClassVar[str] = "batchEmbedContents"

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, _ = self._reader.read(body)
        if not parsed.requests:
            raise Refusal(400, 'request body must contain "requests" field', param="requests")
        return self._build(head, body, parsed.requests, "requests[{index}].")
