"""OpenAI's Embeddings API for SDKs: the body passes as it came, and the answer is relayed."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from attrs import define, field, frozen

from cgw.errors import Refusal
from cgw.model import BodyWindow, Feature
from cgw.providers.dialect import Caller, PreparedRequest
from cgw.providers.openai.sdk_body import BETAS, set_caller
from cgw.providers.openai.sdk_route import OpenAISdkRoute
from cgw.providers.openai.texts import count_inputs
from cgw.providers.request_body import BodyReader
from cgw.providers.route import ReadBody
from cgw.providers.upstream_requests import query_of, select_headers
from cgw.providers.usage_reading import Figure, PartsDecoder, Reading, read_object
from cgw.wire.messages import RequestHead


class _Figures(msgspec.Struct, gc=False):
    prompt_tokens: Figure | None = None


class _Answer(msgspec.Struct, gc=False):
    usage: _Figures | None = None


_ANSWERS = PartsDecoder(_Answer)
_FIGURES = PartsDecoder(_Figures)


def read_embeddings(body: BodyWindow) -> Reading:
    """Read the tokens of an answer: they are all the prompt's."""
    return read_object(body, _read_whole, lambda usage: _build_reading(_FIGURES.take_parts(usage)))


def _read_whole(data: bytes) -> Reading:
    answer = _ANSWERS.decode(data)
    if answer is None:
        return Reading(completion_token_count=0, completion_character_count=0)
    reading = _build_reading(answer.usage or _Figures())
    reading.is_final = True
    return reading


def _build_reading(usage: _Figures) -> Reading:
    return Reading(usage.prompt_tokens, completion_token_count=0, completion_character_count=0)


@define
class SdkEmbeddingsBody:
    """The fields that are checked; all others pass."""

    model: str
    input: Any


def _build_reader() -> BodyReader[SdkEmbeddingsBody]:
    return BodyReader(SdkEmbeddingsBody)


@frozen
class SdkEmbeddings(OpenAISdkRoute):
    """``/openai/v1/embeddings``. ``models_setting`` is the setting that the models are from."""

    path: str = field(default="/openai/v1/embeddings", kw_only=True)
    models_setting: str = field(default="CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS", kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[SdkEmbeddingsBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    default_feature: ClassVar[Feature | None] = Feature.EMBEDDINGS
    read_whole: ClassVar[ReadBody] = read_embeddings
    read_stream: ClassVar[ReadBody] = read_embeddings  # the API has no streams

    @property
    def models_variable(self) -> str:
        """See :meth:`cgw.providers.dialect.Dialect.models_variable`."""
        return self.models_setting

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, _ = self.read(self._reader, body, caller)
        if not isinstance(parsed.input, str | list):
            raise Refusal(400, "input: expected a string, or a list of strings or tokens", param="input")
        model = parsed.model.removeprefix(self.prefix)
        characters, count = count_inputs(parsed.input)
        return self.build_request(
            set_caller(body, parsed.model, model, caller),
            model,
            is_stream=False,
            prompt_character_count=characters,
            max_completion_tokens=0,
            metadata={"batch_size": count},
            headers=select_headers(head, BETAS),
            query=query_of(head),
        )
