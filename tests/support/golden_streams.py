"""Streams of every API, made after the providers' published formats, with the usage that is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from cgw.model import Usage, UsageQuality

EXACT, PARTIAL, ESTIMATED = UsageQuality.EXACT, UsageQuality.PARTIAL, UsageQuality.ESTIMATED


@frozen
class Golden:
    """A whole stream and its usage; the prompt's characters, which are in the request, are left out."""

    body: bytes
    usage: Usage


def _usage(
    prompt: int | None,
    completion: int | None,
    characters: int,
    quality: UsageQuality = EXACT,
    *,
    read: int | None = None,
    written: int | None = None,
    charged: int | None = None,
    reasoning: int | None = None,
) -> Usage:
    return Usage(
        prompt,
        completion,
        None,
        characters,
        quality,
        cache_read_token_count=read,
        cache_write_token_count=written,
        prompt_quota_token_count=charged,
        reasoning_token_count=reasoning,
    )


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _event(value: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(value["type"]).encode(), _dump(value))


def _data(value: object, end: bytes = b"\n\n") -> bytes:
    return b"data: " + _dump(value) + end


# --- Anthropic's Messages: https://docs.claude.com/en/docs/build-with-claude/streaming -------------------------------


def _start(**usage: Any) -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": []}
    return _event({"type": "message_start", "message": message | ({"usage": usage} if usage else {})})


def _block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    return (
        _event({"type": "content_block_start", "index": index, "content_block": block})
        + b"".join(_event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas)
        + _event({"type": "content_block_stop", "index": index})
    )


def _text(*pieces: str) -> bytes:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return _block(0, {"type": "text", "text": ""}, *deltas)


def _end(**usage: Any) -> bytes:
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    return _event(delta | ({"usage": usage} if usage else {})) + _STOP


_STOP = _event({"type": "message_stop"})
_PING = _event({"type": "ping"})

MESSAGES = {
    "text": Golden(
        _start(input_tokens=12, output_tokens=1) + _PING + _text("Grüße, ", "世界 👋") + _end(output_tokens=9),
        _usage(12, 9, 11),
    ),
    "tools": Golden(
        _start(input_tokens=12, output_tokens=1)
        + _block(
            0,
            {"type": "tool_use", "id": "t_1", "name": "f", "input": {}},
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"a":'},
            {"type": "input_json_delta", "partial_json": ' "usage"}'},
        )
        + _end(output_tokens=30),
        _usage(12, 30, 14),
    ),
    "thinking": Golden(
        _start(input_tokens=12, output_tokens=1)
        + _block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Hm"},
            {"type": "signature_delta", "signature": "EqQB"},
        )
        + _text("Yes")
        + _end(output_tokens=40, output_tokens_details={"thinking_tokens": 38}),
        _usage(12, 40, 5),
    ),
    "cache": Golden(
        _start(input_tokens=12, cache_creation_input_tokens=10, cache_read_input_tokens=1001, output_tokens=1)
        + _text("Yes")
        + _end(input_tokens=12, cache_creation_input_tokens=10, cache_read_input_tokens=1001, output_tokens=2),
        # 12, a tenth of 1001, and five quarters of 10; each rounded up.
        _usage(12, 2, 3, read=1001, written=10, charged=12 + 101 + 13),
    ),
    "pings": Golden(
        _PING + _start(input_tokens=12, output_tokens=1) + _PING + _PING + _text("Yes") + _PING + _end(output_tokens=2),
        _usage(12, 2, 3),
    ),
    "error": Golden(
        _start(input_tokens=12, output_tokens=1)
        + _text("Ye")
        + _event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        _usage(12, None, 2, PARTIAL),
    ),
    "no usage": Golden(_start() + _text("Yes") + _end(), _usage(None, None, 3, ESTIMATED)),
}

# --- Anthropic's Text Completions, version 2023-01-01: https://docs.claude.com/en/api/complete -----------------------


def _completion(text: str, reason: str | None = None) -> bytes:
    value = {"completion": text, "stop_reason": reason, "model": "claude-2", "stop": None, "log_id": "l"}
    return _data(value, b"\r\n\r\n")


COMPLETE = {
    "text": Golden(
        _completion(" Grüße")
        + _completion(" Grüße, 世界 👋")
        + _completion(" Grüße, 世界 👋!", "stop_sequence")
        + b"data: [DONE]\r\n\r\n",
        _usage(None, None, 13, ESTIMATED),
    ),
    "pings": Golden(
        b"event: ping\r\ndata: {}\r\n\r\n" + _completion(" Yes", "max_tokens") + b"data: [DONE]\r\n\r\n",
        _usage(None, None, 4, ESTIMATED),
    ),
    "error": Golden(
        _completion(" Ye")
        + b"event: error\r\n"
        + _data({"error": {"type": "overloaded_error", "message": "Overloaded"}}, b"\r\n\r\n"),
        _usage(None, None, 3, ESTIMATED),
    ),
}

# --- OpenAI's Chat Completions: https://platform.openai.com/docs/api-reference/chat-streaming ------------------------

_DONE = b"data: [DONE]\n\n"


def _chunk(delta: dict[str, Any] | None, reason: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    return _data({"id": "c_1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more})


def _counts(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return counts | more


_ROLE = {"role": "assistant", "content": "", "refusal": None}

CHAT = {
    "text": Golden(
        _chunk(_ROLE, usage=None)
        + _chunk({"content": "Grüße, "}, usage=None)
        + _chunk({"content": "世界 👋"}, usage=None)
        + _chunk({}, "stop", usage=None)
        + _chunk(None, usage=_counts(12, 9))
        + _DONE,
        _usage(12, 9, 11),
    ),
    "tools": Golden(
        _chunk({"role": "assistant", "content": None})
        + _chunk({"tool_calls": [{"index": 0, "id": "t_1", "function": {"name": "f", "arguments": ""}}]})
        + _chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]})
        + _chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "usage"}'}}]})
        + _chunk({}, "tool_calls")
        + _chunk(None, usage=_counts(12, 30))
        + _DONE,
        _usage(12, 30, 14),
    ),
    "thinking": Golden(
        _chunk({"role": "assistant", "reasoning_content": "Hm"})
        + _chunk({"reasoning_content": "…"})
        + _chunk({"content": "Yes"}, "stop")
        + _chunk(None, usage=_counts(12, 40, completion_tokens_details={"reasoning_tokens": 38}))
        + _DONE,
        _usage(12, 40, 6, reasoning=38),
    ),
    "cache": Golden(
        _chunk({"content": "Yes"}, "stop")
        + _chunk(None, usage=_counts(1200, 2, prompt_tokens_details={"cached_tokens": 1024, "audio_tokens": 0}))
        + _DONE,
        _usage(1200, 2, 3, read=1024),
    ),
    "pings": Golden(
        b": processing\n\n" + _chunk(_ROLE) + b": processing\n\n" + _chunk({"content": "Yes"}, "stop") + _DONE,
        _usage(None, None, 3, ESTIMATED),
    ),
    "error": Golden(
        _chunk(_ROLE)
        + _chunk({"content": "Ye"})
        + _data({"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}),
        _usage(None, None, 2, ESTIMATED),
    ),
    "no usage": Golden(
        _chunk(_ROLE) + _chunk({"content": "Yes"}) + _chunk({}, "stop") + _DONE, _usage(None, None, 3, ESTIMATED)
    ),
}

# --- Fireworks' Completions: https://docs.fireworks.ai/api-reference/post-completions ---------------------------------


def _text_chunk(text: str, reason: str | None = None, usage: dict[str, Any] | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return _data({"id": "c_1", "object": "text_completion", "model": "m", "choices": [choice], "usage": usage})


TEXT = {
    "text": Golden(
        _text_chunk("Grüße, ") + _text_chunk("世界 👋") + _text_chunk("", "stop", _counts(12, 9)) + _DONE,
        _usage(12, 9, 11),
    ),
    "cache": Golden(
        _text_chunk("Yes", "stop", _counts(12, 1, prompt_tokens_details={"cached_tokens": 8})) + _DONE,
        _usage(12, 1, 3, read=8),
    ),
    "error": Golden(_text_chunk("Ye") + _data({"error": {"message": "x"}}), _usage(None, None, 2, ESTIMATED)),
    "no usage": Golden(_text_chunk("Yes", "length") + _DONE, _usage(None, None, 3, ESTIMATED)),
}

# --- OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses-streaming ---------------------------


def _responses(*events: dict[str, Any]) -> bytes:
    return b"".join(_event({**event, "sequence_number": number}) for number, event in enumerate(events))


def _made(status: str, *output: dict[str, Any], usage: dict[str, Any] | None = None) -> dict[str, Any]:
    tools = [{"type": "function", "name": "f", "parameters": {"properties": {"usage": {"type": "object"}}}}]
    response = {"id": "resp_1", "status": status, "model": "m", "output": output, "tools": tools, "usage": usage}
    return {"type": f"response.{status}", "response": {**response, "user": None, "metadata": {"usage": "none"}}}


def _delta(kind: str, text: str) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "item_id": "msg_1", "output_index": 0, "delta": text}


def _used(prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


def _said(*texts: str) -> dict[str, Any]:
    parts = [{"type": "output_text", "annotations": [], "text": text} for text in texts]
    return {"id": "msg_1", "type": "message", "role": "assistant", "content": parts}


_CREATED = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "usage": None}}
_CALL = {"id": "fc_1", "type": "function_call", "call_id": "c_1", "name": "f", "arguments": '{"a": "usage"}'}
_THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm…"}]}

RESPONSES = {
    "text": Golden(
        _responses(
            _CREATED,
            {"type": "response.output_item.added", "output_index": 0, "item": _said() | {"content": []}},
            _delta("output_text", "Grüße, "),
            _delta("output_text", "世界 👋"),
            {"type": "response.output_text.done", "item_id": "msg_1", "text": "Grüße, 世界 👋"},
            _made("completed", _said("Grüße, 世界 👋"), usage=_used(12, 9)),
        ),
        _usage(12, 9, 11, read=0, reasoning=0),
    ),
    "tools": Golden(
        _responses(
            _CREATED,
            _delta("function_call_arguments", '{"a":'),
            _delta("function_call_arguments", ' "usage"}'),
            {"type": "response.output_item.done", "output_index": 0, "item": _CALL},
            _made("completed", _CALL, usage=_used(12, 30)),
        ),
        _usage(12, 30, 14, read=0, reasoning=0),
    ),
    "thinking": Golden(
        _responses(
            _CREATED,
            _delta("reasoning_summary_text", "Hm…"),
            _delta("output_text", "Yes"),
            _made("completed", _THOUGHT, _said("Yes"), usage=_used(12, 40, reasoning=38)),
        ),
        _usage(12, 40, 6, read=0, reasoning=38),
    ),
    "cache": Golden(
        _responses(
            _CREATED,
            _delta("output_text", "Yes"),
            _made("completed", _said("Yes"), usage=_used(1200, 2, cached=1024)),
        ),
        _usage(1200, 2, 3, read=1024, reasoning=0),
    ),
    "incomplete": Golden(
        _responses(_CREATED, _delta("output_text", "Ye"), _made("incomplete", _said("Ye"), usage=_used(12, 1))),
        _usage(12, 1, 2, read=0, reasoning=0),
    ),
    "failed": Golden(
        _responses(_CREATED, _delta("output_text", "Ye"), _made("failed", _said("Ye"))),
        _usage(None, None, 2, ESTIMATED),
    ),
    "error": Golden(
        _responses(
            _CREATED,
            _delta("output_text", "Ye"),
            {"type": "error", "code": "server_error", "message": "The server had an error", "param": None},
        ),
        _usage(None, None, 2, ESTIMATED),
    ),
}

# --- Google's Gemini API: https://ai.google.dev/api/generate-content --------------------------------------------------


def _generated(*parts: dict[str, Any], reason: str | None = None, **counts: int) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    chunk = {"candidates": [candidate | ({"finishReason": reason} if reason else {})], "modelVersion": "m"}
    return _data(chunk | ({"usageMetadata": counts} if counts else {}), b"\r\n\r\n")


GEMINI = {
    "text": Golden(
        _generated({"text": "Grüße, "}, promptTokenCount=12, candidatesTokenCount=4, totalTokenCount=16)
        + _generated(
            {"text": "世界 👋"}, reason="STOP", promptTokenCount=12, candidatesTokenCount=9, totalTokenCount=21
        ),
        _usage(12, 9, 11),
    ),
    "tools": Golden(
        _generated(
            {"functionCall": {"name": "f", "args": {"a": "usageMetadata"}}},
            reason="STOP",
            promptTokenCount=12,
            candidatesTokenCount=30,
            toolUsePromptTokenCount=5,
            totalTokenCount=47,
        ),
        _usage(17, 30, 21),
    ),
    "thinking": Golden(
        _generated({"text": "Hm", "thought": True}, promptTokenCount=12, thoughtsTokenCount=38, totalTokenCount=50)
        + _generated(
            {"text": "Yes", "thoughtSignature": "EqQB"},
            reason="STOP",
            promptTokenCount=12,
            candidatesTokenCount=2,
            thoughtsTokenCount=38,
            totalTokenCount=52,
        ),
        _usage(12, 40, 5),
    ),
    "cache": Golden(
        _generated({"text": "Yes"}, promptTokenCount=1200, cachedContentTokenCount=1024, totalTokenCount=1200)
        + _generated(
            reason="STOP",
            promptTokenCount=1200,
            cachedContentTokenCount=1024,
            candidatesTokenCount=2,
            totalTokenCount=1202,
        ),
        _usage(1200, 2, 3, read=1024),
    ),
    "blocked": Golden(
        _data(
            {
                "promptFeedback": {"blockReason": "SAFETY"},
                "usageMetadata": {"promptTokenCount": 12, "totalTokenCount": 12},
            },
            b"\r\n\r\n",
        ),
        _usage(12, 0, 0),
    ),
    "error": Golden(
        _generated({"text": "Ye"}, promptTokenCount=12, candidatesTokenCount=1, totalTokenCount=13)
        + _data({"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}, b"\r\n\r\n"),
        _usage(12, 1, 2, PARTIAL),
    ),
    "no usage": Golden(_generated({"text": "Yes"}, reason="STOP"), _usage(None, None, 3, ESTIMATED)),
}

BY_UPSTREAM = {
    "/v1/messages": MESSAGES,
    "/v1/complete": COMPLETE,
    "/v1/chat/completions": CHAT,
    "/inference/v1/chat/completions": CHAT,
    "/inference/v1/completions": TEXT,
    "/v1/completions": TEXT,
    "/v1/responses": RESPONSES,
    "/v1/responses/compact": RESPONSES,
    "/v1beta/models/gemini-2.5-pro:generateContent": GEMINI,
}
"""The streams of each API, by the path of the upstream in ``tests.support.provider_routes``."""
