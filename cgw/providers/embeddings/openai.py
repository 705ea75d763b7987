"""OpenAI's Embeddings API (the reference's §8.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import msgspec
from attrs import frozen

from cgw.errors import Headers
from cgw.providers.embeddings.embedder import Describer, RawAnswer, broken, refuse_empty
from cgw.providers.embeddings.models import MODELS, OPENAI_MODEL
from cgw.providers.embeddings.vectors import HollowBody
from cgw.providers.json_body import encode_object
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.provider import reveal_access_token
from cgw.providers.upstream_requests import Endpoint, secret_value
from cgw.providers.usage_reading import Figure
from cgw.wire.messages import UpstreamRequest


class _Item(msgspec.Struct, gc=False):
    index: int
    embedding: list[str] | None  # a marker, see HollowBody


class _Usage(msgspec.Struct, gc=False):
    total_tokens: Figure | None = None


class _Answer(msgspec.Struct, gc=False):
    data: list[_Item]
    model: str
    usage: _Usage | None = None


_ANSWERS = msgspec.json.Decoder(_Answer)
_VECTORS = msgspec.json.Decoder(msgspec.Raw)


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

    def read_answer(self, answer: HollowBody) -> RawAnswer:
        """See :meth:`Embedder.read_answer`. The model's name is the upstream's own, without prefix."""
        try:
            read = _ANSWERS.decode(answer.skeleton)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise broken("embeddings") from None
        items = sorted(read.data, key=lambda item: item.index)
        return RawAnswer(_list_rows(answer, items), read.model, None if read.usage is None else read.usage.total_tokens)


def _list_rows(answer: HollowBody, items: Sequence[_Item]) -> Iterator[bytes]:
    for index, item in enumerate(items):
        if item.index != index:
            raise broken(f"vector {index}")
        if item.embedding is None:
            yield b"null"  # instances ask again for those (the reference's §14.2)
            continue
        start, end = answer.find(item.embedding)
        try:
            yield bytes(_VECTORS.decode(answer.body[start:end]))  # checked, and not converted
        except msgspec.MsgspecError:
            raise broken(f"vector {index}") from None
