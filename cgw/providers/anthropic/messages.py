"""Anthropic's Messages API: the reference's route, and the route for SDKs that only have their base URL changed.

Fields are those of ``anthropic`` 2.12 for Python (``MessageCreateParams``, plain and beta).
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from attrs import Factory, define, field, frozen

from cgw.errors import Headers, Refusal
from cgw.model import Feature
from cgw.providers.anthropic.errors import AnthropicErrors
from cgw.providers.anthropic.usage import read_message, read_message_stream
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
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader, Content, JsonList, JsonObject, StringOrStrings, count_content
from cgw.providers.route import FreeRoute, ReadBody, Route
from cgw.providers.upstream_requests import Endpoint, query_of, secret_value, select_headers
from cgw.wire.messages import RequestHead

DEFAULT_MAX_TOKENS_CAP = 4000
"""The default of the reference's ``CODY_GATEWAY_ANTHROPIC_MAX_TOKENS_TO_SAMPLE``."""
PROVIDER = "anthropic"
# The version of the API that the fields below belong to, as in the reference (§9.5).
VERSION: Headers = ((b"anthropic-version", b"2023-06-01"),)

# No other header of a client goes to the provider: its key is for cgw.
_BETAS = frozenset({b"anthropic-beta"})
# The reference flattens prompts so for flagging (§9.5), and phrases of its operators may have them.
_LABELS = {"user": "Human: ", "assistant": "Assistant: ", "system": "System: "}
_SDK_HEADERS = frozenset({b"anthropic-version", *_BETAS})


RawContent = str | list[dict[str, Any]] | None
"""A content as it was decoded, once it is checked."""


@define
class Message:
    """A message of the conversation. The reference's route passes on these fields only."""

    role: str
    content: Content


@define
class MessagesBody:
    """The known fields of a request. The reference's route passes on these only.

    Left out on purpose: ``fallbacks`` (it names models that would not be checked), ``billing_policy`` and
    ``fallback_credit_token`` (they decide who pays), ``thread`` and ``compaction`` (they store conversations under the
    gateway's key).
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


# From the classes, so that a field is declared in one place.
BODY_FIELDS = frozenset(attribute.name for attribute in attrs.fields(MessagesBody))
MESSAGE_FIELDS = frozenset(attribute.name for attribute in attrs.fields(Message))


def build_endpoint(api_url: str, access_token: str) -> Endpoint:
    """Return the endpoint of the Messages API. Raises :exc:`ValueError` for an unusable base URL or key."""
    return Endpoint.parse(
        api_url, "/v1/messages", ((b"x-api-key", secret_value(access_token, "Anthropic's access token")),)
    )


def _build_reader() -> BodyReader[MessagesBody]:
    return BodyReader(MessagesBody, Message, count=_count_characters)


def _count_characters(body: MessagesBody) -> int:
    # A system prompt among the messages is counted as one of them.
    count = 0 if body.system is None else count_content(body.system)
    for message in body.messages or ():
        content: Any = message.content
        count += len(content) if isinstance(content, str) else count_content(content)
    return count


@frozen
class _MessagesRoute(Route):
    """The steps that both routes share.

    ``max_tokens_cap`` is the largest ``max_tokens`` that a request may ask for, ``None`` for no cap.
    """

    provider: str = field(default=PROVIDER, kw_only=True)
    max_tokens_cap: int | None = None
    # Most clients leave the version to cgw: then it need not be encoded again.
    _versioned: Endpoint = field(
        default=Factory(lambda self: self.endpoint.add_fields(VERSION), takes_self=True),
        init=False,
        repr=False,
        eq=False,
    )
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[MessagesBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    final_markers: ClassVar[tuple[bytes, ...]] = (b"event: message_stop",)
    read_whole: ClassVar[ReadBody] = read_message
    read_stream: ClassVar[ReadBody] = read_message_stream
    # From the reference (§6.1): below the 3 s up to which Sourcegraph's clients retry by themselves.
    retry_after_seconds: ClassVar[int] = 2

    def _read(self, body: ClientBody) -> tuple[MessagesBody, dict[str, Any], list[Message], int]:
        """Return the checked body, the decoded object, the messages, of which there is at least one, and the characters
        of the prompt.

        Raises :exc:`~cgw.errors.Refusal` with the reference's texts.
        """
        parsed, raw, characters = self._reader.read_counted(body)
        # A missing field, null and an empty list get the same text, which is the reference's.
        if not parsed.messages:
            raise Refusal(400, 'request body must contain "messages" field', param="messages")
        check_max_tokens("max_tokens", parsed.max_tokens, self.max_tokens_cap)
        return parsed, raw, parsed.messages, characters

    def _build_request(
        self,
        parsed: MessagesBody,
        outgoing: dict[str, Any],
        encoded: bytes,
        model: str,
        *,
        characters: int,
        headers: Headers,
        query: bytes = b"",
    ) -> PreparedRequest:
        """``outgoing`` is the upstream's body, ``model`` its model, without prefix."""
        return self.build_request(
            encoded,
            model,
            is_stream=parsed.stream is True,
            prompt_character_count=characters,
            max_completion_tokens=parsed.max_tokens,
            metadata=None if parsed.max_tokens is None else {"max_tokens": parsed.max_tokens},
            endpoint=self._versioned if headers is VERSION else self.endpoint,
            headers=() if headers is VERSION else headers,
            query=query,
            prompt=Prompt(outgoing, "system", "messages", labels=_LABELS, has_token_limits=True),
        )


@frozen
class AnthropicMessages(_MessagesRoute):
    """``/v1/completions/anthropic-messages``, as in the reference.

    Better than there: content may be a string; today's fields and betas are passed on; a system message without text is
    allowed; the client's own ``system`` is kept, before the text of a first ``system`` message.
    """

    max_tokens_cap: int | None = DEFAULT_MAX_TOKENS_CAP

    path: ClassVar[str] = "/v1/completions/anthropic-messages"
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`. Drops fields that are unknown or ``null``."""
        client_body = split_large(body, "messages")
        parsed, raw, messages, characters = self._read(client_body)
        # From the decoded object: numbers and parts that only the provider checks go out as they came in.
        outgoing = keep_fields(raw, BODY_FIELDS)
        outgoing["messages"] = keep_fields_of_each(raw["messages"], MESSAGE_FIELDS)
        # Older clients send the system prompt as the first message, which that API does not accept.
        if messages[0].role == "system":
            outgoing["messages"] = outgoing["messages"][1:]
            _set_system(outgoing, raw["messages"][0]["content"], has_text=count_content(messages[0].content) > 0)
        model = outgoing["model"] = parsed.model.removeprefix(self.prefix)
        # Replaced, not merged: the reference passes on no other metadata.
        outgoing["metadata"] = {"user_id": caller.identifier}
        is_unchanged = outgoing["messages"] is raw["messages"]
        encoded = encode_with_messages(outgoing, client_body) if is_unchanged else encode_object(outgoing)
        betas = select_headers(head, _BETAS)
        headers = (*VERSION, *betas) if betas else VERSION
        return self._build_request(parsed, outgoing, encoded, model, characters=characters, headers=headers)


@frozen
class AnthropicSdkMessages(_MessagesRoute):
    """``/anthropic/v1/messages``, for Anthropic's SDKs with only base URL and key changed.

    Passes on unknown fields, the query, ``anthropic-version`` and ``anthropic-beta``. SDKs ask for large
    ``max_tokens``, so there is no cap by default. ``metadata.user_id`` is always the gateway's. Fields other than
    ``model`` that name models are refused, because only ``model`` is checked against the actor's allowed models.
    """

    path: ClassVar[str] = "/anthropic/v1/messages"
    errors: ClassVar[ErrorStyle] = AnthropicErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        client_body = split_large(body, "messages")
        parsed, outgoing, _, characters = self._read(client_body)
        _refuse_further_models(parsed, outgoing)
        model = outgoing["model"] = parsed.model.removeprefix(self.prefix)
        # Behind the client's own fields, so that it wins.
        outgoing["metadata"] = {**(parsed.metadata or {}), "user_id": caller.identifier}
        headers = select_headers(head, _SDK_HEADERS, VERSION)
        encoded = encode_with_messages(outgoing, client_body)
        return self._build_request(
            parsed, outgoing, encoded, model, characters=characters, headers=headers, query=query_of(head)
        )


@frozen
class AnthropicCountTokens(_MessagesRoute, FreeRoute):
    """``/anthropic/v1/messages/count_tokens``: what a request of :class:`AnthropicSdkMessages` would send.

    Passes on the same as that route. No ``metadata`` is set, which the API refuses here.
    """

    path: ClassVar[str] = "/anthropic/v1/messages/count_tokens"
    errors: ClassVar[ErrorStyle] = AnthropicErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        client_body = split_large(body, "messages")
        parsed, outgoing, *_ = self._read(client_body)
        _refuse_further_models(parsed, outgoing)
        model = outgoing["model"] = parsed.model.removeprefix(self.prefix)
        headers = select_headers(head, _SDK_HEADERS, VERSION)
        encoded = encode_with_messages(outgoing, client_body)
        return self.build_free_request(
            encoded,
            model,
            suffix=b"/count_tokens",
            headers=headers,
            query=query_of(head),
        )


def check_max_tokens(name: str, wanted: int | None, cap: int | None) -> None:
    """Raise :exc:`~cgw.errors.Refusal` if the field ``name`` asks for more tokens than ``cap``; ``None`` is no cap."""
    # Strictly above the cap, as in the reference (§9.2).
    if cap is not None and wanted is not None and wanted > cap:
        raise Refusal(400, f"{name} exceeds maximum allowed value of {cap}: {wanted}", param=name)


def _set_system(outgoing: dict[str, Any], message: RawContent, *, has_text: bool) -> None:
    """Set the top-level ``system`` to the client's own one and the text of a system message.

    Both are as they were decoded. The result is a string if that loses nothing, otherwise (cache marks, for example) a
    list of text parts.
    """
    if isinstance(message, list):
        for index, part in enumerate(message):
            if part.get("type") != "text":
                path = f"messages[0].content[{index}]"
                raise Refusal(400, f"{path}: a system message may hold text only", param=path)
    # An empty text block is an error for the API.
    if not has_text:
        return
    # The client's own one first, as it stands before all messages.
    own: RawContent = outgoing.get("system")
    contents = [own, message] if own else [message]
    if all(_is_plain(content) for content in contents):
        outgoing["system"] = "\n\n".join(_join_text(content) for content in contents)
    else:
        outgoing["system"] = [part for content in contents for part in _parts_of(content)]


def _is_plain(content: RawContent) -> bool:
    # A part with more fields than "type" and "text" would lose them in a string.
    return not isinstance(content, list) or all(part["type"] == "text" and len(part) == 2 for part in content)


def _join_text(content: RawContent) -> str:
    return "".join(part["text"] for part in _parts_of(content))


def _parts_of(content: RawContent) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _refuse_further_models(body: MessagesBody, raw: dict[str, Any]) -> None:
    if body.tools is None and "fallbacks" not in raw:
        return
    # From the decoded object: MessagesBody leaves this field out.
    paths = ["fallbacks"] if raw.get("fallbacks") is not None else []
    paths += [
        f"tools[{index}].model"
        for index, tool in enumerate(body.tools or ())
        if isinstance(tool, dict) and tool.get("model") is not None
    ]
    if paths:
        text = f"{paths[0]}: naming further models is not supported by this gateway, which checks one for each request"
        raise Refusal(400, text, param=paths[0])
