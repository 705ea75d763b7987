"""Fireworks' Chat Completions and Completions APIs, which share the reference's route.

Fields are those of https://docs.fireworks.ai/api-reference/post-chatcompletions and ``post-completions``. Both APIs
follow OpenAI's, so usage is read as there.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from attrs import define, field, frozen

from cgw.errors import Headers, Refusal
from cgw.model import Feature
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.fireworks.models import VirtualModels, list_other_names
from cgw.providers.json_body import encode_object, encode_with_messages, keep_fields, keep_fields_of_each, split_large
from cgw.providers.openai.chat import MESSAGE_FIELDS, ChatMessage, count_characters
from cgw.providers.openai.usage import DONE_MARKER, read_completion, read_completion_stream
from cgw.providers.request_body import BodyReader, JsonList, JsonObject, StringOrStrings
from cgw.providers.route import ReadBody, Route, multiply_choices
from cgw.providers.upstream_requests import Endpoint, secret_value
from cgw.wire.messages import RequestHead

PROVIDER = "fireworks"

GENIE: Headers = ((b"x-fireworks-genie", b"true"),)


@define
class FireworksBody:
    """The known fields of a request to either API. They are passed on, all others are dropped.

    Left out on purpose: ``user`` and ``metadata``, because the reference tells Fireworks nothing about callers, and
    ``store``, because prompts are not retained.
    """

    model: str
    prompt: StringOrStrings | None = None
    messages: list[ChatMessage] | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    stop: StringOrStrings | None = None
    echo: bool | None = None
    echo_last: int | None = None
    suffix: str | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    mirostat_target: float | None = None
    mirostat_lr: float | None = None
    logit_bias: JsonObject | None = None
    # A number in the one API, true or false in the other.
    logprobs: Any = None
    top_logprobs: int | None = None
    ignore_eos: bool | None = None
    images: JsonList | None = None
    stream_options: JsonObject | None = None
    response_format: JsonObject | None = None
    reasoning_effort: Any = None
    reasoning_history: str | None = None
    thinking: JsonObject | None = None
    tools: JsonList | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: JsonList | None = None
    function_call: Any = None
    context_length_exceeded_behavior: str | None = None
    prompt_truncate_len: int | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    # What Cody's autoedits send: the text that will mostly come back.
    prediction: Any = None
    speculation: Any = None
    rewrite_speculation: bool | None = None
    adaptive_speculation: bool | None = None
    speculation_length_on_strong_match: int | None = None
    speculation_min_length_on_strong_match: int | None = None
    speculation_strong_match_threshold: int | None = None
    # The id of the file's language, in an editor's terms: it chooses a model, and is not passed on.
    languageId: str | None = None


BODY_FIELDS = frozenset(attribute.name for attribute in attrs.fields(FireworksBody)) - {"languageId"}


def build_endpoints(api_url: str, access_token: str) -> tuple[Endpoint, Endpoint]:
    """Return the endpoints of the Chat Completions and of the Completions API.

    Raises :exc:`ValueError` for an unusable base URL or key.
    """
    headers: Headers = ((b"authorization", b"Bearer " + secret_value(access_token, "Fireworks' access token")),)
    chat, text = (Endpoint.parse(api_url, path, headers) for path in ("/v1/chat/completions", "/v1/completions"))
    return chat, text


def _build_reader() -> BodyReader[FireworksBody]:
    return BodyReader(FireworksBody, ChatMessage, count=count_characters)


@frozen
class FireworksCompletions(Route):
    """``/v1/completions/fireworks``, as in the reference: two APIs, of which the feature chooses one.

    Better than there: where the body can only be for the other API (``messages`` for code completions, as from Cody's
    autoedits; a ``prompt`` for chat), it goes to that one. ``text_endpoint`` is that of the Completions API.
    """

    text_endpoint: Endpoint = field(kw_only=True)
    virtual_models: VirtualModels = field(factory=VirtualModels, kw_only=True)
    provider: str = field(default=PROVIDER, kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[FireworksBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    path: ClassVar[str] = "/v1/completions/fireworks"
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None
    final_markers: ClassVar[tuple[bytes, ...]] = (DONE_MARKER,)
    read_whole: ClassVar[ReadBody] = read_completion
    read_stream: ClassVar[ReadBody] = read_completion_stream
    # From the reference (§6.1): above the 3 s up to which Sourcegraph's clients retry by themselves, so they do not.
    retry_after_seconds: ClassVar[int] = 30

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`. Drops fields that are unknown or ``null``."""
        client_body = split_large(body, "messages")
        parsed, raw, characters = self._reader.read_counted(client_body)
        is_chat = _is_for_chat(parsed, caller.feature)
        asked = parsed.model.removeprefix(self.prefix)
        model = self.virtual_models.resolve(asked, parsed.languageId)
        # From the decoded object: numbers and parts that only the provider checks go out as they came in.
        outgoing = keep_fields(raw, BODY_FIELDS)
        outgoing["model"] = model
        outgoing.pop("prompt" if is_chat else "messages", None)
        if is_chat:
            outgoing["messages"] = keep_fields_of_each(raw["messages"], MESSAGE_FIELDS)
        # As in the reference: one choice for each request, which is also the number that is reserved.
        if parsed.n is not None and parsed.n > 1:
            outgoing["n"] = 1
        is_unchanged = is_chat and outgoing["messages"] is raw["messages"]
        most = parsed.max_tokens if parsed.max_completion_tokens is None else parsed.max_completion_tokens
        prompt_count, prompts = (characters, 1) if is_chat else _measure(parsed.prompt)
        return self.build_request(
            encode_with_messages(outgoing, client_body) if is_unchanged else encode_object(outgoing),
            model,
            endpoint=self.endpoint if is_chat else self.text_endpoint,
            is_stream=parsed.stream is True,
            prompt_character_count=prompt_count,
            max_completion_tokens=multiply_choices(most, prompts),
            # Exactly this value, as in the reference: it asks Fireworks to trace the request.
            headers=GENIE if head.header(b"x-fireworks-genie") == b"true" else (),
            other_names=list_other_names(asked, model),
        )


def _is_for_chat(body: FireworksBody, feature: Feature) -> bool:
    """Return which of the two APIs a body is for. Raises :exc:`~cgw.errors.Refusal` for one that is for neither."""
    if body.messages and body.prompt:
        return feature is Feature.CHAT_COMPLETIONS
    if body.messages or body.prompt:
        return bool(body.messages)
    if feature is Feature.CHAT_COMPLETIONS:
        raise Refusal(400, 'request body must contain "messages" field', param="messages")
    raise Refusal(400, 'request body must contain "prompt" field', param="prompt")


def _measure(prompt: Any) -> tuple[int, int]:
    """Return the characters of one or several prompts, and how many there are: each has a completion of its own."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    return sum(map(len, prompts)), len(prompts)
