"""OpenAI's Chat Completions API: the reference's route, and the route for SDKs that only have their base URL changed.

Fields are those of ``openai`` 3.54 for Python (``CompletionCreateParams``).
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import attrs
from attrs import define, field, frozen

from cgw.errors import Headers, Refusal
from cgw.model import Feature
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.json_body import (
    ClientBody,
    encode_object,
    encode_with_messages,
    keep_fields,
    keep_fields_of_each,
    split_large,
)
from cgw.providers.openai.errors import OpenAIErrors
from cgw.providers.openai.sdk_body import BETAS, set_caller
from cgw.providers.openai.usage import DONE_MARKER, read_completion, read_completion_stream
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader, Content, JsonList, JsonObject, StringOrStrings, count_content
from cgw.providers.route import ReadBody, Route, multiply_choices
from cgw.providers.upstream_requests import Endpoint, query_of, secret_value, select_headers
from cgw.wire.messages import RequestHead

PROVIDER = "openai"


@define
class ChatMessage:
    """A message of the conversation. The reference's route passes on these fields only."""

    role: str
    content: Content | None = None
    name: str | None = None
    tool_calls: JsonList | None = None
    tool_call_id: str | None = None
    function_call: JsonObject | None = None
    refusal: str | None = None
    audio: JsonObject | None = None


@define
class ChatBody:
    """The known fields of a request. The reference's route passes on these only.

    Left out on purpose: ``store`` and its ``metadata``, because prompts are not retained, and ``safety_identifier``,
    because the gateway identifies the caller, as ``user``.
    """

    model: str
    messages: list[ChatMessage] | None = None
    stream: bool | None = None
    user: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: StringOrStrings | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: JsonObject | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    seed: int | None = None
    stream_options: JsonObject | None = None
    response_format: JsonObject | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    tools: JsonList | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: JsonList | None = None
    function_call: Any = None
    modalities: JsonList | None = None
    audio: JsonObject | None = None
    prediction: JsonObject | None = None
    moderation: JsonObject | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    web_search_options: JsonObject | None = None


# From the classes, so that a field is declared in one place.
BODY_FIELDS = frozenset(attribute.name for attribute in attrs.fields(ChatBody))
MESSAGE_FIELDS = frozenset(attribute.name for attribute in attrs.fields(ChatMessage))


def build_endpoint(
    api_url: str, access_token: str, organization: str | None = None, path: str = "/v1/chat/completions"
) -> Endpoint:
    """Return the endpoint of the API at ``path``; ``organization`` is the one that OpenAI bills.

    Raises :exc:`ValueError` for a base URL, key or organization that cannot be used.
    """
    headers: Headers = ((b"authorization", b"Bearer " + secret_value(access_token, "OpenAI's access token")),)
    if organization is not None:
        # Sent only if it is set (the reference's §9.6).
        headers = (*headers, (b"openai-organization", secret_value(organization, "OpenAI's organization")))
    return Endpoint.parse(api_url, path, headers)


def _build_reader() -> BodyReader[ChatBody]:
    return BodyReader(ChatBody, ChatMessage, count=count_characters)


@frozen
class _ChatRoute(Route):
    """The steps that both routes share."""

    provider: str = field(default=PROVIDER, kw_only=True)
    path: str = field(kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[ChatBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    takes_code: ClassVar[bool] = False
    final_markers: ClassVar[tuple[bytes, ...]] = (DONE_MARKER,)
    read_whole: ClassVar[ReadBody] = read_completion
    read_stream: ClassVar[ReadBody] = read_completion_stream
    # From the reference (§6.1): above the 3 s up to which Sourcegraph's clients retry by themselves, so they do not.
    retry_after_seconds: ClassVar[int] = 30

    def _read(self, body: ClientBody, caller: Caller) -> tuple[ChatBody, dict[str, Any], int]:
        """Return the checked body, the decoded object and the characters of the prompt.

        Raises :exc:`~cgw.errors.Refusal` with the reference's texts.
        """
        # Refused as in the reference (§9.6), before the body is read: no body would make it right.
        if caller.feature is Feature.CODE_COMPLETIONS and not self.takes_code:
            raise Refusal(400, f'feature "{caller.feature}" is currently not supported for OpenAI')
        parsed, raw, characters = self._reader.read_counted(body)
        if not parsed.messages:
            raise Refusal(400, 'request body must contain "messages" field', param="messages")
        return parsed, raw, characters

    def _build_request(
        self,
        parsed: ChatBody,
        outgoing: dict[str, Any],
        encoded: bytes,
        *,
        characters: int,
        choices: int,
        headers: Headers = (),
        query: bytes = b"",
    ) -> PreparedRequest:
        """``outgoing`` is the upstream's body, with its model without prefix, and ``encoded`` the same as JSON."""
        most = parsed.max_tokens if parsed.max_completion_tokens is None else parsed.max_completion_tokens
        return self.build_request(
            encoded,
            outgoing["model"],
            is_stream=parsed.stream is True,
            prompt_character_count=characters,
            # Each choice may have so many. Not in the metadata: the reference's events have it for Anthropic only.
            max_completion_tokens=multiply_choices(most, choices),
            headers=headers,
            query=query,
            prompt=Prompt(outgoing, "system", "messages"),
        )


@frozen
class OpenAIChat(_ChatRoute):
    """``/v1/completions/openai``, as in the reference.

    Better than there: content may be a list of parts, and today's fields and betas are passed on.
    """

    path: str = field(default="/v1/completions/openai", kw_only=True)

    body_fields: ClassVar[frozenset[str]] = BODY_FIELDS
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`. Drops fields that are unknown or ``null``."""
        client_body = split_large(body, "messages")
        parsed, raw, characters = self._read(client_body, caller)
        # From the decoded object: numbers and parts that only the provider checks go out as they came in.
        outgoing = keep_fields(raw, self.body_fields)
        messages = outgoing["messages"] = keep_fields_of_each(raw["messages"], MESSAGE_FIELDS)
        outgoing["model"] = parsed.model.removeprefix(self.prefix)
        # The client's own value is overwritten: OpenAI's abuse handling is about the gateway's callers.
        outgoing["user"] = caller.identifier
        # As in the reference: one choice for each request, which is also the number that is reserved.
        if parsed.n is not None and parsed.n > 1:
            outgoing["n"] = 1
        encoded = (
            encode_with_messages(outgoing, client_body) if messages is raw["messages"] else encode_object(outgoing)
        )
        headers = select_headers(head, BETAS)
        return self._build_request(parsed, outgoing, encoded, characters=characters, choices=1, headers=headers)


@frozen
class OpenAISdkChat(_ChatRoute):
    """``/openai/v1/chat/completions``, for OpenAI's SDKs with only base URL and key changed.

    The body passes as it came, but for what :func:`~cgw.providers.openai.sdk_body.set_caller` sets; so do the query and
    ``openai-beta``. ``stream_options`` are the client's: a usage that it did not ask for would be a chunk that it does
    not expect, so the usage is estimated then.
    """

    path: str = field(default="/openai/v1/chat/completions", kw_only=True)

    errors: ClassVar[ErrorStyle] = OpenAIErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        client_body = split_large(body, "messages")
        parsed, raw, characters = self._read(client_body, caller)
        raw["model"] = parsed.model.removeprefix(self.prefix)
        encoded = set_caller(client_body, parsed.model, raw["model"], caller)
        headers = select_headers(head, BETAS)
        # Each choice may have max_tokens, so `n` multiplies what is reserved.
        return self._build_request(
            parsed,
            raw,
            encoded,
            characters=characters,
            choices=parsed.n or 1,
            headers=headers,
            query=query_of(head),
        )


class _HasMessages(Protocol):
    messages: list[ChatMessage] | None


def count_characters(body: _HasMessages) -> int:
    """Return the length of all text in the messages of ``body``, in code points."""
    count = 0
    for message in body.messages or ():
        content: Any = message.content
        # Content is null in an assistant's message that only calls tools.
        count += len(content) if isinstance(content, str) else count_content(content)
    return count
