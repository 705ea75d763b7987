"""Google's Gemini API on the reference's route.

Fields are those of https://ai.google.dev/api/generate-content, version ``v1beta``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar
from urllib.parse import quote

import attrs
from attrs import define, field, frozen

from cgw.errors import Headers, Refusal
from cgw.model import Feature
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.google.usage import read_response, read_response_stream
from cgw.providers.json_body import decode_object, encode_object, keep_fields
from cgw.providers.model_patterns import MAX_NAME_CHARACTERS
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader, JsonList, JsonObject
from cgw.providers.route import ReadBody, Route, multiply_choices
from cgw.providers.upstream_requests import Endpoint, secret_value
from cgw.wire.messages import RequestHead

PROVIDER = "google"


@define
class Part:
    """A part of a turn: text, or what only the provider checks (images, documents, calls of functions)."""

    text: str | None = None


@define
class Turn:
    """A turn of the conversation, and the shape of a system instruction."""

    parts: list[Part] | None = None
    role: str | None = None


@define
class GenerationConfig:
    """The fields of ``generationConfig`` that bound the response. All others are passed on, too."""

    maxOutputTokens: int | None = None
    candidateCount: int | None = None


@define
class GenerateBody:
    """The known fields of a request, named as in the API. They are passed on, all others are dropped.

    Left out on purpose: ``cachedContent``, because what is stored under the gateway's key is not the caller's.
    """

    model: str
    contents: list[Turn] | None = None
    stream: bool | None = None
    systemInstruction: Turn | None = None
    generationConfig: GenerationConfig | None = None
    safetySettings: JsonList | None = None
    tools: JsonList | None = None
    toolConfig: JsonObject | None = None


# The model and whether to stream are in the URL.
BODY_FIELDS = frozenset(attribute.name for attribute in attrs.fields(GenerateBody)) - {"model", "stream"}

# The API takes both spellings of each field, and so do its SDKs.
_SPELLINGS = {
    "system_instruction": "systemInstruction",
    "generation_config": "generationConfig",
    "safety_settings": "safetySettings",
    "tool_config": "toolConfig",
}
_CONFIG_SPELLINGS = {"max_output_tokens": "maxOutputTokens", "candidate_count": "candidateCount"}


def build_endpoint(api_url: str, access_token: str, version: str = "v1beta") -> Endpoint:
    """Return the endpoint below which the models are. Raises :exc:`ValueError` for an unusable base URL or key."""
    # Not in the URL, as in the reference: URLs are logged.
    headers: Headers = ((b"x-goog-api-key", secret_value(access_token, "Google's access token")),)
    return Endpoint.parse(api_url, f"/{version}/models/", headers)


def _build_reader() -> BodyReader[GenerateBody]:
    return BodyReader(GenerateBody, Part, Turn, GenerationConfig)


@frozen
class GoogleCompletions(Route):
    """``/v1/completions/google``, as in the reference.

    Better than there: the key is in a header; parts that are not text, tools and their results are passed on; a system
    instruction may have the API's own shape beside the reference's, a string.
    """

    provider: str = field(default=PROVIDER, kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[GenerateBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    path: ClassVar[str] = "/v1/completions/google"
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None
    read_whole: ClassVar[ReadBody] = read_response
    read_stream: ClassVar[ReadBody] = read_response_stream
    # The reference's default (§6.1), up to which Sourcegraph's clients retry by themselves.
    retry_after_seconds: ClassVar[int] = 3

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`. Drops fields that are unknown or ``null``."""
        raw = normalise(decode_object(body))
        parsed = self._reader.read_object(raw)
        if not parsed.contents:
            raise Refusal(400, 'request body must contain "contents" field', param="contents")
        model = parsed.model.removeprefix(self.prefix).removeprefix("models/")
        # From the decoded object: numbers and parts that only the provider checks go out as they came in.
        outgoing = keep_fields(raw, BODY_FIELDS)
        # Always there, as in the reference.
        outgoing.setdefault("generationConfig", {})
        is_stream = parsed.stream is True
        config = parsed.generationConfig or GenerationConfig()
        turns = [*parsed.contents, *([parsed.systemInstruction] if parsed.systemInstruction else ())]
        return self.build_request(
            encode_object(outgoing),
            model,
            # The name is part of the URL, whatever it is: it is checked against the lists before anything is sent.
            suffix=build_suffix(model, _METHODS[is_stream]),
            query=b"alt=sse" if is_stream else b"",
            is_stream=is_stream,
            prompt_character_count=count_text(turns),
            max_completion_tokens=multiply_choices(config.maxOutputTokens, config.candidateCount),
            prompt=Prompt(outgoing, "systemInstruction", "contents", "parts"),
        )


def count_text(turns: Iterable[Turn]) -> int:
    """Return the length of all text of some turns, in code points."""
    count = 0
    for turn in turns:
        for part in turn.parts or ():
            count += len(part.text or "")
    return count


def build_suffix(model: str, method: str) -> bytes:
    """Return what follows the endpoint's path. Every character with a meaning in URLs is encoded."""
    # Names that no list can have, as long as a body perhaps, are not remembered.
    return (_build_suffix if len(model) <= MAX_NAME_CHARACTERS else _build_suffix.__wrapped__)(model, method)


# Bounded; the same few models are asked for again and again.
@lru_cache(maxsize=1024)
def _build_suffix(model: str, method: str) -> bytes:
    return f"{quote(model, safe='', errors='replace')}:{method}".encode("ascii")


_METHODS = {False: "generateContent", True: "streamGenerateContent"}


def normalise(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a body with one spelling of each field, and its system instruction and turns in the API's usual shape."""
    body = _spell(raw, _SPELLINGS, "")
    config = body.get("generationConfig")
    if isinstance(config, dict):
        body["generationConfig"] = _spell(config, _CONFIG_SPELLINGS, "generationConfig.")
    instruction = body.get("systemInstruction")
    if isinstance(instruction, str):
        body["systemInstruction"] = {"parts": [{"text": instruction}]} if instruction else None
    elif instruction is not None:
        body["systemInstruction"] = _list_parts(instruction)
    contents = [body["contents"]] if isinstance(body.get("contents"), dict) else body.get("contents")
    if isinstance(contents, list):
        # Turns with a list of parts, which nearly all have, without the call.
        body["contents"] = [
            turn if isinstance(turn, dict) and isinstance(turn.get("parts"), list) else _list_parts(turn)
            for turn in contents
        ]
    return body


def _list_parts(turn: Any) -> Any:
    """Return a turn with a list of parts: Google's own examples have an object where there is one part."""
    if isinstance(turn, dict) and isinstance(turn.get("parts"), dict):
        return {**turn, "parts": [turn["parts"]]}
    return turn


def _spell(value: dict[str, Any], spellings: dict[str, str], path: str) -> dict[str, Any]:
    """Return ``value`` with the fields in ``spellings`` under their other name.

    Raises :exc:`~cgw.errors.Refusal` where both names are there: the API and cgw might take different ones.
    """
    if spellings.keys().isdisjoint(value):
        return value.copy()
    for name, other in spellings.items():
        if name in value and other in value:
            raise Refusal(400, f"{path}{name}: the field is there twice, also as {other}", param=f"{path}{name}")
    return {spellings.get(name, name): item for name, item in value.items()}
