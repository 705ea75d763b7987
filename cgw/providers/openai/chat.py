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
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.openai.errors import OpenAIErrors
from cgw.providers.openai.usage import read_completion, read_completion_stream
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


def _build_reader() -> BodyReader[ChatBody]:
    return BodyReader(ChatBody, ChatMessage)


@frozen
class _ChatRoute:
    """What both routes share: where requests go, whose they are, and how usage is read.

    ``models`` are ``provider/model`` names; ``organization`` is the one that OpenAI bills.
    """

    api_url: str
    access_token: str = field(repr=False)
    models: tuple[str, ...]
    organization: str | None = None
    _reader: BodyReader[ChatBody] = field(factory=_build_reader, init=False, repr=False, eq=False)
    _endpoint: Endpoint = field(init=False, repr=False)

    provider: ClassVar[str] = PROVIDER
    retry_after_seconds: ClassVar[int] = 30

    @_endpoint.default
    def _build_endpoint(self) -> Endpoint:
        key = secret_value(self.access_token, "OpenAI's access token")
        headers: Headers = ((b"authorization", b"Bearer " + key),)
        if self.organization is not None:
            headers = (*headers, (b"openai-organization", secret_value(self.organization, "OpenAI's organization")))
        return Endpoint.parse(self.api_url, _UPSTREAM_PATH, headers)

    def _read(self, body: bytes, caller: Caller) -> tuple[ChatBody, dict[str, Any]]:
        """Return the checked body and the decoded object. Raises :exc:`Refusal` with the reference's texts."""
        if caller.feature is Feature.CODE_COMPLETIONS:
            raise Refusal(400, f'feature "{caller.feature}" is currently not supported for OpenAI')
        parsed, raw = self._reader.read(body)
        if not parsed.messages:
            raise Refusal(400, 'request body must contain "messages" field', param="messages")
        return parsed, raw

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """See :meth:`cgw.providers.dialect.Dialect.read_usage`."""
        return read_usage(request, response, body, read_completion, read_completion_stream)


@frozen
class OpenAIChat(_ChatRoute):
    """``/v1/completions/openai``, as in the reference.

    Better than there: content may be a list of parts, and today's fields pass.
    """

    path: ClassVar[str] = "/v1/completions/openai"
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`; unknown and ``null`` fields are dropped."""
        parsed, raw = self._read(body, caller)
        outgoing = keep_fields(raw, BODY_FIELDS)
        outgoing["messages"] = keep_fields_of_each(raw["messages"], MESSAGE_FIELDS)
        outgoing["model"] = parsed.model.removeprefix(_PREFIX)
        outgoing["user"] = caller.identifier
        if parsed.n is not None and parsed.n > 1:
            outgoing["n"] = 1
        request = self._endpoint.build_request(encode_object(outgoing), is_stream=parsed.stream is True)
        return _prepared(request, parsed, outgoing["model"], 1)


@frozen
class OpenAISdkChat(_ChatRoute):
    """``/openai/v1/chat/completions``, for OpenAI's SDKs with only base URL and key changed.

    Unknown fields are passed on, as are the query and ``openai-beta``; ``n`` is not changed. ``user`` is always the
    gateway's; a client's ``safety_identifier``, which has the same purpose, is dropped.
    """

    path: ClassVar[str] = "/openai/v1/chat/completions"
    errors: ClassVar[ErrorStyle] = OpenAIErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, raw = self._read(body, caller)
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
