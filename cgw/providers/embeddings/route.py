"""``/v1/embeddings``: which models it serves, and the check of a request (the reference's §8.1 to §8.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from attrs import define, evolve, field, frozen

from cgw.errors import Refusal
from cgw.model import BodyWindow, Feature, Usage
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.embeddings.embedder import Embedder
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.model_patterns import compile_allow_list
from cgw.providers.models import MAX_SHOWN_CHARACTERS
from cgw.providers.request_body import BodyReader, JsonList
from cgw.wire.messages import RequestHead, ResponseHead

MAX_INPUTS = 2048
"""The most texts of one request, as in OpenAI's API: each one costs about 30 KB of response."""


@define
class EmbeddingsBody:
    """The known fields of a request; others are ignored, as in the reference.

    ``isQuery`` is accepted: none of the models makes a difference between queries and passages.
    """

    model: str
    input: JsonList
    isQuery: bool | None = None


class EmbeddingsRequest(PreparedRequest, kw_only=True, gc=False):
    """A checked request. ``upstream`` is the first request that is sent for it."""

    embedder: Embedder
    inputs: Sequence[str]
    identifier: str


@frozen
class EmbeddingsRoute:
    """The route of all embeddings models, as a dialect.

    ``models`` are the names that may be asked for, ``embedders`` those that can be served, by name. ``provider`` is
    that of the model, once it is known.
    """

    embedders: Mapping[str, Embedder]
    models: tuple[str, ...]
    provider: str = "sourcegraph"
    _reader: BodyReader[EmbeddingsBody] = field(
        factory=lambda: BodyReader(EmbeddingsBody), init=False, repr=False, eq=False
    )

    path: ClassVar[str] = "/v1/embeddings"
    models_path: ClassVar[str] = "/v1/embeddings/models"
    models_variable: ClassVar[str] = "CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS"
    final_markers: ClassVar[tuple[bytes, ...]] = ()
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = Feature.EMBEDDINGS
    # Above the 3 s up to which Sourcegraph's clients retry by themselves (the reference's §8.3).
    retry_after_seconds: ClassVar[int] = 60

    def of(self, embedder: Embedder) -> EmbeddingsRoute:
        """Return the route as that of one model's provider."""
        return evolve(self, provider=embedder.provider)

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> EmbeddingsRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`. Checks the model's name first, as the reference does."""
        parsed, _ = self._reader.read(body)
        embedder = self._find(parsed.model)
        inputs = _check_inputs(parsed.input)
        embedder.check_inputs(inputs)
        describer = embedder.describer
        if describer is None:
            upstream = embedder.build_request(inputs, caller.identifier)
        else:
            upstream = describer.build_request(inputs[0])
        return EmbeddingsRequest(
            upstream=upstream,
            model=embedder.name,
            is_stream=False,
            prompt_character_count=sum(map(len, inputs)),
            metadata={"batch_size": len(inputs)},
            max_completion_tokens=0,
            embedder=embedder,
            inputs=inputs,
            identifier=caller.identifier,
        )

    def _find(self, model: str) -> Embedder:
        shown = model[:MAX_SHOWN_CHARACTERS]
        # Ignoring case here, and not below, as in the reference.
        if not compile_allow_list(self.models).admits(model):
            allowed = ", ".join(self.models)
            text = f'model "{shown}" is not allowed, allowed: [{allowed}]'
            raise Refusal(400, text, param="model", code="model_not_found")
        embedder = self.embedders.get(model)
        if embedder is None:
            raise Refusal(400, f'model "{shown}" not known', param="model", code="model_not_found")
        return embedder

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """Not used: the usage of embeddings is read with them."""
        return Usage(prompt_character_count=request.prompt_character_count)


def _check_inputs(values: Sequence[object]) -> list[str]:
    """Return the texts to embed. Raises :exc:`~cgw.errors.Refusal` 400."""
    if not values:
        raise Refusal(400, "input: must have at least one string", param="input")
    if len(values) > MAX_INPUTS:
        raise Refusal(400, f"input: must have at most {MAX_INPUTS} strings, not {len(values)}", param="input")
    inputs = []
    for index, value in enumerate(values):
        if not isinstance(value, str):
            path = f"input[{index}]"
            raise Refusal(400, f"failed to parse request body: {path}: expected a string", param=path)
        inputs.append(value)
    return inputs
