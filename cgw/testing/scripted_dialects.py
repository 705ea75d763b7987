"""Anthropic's Messages API and OpenAI's Chat Completions API, as far as scripts need them.

Pure: a request's JSON in, a :class:`~cgw.testing.script.ScriptedAnswer` out. Formats are those of the APIs' own pages
(https://docs.claude.com/en/api/messages-streaming, https://platform.openai.com/docs/api-reference/chat). Token counts
are counts of words, because there is no tokenizer here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from attrs import frozen

from cgw.errors import Headers
from cgw.testing.script import BodyPiece, Script, ScriptedAnswer, ScriptedCall, split_tokens
from cgw.testing.scripted_calls import (
    build_tool_calls,
    build_tool_use,
    count_call_tokens,
    count_chat_results,
    count_message_results,
    list_tool_call_deltas,
    list_tool_use_events,
)

JSON_TYPE = (b"content-type", b"application/json")
EVENT_STREAM_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")

# The gateway must not pass these on: they apply to the provider's host.
_EDGE_HEADERS: Headers = (
    (b"set-cookie", b"__cf_bm=scripted; path=/; HttpOnly; Secure"),
    (b"alt-svc", b'h3=":443"; ma=86400'),
)
"""Headers that the content delivery network in front of both APIs adds."""


class RequestError(Exception):
    """The API would refuse this request with 400. ``param`` is OpenAI's name of the field that is wrong."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ScriptedDialect(Protocol):
    """One API of the scripted upstream. ``serial`` is the number of the request; ids are made from it."""

    def matches(self, path: str) -> bool:
        """Return whether ``path`` is the API's route."""
        ...

    def complete_body(self, target: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return ``body`` with what the API has in the request's target instead."""
        ...

    def read_key(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the API key in ``headers``, or ``""``."""
        ...

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        """Raise :exc:`RequestError` if a field or header that the API requires is missing or empty."""
        ...

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        """Return the scripted answer to a request that passed :meth:`check`."""
        ...

    def render_error(
        self, status: int, message: str, serial: int, *, code: str | None = None, param: str | None = None
    ) -> ScriptedAnswer:
        """Return an error in the API's own format."""
        ...


@frozen
class ScriptedMessages:
    """``POST /v1/messages``. The key is read from ``x-api-key``, or from the bearer token that newer SDKs send."""

    path: str = "/v1/messages"

    def matches(self, path: str) -> bool:
        return path == self.path

    def complete_body(self, target: str, body: dict[str, Any]) -> dict[str, Any]:
        return body

    def read_key(self, headers: Mapping[bytes, bytes]) -> str:
        # An empty x-api-key counts as absent.
        return headers.get(b"x-api-key", b"").decode("latin-1") or _bearer_token(headers)

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if b"anthropic-version" not in headers:
            raise RequestError("anthropic-version: header is required")
        if not isinstance(body.get("max_tokens"), int):
            raise RequestError("max_tokens: Field required")
        if not isinstance(body.get("messages"), list):
            raise RequestError("messages: Field required")
        if not body["messages"]:
            raise RequestError("messages: at least one message is required")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        # check() has made sure that it is there.
        tokens, is_cut = cut_answer(script, body["max_tokens"])
        calls = script.choose_calls(count_message_results(body), has_tools=bool(body.get("tools")))
        if calls:
            return self._render_calls(script, body, calls, serial)
        message = self._build_message(body, serial, len(tokens))
        stop: dict[str, Any] = {"stop_reason": "max_tokens" if is_cut else "end_turn", "stop_sequence": None}
        headers = self._headers(serial)
        # `message_start` carries the message without content; without streaming it is completed here.
        if body.get("stream") is True:
            return build_stream(script, headers, tuple(self._events(script, message, stop, tokens)))
        message |= {"content": [{"type": "text", "text": "".join(tokens)}], **stop}
        message["usage"]["output_tokens"] = len(tokens)
        return build_whole(script, headers, message, len(tokens))

    def _build_message(self, body: Mapping[str, Any], serial: int, output_tokens: int) -> dict[str, Any]:
        """Return the message as it is at its start."""
        return {
            "id": f"msg_scripted_{serial:06d}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": count_prompt_tokens(body),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": min(1, output_tokens),  # the API counts the first token here, all in message_delta
                "service_tier": "standard",
            },
        }

    def _render_calls(
        self, script: Script, body: Mapping[str, Any], calls: tuple[ScriptedCall, ...], serial: int
    ) -> ScriptedAnswer:
        output_tokens = count_call_tokens(calls)
        message = self._build_message(body, serial, output_tokens)
        stop: dict[str, Any] = {"stop_reason": "tool_use", "stop_sequence": None}
        if body.get("stream") is True:
            events = [
                {"type": "message_start", "message": message},
                *list_tool_use_events(calls, serial),
                {"type": "message_delta", "delta": stop, "usage": {"output_tokens": output_tokens}},
                {"type": "message_stop"},
            ]
            pieces = tuple(BodyPiece(script.head_delay_seconds, _event(event)) for event in events)
            return build_stream(script, self._headers(serial), pieces)
        message |= {"content": [build_tool_use(call, serial, index) for index, call in enumerate(calls)], **stop}
        message["usage"]["output_tokens"] = output_tokens
        return build_whole(script, self._headers(serial), message, 0)

    def _events(
        self, script: Script, message: dict[str, Any], stop: dict[str, Any], tokens: tuple[str, ...]
    ) -> Iterator[BodyPiece]:
        start = script.head_delay_seconds
        yield BodyPiece(start, _event({"type": "message_start", "message": message}))
        block = {"type": "text", "text": ""}
        yield BodyPiece(start, _event({"type": "content_block_start", "index": 0, "content_block": block}))
        # The API may send pings at any time, so readers must skip them.
        yield BodyPiece(start, _event({"type": "ping"}))
        for index, token in enumerate(tokens):
            delta = {"type": "text_delta", "text": token}
            data = _event({"type": "content_block_delta", "index": 0, "delta": delta})
            yield BodyPiece(script.token_at_seconds(index), data)
        end = script.token_at_seconds(max(0, len(tokens) - 1))
        yield BodyPiece(end, _event({"type": "content_block_stop", "index": 0}))
        # As in the API: stop reason and all output tokens come behind the content, in one event.
        yield BodyPiece(end, _event({"type": "message_delta", "delta": stop, "usage": {"output_tokens": len(tokens)}}))
        yield BodyPiece(end, _event({"type": "message_stop"}))

    def render_error(
        self, status: int, message: str, serial: int, *, code: str | None = None, param: str | None = None
    ) -> ScriptedAnswer:
        error = {"type": _ANTHROPIC_ERROR_TYPES.get(status, "api_error"), "message": message}
        body = {"type": "error", "error": error, "request_id": f"req_scripted_{serial:06d}"}
        return build_json(status, self._headers(serial), body)

    def _headers(self, serial: int) -> Headers:
        return (
            (b"request-id", f"req_scripted_{serial:06d}".encode()),
            (b"anthropic-organization-id", b"00000000-0000-4000-8000-000000000000"),
            (b"anthropic-ratelimit-requests-limit", b"4000"),
            (b"anthropic-ratelimit-requests-remaining", b"3999"),
            (b"anthropic-ratelimit-tokens-limit", b"400000"),
            (b"anthropic-ratelimit-tokens-remaining", b"399000"),
            *_EDGE_HEADERS,
        )


_ANTHROPIC_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@frozen
class ScriptedChat:
    """``POST /v1/chat/completions``. There is always one choice; ``n`` is ignored."""

    path: str = "/v1/chat/completions"

    def matches(self, path: str) -> bool:
        return path == self.path

    def complete_body(self, target: str, body: dict[str, Any]) -> dict[str, Any]:
        return body

    def read_key(self, headers: Mapping[bytes, bytes]) -> str:
        return _bearer_token(headers)

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("messages"), list):
            raise RequestError("Missing required parameter: 'messages'.", "messages")
        if not body["messages"]:
            raise RequestError("Invalid 'messages': empty array. Expected an array with minimum length 1.", "messages")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        # `max_tokens` is the older name, which OpenAI still accepts for most models.
        max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
        tokens, is_cut = cut_answer(script, max_tokens if isinstance(max_tokens, int) else None)
        frame: dict[str, Any] = {
            "id": f"chatcmpl-scripted{serial:06d}",
            "object": "chat.completion",
            # Not the clock, so that equal requests get equal answers.
            "created": 1_750_000_000 + serial,
            "model": body["model"],
            "service_tier": "default",
            "system_fingerprint": "fp_scripted",
        }
        calls = script.choose_calls(count_chat_results(body), has_tools=bool(body.get("tools")))
        prompt_tokens = count_prompt_tokens(body)
        output_tokens = count_call_tokens(calls) if calls else len(tokens)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }
        finish_reason = "tool_calls" if calls else "length" if is_cut else "stop"
        if body.get("stream") is True:
            frame["object"] = "chat.completion.chunk"
            options = body.get("stream_options")
            has_usage = isinstance(options, dict) and options.get("include_usage") is True
            deltas = (
                [(0.0, delta) for delta in list_tool_call_deltas(calls, serial)]
                if calls
                else [(script.token_at_seconds(index), {"content": token}) for index, token in enumerate(tokens)]
            )
            events = self._events(script, frame, finish_reason, deltas, usage if has_usage else None)
            return build_stream(script, self._headers(serial), tuple(events))
        message: dict[str, Any] = {"role": "assistant", "content": "".join(tokens), "refusal": None}
        if calls:
            message |= {"content": None, "tool_calls": build_tool_calls(calls, serial)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        whole = frame | {"choices": [choice], "usage": usage}
        return build_whole(script, self._headers(serial), whole, len(tokens))

    def _events(
        self,
        script: Script,
        frame: dict[str, Any],
        finish_reason: str,
        deltas: list[tuple[float, dict[str, Any]]],
        usage: dict[str, Any] | None,
    ) -> Iterator[BodyPiece]:
        # With `include_usage`, every chunk but the last has `"usage": null`.
        null_usage: dict[str, Any] = {} if usage is None else {"usage": None}

        def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            return encode_data(frame | {"choices": [choice]} | null_usage)

        # As in the API, the first chunk has the role and no text, and the last one the finish reason and no text.
        first_delta = {"role": "assistant", "content": "", "refusal": None}
        end = script.head_delay_seconds
        yield BodyPiece(end, chunk(first_delta))
        for at_seconds, delta in deltas:
            end = max(end, at_seconds)
            yield BodyPiece(end, chunk(delta))
        yield BodyPiece(end, chunk({}, finish_reason))
        if usage is not None:
            # The usage has a chunk of its own, without choices, after the one with the finish reason.
            yield BodyPiece(end, encode_data(frame | {"choices": [], "usage": usage}))
        yield BodyPiece(end, b"data: [DONE]\n\n")

    def render_error(
        self, status: int, message: str, serial: int, *, code: str | None = None, param: str | None = None
    ) -> ScriptedAnswer:
        kind, usual_code = _OPENAI_ERROR_TYPES.get(status, ("invalid_request_error", None))
        error = {"message": message, "type": kind, "param": param, "code": code or usual_code}
        return build_json(status, self._headers(serial), {"error": error})

    def _headers(self, serial: int) -> Headers:
        return (
            (b"x-request-id", f"req_scripted{serial:06d}".encode()),
            (b"openai-processing-ms", b"7"),
            (b"openai-version", b"2020-10-01"),
            (b"openai-organization", b"scripted"),
            (b"x-ratelimit-limit-requests", b"10000"),
            (b"x-ratelimit-remaining-requests", b"9999"),
            *_EDGE_HEADERS,
        )


_OPENAI_ERROR_TYPES: dict[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", None),
}


def _bearer_token(headers: Mapping[bytes, bytes]) -> str:
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    # Schemes are case-insensitive (RFC 9110 §11.1).
    return token.strip() if scheme.lower() == "bearer" else ""


def count_prompt_tokens(body: Mapping[str, Any]) -> int:
    """Count the words of a request's messages and system prompt. Parts that are not text count 0."""
    contents = [body.get("system")]
    contents += [message.get("content") for message in body["messages"] if isinstance(message, dict)]
    return sum(len(text.split()) for content in contents for text in _texts(content))


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def cut_answer(script: Script, max_tokens: int | None) -> tuple[tuple[str, ...], bool]:
    """Return the tokens of the scripted answer, and whether ``max_tokens`` cuts it short."""
    tokens = split_tokens(script.answer)
    if max_tokens is None or len(tokens) <= max_tokens:
        return tokens, False
    # The real API refuses a negative number; scripts need not.
    return tokens[: max(0, max_tokens)], True


def build_stream(script: Script, headers: Headers, pieces: tuple[BodyPiece, ...]) -> ScriptedAnswer:
    """Build an event stream with the framing, the delays and the break of ``script``."""
    return ScriptedAnswer(
        status=200,
        headers=(EVENT_STREAM_TYPE, (b"cache-control", b"no-cache"), *headers),
        pieces=pieces,
        head_at_seconds=script.head_delay_seconds,
        has_length=script.use_content_length,
        breakage=None if script.break_after_events is None else script.breakage,
        break_after_pieces=script.break_after_events or 0,
    )


def build_whole(script: Script, headers: Headers, body: Mapping[str, Any], token_count: int) -> ScriptedAnswer:
    """Build an answer that is not streamed: one JSON body, due when the last of its tokens is."""
    due = script.token_at_seconds(token_count)
    data = _dump(body)
    # A break happens between two pieces, so a body that breaks off needs two.
    halves = (BodyPiece(due, data[: len(data) // 2]), BodyPiece(due, data[len(data) // 2 :]))
    is_broken = script.break_after_events is not None
    return ScriptedAnswer(
        status=200,
        headers=(JSON_TYPE, *headers),
        pieces=halves if is_broken else (BodyPiece(due, data),),
        head_at_seconds=due,
        breakage=script.breakage if is_broken else None,
        break_after_pieces=1,
    )


def build_json(status: int, headers: Headers, body: Mapping[str, Any]) -> ScriptedAnswer:
    """Build an answer with a JSON body that is due at once."""
    return ScriptedAnswer(status=status, headers=(JSON_TYPE, *headers), pieces=(BodyPiece(0.0, _dump(body)),))


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def encode_data(value: Mapping[str, Any], line_end: bytes = b"\n") -> bytes:
    """Encode an event that has data only."""
    return b"data: " + _dump(value) + 2 * line_end


def _event(value: Mapping[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\n" + encode_data(value)
