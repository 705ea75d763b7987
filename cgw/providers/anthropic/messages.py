"""Anthropic's Messages API: the reference's route, and the route for unchanged SDKs.

Fields are those of ``anthropic`` 2.12 for Python (``MessageCreateParams``, plain and beta).
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from attrs import field, frozen

from cgw.errors import Headers, Refusal
from cgw.model import BodyWindow, Feature, Usage
from cgw.providers.anthropic.errors import AnthropicErrors
from cgw.providers.anthropic.usage import read_message, read_message_stream
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.error_styles import ReferenceErrors
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

DEFAULT_MAX_TOKENS_CAP = 4000
"""The reference's ``CODY_GATEWAY_ANTHROPIC_MAX_TOKENS_TO_SAMPLE``."""
PROVIDER = "anthropic"
VERSION: Headers = ((b"anthropic-version", b"2023-06-01"),)

_UPSTREAM_PATH = "/v1/messages"
_PREFIX = "anthropic/"
_SDK_HEADERS = frozenset({b"anthropic-version", b"anthropic-beta"})


@frozen
class Message:
    """One turn. Its fields are all that the reference's route lets through."""

    role: str
    content: Content


@frozen
class MessagesBody:
    """What is known of a request. Its fields are all that the reference's route lets through.

    Left out on purpose: ``fallbacks`` (it names models that no check would see), ``billing_policy`` and
    ``fallback_credit_token`` (who pays), ``thread`` and ``compaction`` (conversations kept under the gateway's key).
    """

    model: str
    messages: list[Message] | None = None
    max_tokens: int | None = None
    system: Content | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: StringOrStrings | None = None
    metadata: JsonObject | None = None
    tools: JsonList | None = None
    tool_choice: JsonObject | None = None
    thinking: JsonObject | None = None
    cache_control: JsonObject | None = None
    container: Any = None
    context_management: JsonObject | None = None
    diagnostics: JsonObject | None = None
    inference_geo: str | None = None
    mcp_servers: JsonList | None = None
    output_config: JsonObject | None = None
    output_format: JsonObject | None = None
    service_tier: str | None = None
    speed: str | None = None


BODY_FIELDS = frozenset(attribute.name for attribute in attrs.fields(MessagesBody))
MESSAGE_FIELDS = frozenset(attribute.name for attribute in attrs.fields(Message))


def _build_reader() -> BodyReader[MessagesBody]:
    return BodyReader(MessagesBody, Message)


@frozen
class _MessagesRoute:
    """What both routes share: where requests go, whose they are, and how usage is read.

    ``models`` are ``provider/model`` names. ``max_tokens_cap`` is the largest ``max_tokens`` that a request may ask
    for, ``None`` for no cap.
    """

    api_url: str
    access_token: str = field(repr=False)
    models: tuple[str, ...]
    max_tokens_cap: int | None = None
    _reader: BodyReader[MessagesBody] = field(factory=_build_reader, init=False, repr=False, eq=False)
    _endpoint: Endpoint = field(init=False, repr=False)

    provider: ClassVar[str] = PROVIDER
    retry_after_seconds: ClassVar[int] = 2
    fixed_headers: ClassVar[Headers] = ()

    @_endpoint.default
    def _build_endpoint(self) -> Endpoint:
        key = secret_value(self.access_token, "Anthropic's access token")
        return Endpoint.parse(self.api_url, _UPSTREAM_PATH, ((b"x-api-key", key), *self.fixed_headers))

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """See :meth:`cgw.providers.dialect.Dialect.read_usage`."""
        return read_usage(request, response, body, read_message, read_message_stream)


@frozen
class AnthropicMessages(_MessagesRoute):
    """``/v1/completions/anthropic-messages``, as in the reference.

    Better than there: content may be a string; today's fields pass; a system message without text does not crash; the
    client's own ``system`` is kept, before the text of a first ``system`` message.
    """

    max_tokens_cap: int | None = DEFAULT_MAX_TOKENS_CAP

    path: ClassVar[str] = "/v1/completions/anthropic-messages"
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None
    fixed_headers: ClassVar[Headers] = VERSION

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`; unknown and ``null`` fields are dropped."""
        parsed, raw = self._reader.read(body)
        messages = _check(parsed, self.max_tokens_cap)
        outgoing = keep_fields(raw, BODY_FIELDS)
        outgoing["messages"] = keep_fields_of_each(raw["messages"], MESSAGE_FIELDS)
        if messages[0].role == "system":
            del outgoing["messages"][0]
            _set_system(outgoing, parsed.system, messages[0].content)
        outgoing["model"] = parsed.model.removeprefix(_PREFIX)
        outgoing["metadata"] = {"user_id": caller.identifier}
        is_stream = parsed.stream is True
        request = self._endpoint.build_request(encode_object(outgoing), is_stream=is_stream)
        return _prepared(request, parsed, outgoing["model"])


@frozen
class AnthropicSdkMessages(_MessagesRoute):
    """``/anthropic/v1/messages``, for Anthropic's SDKs with only base URL and key changed.

    Unknown fields are passed on, as are the query, ``anthropic-version`` and ``anthropic-beta``. SDKs ask for large
    ``max_tokens``, so there is no cap unless one is given. ``metadata.user_id`` is always the gateway's. Fields that
    name models besides ``model`` are refused, as an actor's list of models is checked against ``model`` alone.
    """

    path: ClassVar[str] = "/anthropic/v1/messages"
    errors: ClassVar[ErrorStyle] = AnthropicErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, raw = self._reader.read(body)
        _check(parsed, self.max_tokens_cap)
        _refuse_further_models(parsed, raw)
        raw["model"] = parsed.model.removeprefix(_PREFIX)
        raw["metadata"] = {**(parsed.metadata or {}), "user_id": caller.identifier}
        request = self._endpoint.build_request(
            encode_object(raw),
            is_stream=parsed.stream is True,
            query=query_of(head),
            headers=select_headers(head, _SDK_HEADERS, VERSION),
        )
        return _prepared(request, parsed, raw["model"])


def _check(body: MessagesBody, max_tokens_cap: int | None) -> list[Message]:
    """The messages, of which there is at least one. Raises :exc:`Refusal` with the reference's texts."""
    if not body.messages:
        raise Refusal(400, 'request body must contain "messages" field', param="messages")
    if max_tokens_cap is not None and body.max_tokens is not None and body.max_tokens > max_tokens_cap:
        text = f"max_tokens exceeds maximum allowed value of {max_tokens_cap}: {body.max_tokens}"
        raise Refusal(400, text, param="max_tokens")
    return body.messages


def _set_system(outgoing: dict[str, Any], own: Content | None, message: Content) -> None:
    """Move a system message's text to the top: a string while that says it all, else (cache marks …) text parts."""
    if isinstance(message.raw, list):
        for index, part in enumerate(message.raw):
            if part.get("type") != "text":
                path = f"messages[0].content[{index}]"
                raise Refusal(400, f"{path}: a system message may hold text only", param=path)
    if not message.character_count:
        return
    contents = [message] if own is None or not own.raw else [own, message]
    if all(_is_plain(content) for content in contents):
        outgoing["system"] = "\n\n".join(_join_text(content) for content in contents)
    else:
        outgoing["system"] = [part for content in contents for part in _parts_of(content)]


def _is_plain(content: Content) -> bool:
    return not isinstance(content.raw, list) or all(part["type"] == "text" and len(part) == 2 for part in content.raw)


def _join_text(content: Content) -> str:
    return "".join(part["text"] for part in _parts_of(content))


def _parts_of(content: Content) -> list[dict[str, Any]]:
    return content.raw if isinstance(content.raw, list) else [{"type": "text", "text": content.raw}]


def _refuse_further_models(body: MessagesBody, raw: dict[str, Any]) -> None:
    paths = ["fallbacks"] if raw.get("fallbacks") is not None else []
    paths += [
        f"tools[{index}].model"
        for index, tool in enumerate(body.tools or ())
        if isinstance(tool, dict) and tool.get("model") is not None
    ]
    if paths:
        text = f"{paths[0]}: naming further models is not supported by this gateway, which checks one for each request"
        raise Refusal(400, text, param=paths[0])


def _prepared(request: UpstreamRequest, body: MessagesBody, model: str) -> PreparedRequest:
    is_stream = body.stream is True
    metadata: dict[str, Any] = {"stream": is_stream}
    if body.max_tokens is not None:
        metadata["max_tokens"] = body.max_tokens
    count = sum(message.content.character_count for message in body.messages or ())
    if body.system is not None:
        count += body.system.character_count
    return PreparedRequest(request, _PREFIX + model, is_stream, count, metadata, body.max_tokens)
