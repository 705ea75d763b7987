"""OpenAI's Chat Completions API: the reference's route, and the route for unchanged SDKs.

Fields are those of ``openai`` 3.54 for Python (``CompletionCreateParams``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from attrs import field, frozen

from cgw.errors import Headers, Refusal
from cgw.model import BodyWindow, Feature, Usage
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.error_styles import OpenAIErrors, ReferenceErrors
from cgw.providers.openai_usage import read_completion, read_completion_stream
from cgw.providers.request_body import (
    BodyReader,
    Content,
    JsonList,
    JsonObject,
    StringOrStrings,
    encode_object,
    keep_fields,
    keep_fields_of_each,
)
from cgw.providers.upstream_requests import Endpoint, query_of, secret_value, select_headers
from cgw.providers.usage_reading import read_usage
from cgw.wire.messages import RequestHead, ResponseHead, UpstreamRequest

PROVIDER = "openai"

_UPSTREAM_PATH = "/v1/chat/completions"
_PREFIX = "openai/"
_SDK_HEADERS = frozenset({b"openai-beta"})


@frozen
class ChatMessage:
    """One turn. Its fields are all that the reference's route lets through."""

    role: str
    content: Content | None = None
    name: str | None = None
    tool_calls: JsonList | None = None
    tool_call_id: str | None = None
    function_call: JsonObject | None = None
    refusal: str | None = None
    audio: JsonObject | None = None


@frozen
class ChatBody:
    """What is known of a request. Its fields are all that the reference's route lets through.

    Left out on purpose: ``store`` and its ``metadata``, as prompts are not retained, and ``safety_identifier``, which
    says who is asking: that is the gateway's to say, as ``user``.
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


BODY_FIELDS = frozenset(attribute.name for attribute in attrs.fields(ChatBody))
MESSAGE_FIELDS = frozenset(attribute.name for attribute in attrs.fields(ChatMessage))


def _make_reader() -> BodyReader[ChatBody]:
    return BodyReader(ChatBody, ChatMessage)


def _make_endpoint(dialect: OpenAIChat | OpenAISdkChat) -> Endpoint:
    key = secret_value(dialect.access_token, "OpenAI's access token")
    headers: Headers = ((b"authorization", b"Bearer " + key),)
    if dialect.organization is not None:
        headers = (*headers, (b"openai-organization", secret_value(dialect.organization, "OpenAI's organization")))
    return Endpoint.parse(dialect.api_url, _UPSTREAM_PATH, headers)


@frozen
class OpenAIChat:
    """``/v1/completions/openai``, as the reference has it.

    Better than there: content may be a list of parts, and today's fields pass.
    """

    api_url: str
    access_token: str = field(repr=False)
    models: tuple[str, ...]
    organization: str | None = None
    _reader: BodyReader[ChatBody] = field(factory=_make_reader, init=False, repr=False, eq=False)
    _endpoint: Endpoint = field(default=attrs.Factory(_make_endpoint, takes_self=True), init=False, repr=False)

    path: ClassVar[str] = "/v1/completions/openai"
    provider: ClassVar[str] = PROVIDER
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None
    retry_after_seconds: ClassVar[int] = 30

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`; unknown and ``null`` fields are dropped."""
        _check_feature(caller)
        parsed, raw = self._reader.read(body)
        _check(parsed)
        outgoing = keep_fields(raw, BODY_FIELDS)
        outgoing["messages"] = keep_fields_of_each(raw["messages"], MESSAGE_FIELDS)
        outgoing["model"] = parsed.model.removeprefix(_PREFIX)
        outgoing["user"] = caller.identifier
        if parsed.n is not None and parsed.n > 1:
            outgoing["n"] = 1
        request = self._endpoint.build_request(encode_object(outgoing), is_stream=parsed.stream is True)
        return _prepared(request, parsed, outgoing["model"], 1)

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """See :meth:`cgw.providers.dialect.Dialect.read_usage`."""
        return read_usage(request, response, body, read_completion, read_completion_stream)


@frozen
class OpenAISdkChat:
    """``/openai/v1/chat/completions``, for OpenAI's SDKs with only base URL and key changed.

    What is not known here is passed on, as are the query and ``openai-beta``; ``n`` is not touched. ``user`` is always
    the gateway's; a client's ``safety_identifier``, which has the same purpose, is dropped.
    """

    api_url: str
    access_token: str = field(repr=False)
    models: tuple[str, ...]
    organization: str | None = None
    _reader: BodyReader[ChatBody] = field(factory=_make_reader, init=False, repr=False, eq=False)
    _endpoint: Endpoint = field(default=attrs.Factory(_make_endpoint, takes_self=True), init=False, repr=False)

    path: ClassVar[str] = "/openai/v1/chat/completions"
    provider: ClassVar[str] = PROVIDER
    errors: ClassVar[ErrorStyle] = OpenAIErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS
    retry_after_seconds: ClassVar[int] = 30

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        _check_feature(caller)
        parsed, raw = self._reader.read(body)
        _check(parsed)
        raw["model"] = parsed.model.removeprefix(_PREFIX)
        raw["user"] = caller.identifier
        raw.pop("safety_identifier", None)
        request = self._endpoint.build_request(
            encode_object(raw),
            is_stream=parsed.stream is True,
            query=query_of(head),
            headers=select_headers(head, _SDK_HEADERS),
        )
        return _prepared(request, parsed, raw["model"], parsed.n or 1)

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """See :meth:`cgw.providers.dialect.Dialect.read_usage`."""
        return read_usage(request, response, body, read_completion, read_completion_stream)


def _check_feature(caller: Caller) -> None:
    if caller.feature is Feature.CODE_COMPLETIONS:
        raise Refusal(400, f'feature "{caller.feature}" is currently not supported for OpenAI')


def _check(body: ChatBody) -> None:
    if not body.messages:
        raise Refusal(400, 'request body must contain "messages" field', param="messages")


def _prepared(request: UpstreamRequest, body: ChatBody, model: str, choices: int) -> PreparedRequest:
    is_stream = body.stream is True
    count = sum(message.content.character_count for message in body.messages or () if message.content is not None)
    return PreparedRequest(
        request, _PREFIX + model, is_stream, count, {"stream": is_stream}, _max_tokens(body, choices)
    )


def _max_tokens(body: ChatBody, choices: int) -> int | None:
    """The newer field wins; nonsense (none, or less than none) is the provider's to refuse."""
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return None if most is None else max(0, most) * max(1, choices)
