"""OpenAI's Embeddings API (the reference's §8.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import msgspec
from attrs import frozen

from cgw.errors import Headers, UpstreamProtocolError
from cgw.providers.embeddings.embedder import Describer, RawAnswer, broken, refuse_empty
from cgw.providers.embeddings.models import MODELS, OPENAI_MODEL
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.provider import reveal_access_token
from cgw.providers.request_body import encode_object
from cgw.providers.upstream_requests import Endpoint, secret_value
from cgw.providers.usage_reading import Figure
from cgw.wire.messages import UpstreamRequest


class _Item(msgspec.Struct, gc=False):
    index: int
    embedding: msgspec.Raw


class _Usage(msgspec.Struct, gc=False):
    total_tokens: Figure | None = None


class _Answer(msgspec.Struct, gc=False):
    data: list[_Item]
    model: str
    usage: _Usage | None = None


_ANSWERS = msgspec.json.Decoder(_Answer)


@frozen
class OpenAIEmbedder:
    """``text-embedding-ada-002``."""

    endpoint: Endpoint

    name: ClassVar[str] = OPENAI_MODEL
    provider: ClassVar[str] = "openai"
    dimensions: ClassVar[int] = MODELS[OPENAI_MODEL]
    attempts: ClassVar[int] = 1
    describer: ClassVar[Describer | None] = None

    @classmethod
    def build(cls, settings: OpenAISettings) -> OpenAIEmbedder:
        """Return the embedder. Raises :exc:`ValueError` for a key or organization that cannot be used."""
        key = secret_value(reveal_access_token(settings), "OpenAI's access token")
        headers: Headers = ((b"authorization", b"Bearer " + key),)
        if settings.org_id is not None:
            headers = (*headers, (b"openai-organization", secret_value(settings.org_id, "OpenAI's organization")))
        return cls(Endpoint.parse(settings.api_url, "/v1/embeddings", headers))

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """See :meth:`Embedder.check_inputs`."""
        refuse_empty(inputs)

    def build_request(self, inputs: Sequence[str], identifier: str) -> UpstreamRequest:
        """See :meth:`Embedder.build_request`."""
        body = {"model": self.name.partition("/")[2], "input": inputs, "user": identifier}
        return self.endpoint.build_request(encode_object(body), is_stream=False)

    def read_answer(self, body: bytes) -> RawAnswer:
        """See :meth:`Embedder.read_answer`. The model's name is the upstream's own, without prefix."""
        try:
            answer = _ANSWERS.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise broken("embeddings") from None
        items = sorted(answer.data, key=lambda item: item.index)
        return RawAnswer(_list_rows(items), answer.model, None if answer.usage is None else answer.usage.total_tokens)


def _list_rows(items: Sequence[_Item]) -> Iterator[bytes]:
    for index, item in enumerate(items):
        row = bytes(item.embedding)
        # Null vectors happen; instances ask again for those (the reference's §14.2).
        if item.index != index or not (row.startswith(b"[") or row == b"null"):
            raise UpstreamProtocolError(f"the upstream's answer has no vector {index}")
        yield row
