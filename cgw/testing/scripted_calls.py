"""Calls of tools, in the form of each API that has no module of its own for them. Pure.

Formats are those of https://docs.claude.com/en/api/messages-streaming,
https://platform.openai.com/docs/api-reference/chat-streaming and https://ai.google.dev/api/generate-content. A call
counts as many output tokens as its arguments have words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cgw.testing.script import ScriptedCall

_PIECE_CHARACTERS = 8
"""Of arguments that are streamed: as in the APIs, which split JSON anywhere."""


def count_call_tokens(calls: Sequence[ScriptedCall]) -> int:
    """Return the output tokens of ``calls``."""
    return sum(len(call.arguments.split()) for call in calls)


def split_arguments(call: ScriptedCall) -> list[str]:
    """Return the pieces in which the arguments are streamed; joined, they are the arguments."""
    text = call.arguments
    return [text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS)]


def count_message_results(body: Mapping[str, Any]) -> int:
    """Return how many results of calls a conversation with Anthropic's API has."""
    parts = (part for message in body["messages"] for part in _list_parts(message.get("content")))
    return sum(part.get("type") == "tool_result" for part in parts)


def build_tool_use(call: ScriptedCall, serial: int, index: int) -> dict[str, Any]:
    """Return a content block of Anthropic's API."""
    id_ = f"toolu_scripted{serial:06d}{index}"
    return {"type": "tool_use", "id": id_, "name": call.name, "input": json.loads(call.arguments)}


def list_tool_use_events(calls: Sequence[ScriptedCall], serial: int) -> Iterator[dict[str, Any]]:
    """Yield the events of Anthropic's API for a message that is calls alone."""
    for index, call in enumerate(calls):
        block = build_tool_use(call, serial, index) | {"input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": block}
        for piece in split_arguments(call):
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}


def count_chat_results(body: Mapping[str, Any]) -> int:
    """Return how many results of calls a conversation of Chat Completions has."""
    return sum(message.get("role") == "tool" for message in body["messages"])


def build_tool_calls(calls: Sequence[ScriptedCall], serial: int) -> list[dict[str, Any]]:
    """Return the ``tool_calls`` of a message of Chat Completions."""
    return [
        {
            "id": f"call_scripted{serial:06d}{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(calls)
    ]


def list_tool_call_deltas(calls: Sequence[ScriptedCall], serial: int) -> Iterator[dict[str, Any]]:
    """Yield the deltas of a stream of Chat Completions, after the one with the role."""
    for index, call in enumerate(build_tool_calls(calls, serial)):
        function = call["function"] | {"arguments": ""}
        yield {"tool_calls": [{"index": index, **call, "function": function}]}
        for piece in split_arguments(calls[index]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def count_function_responses(body: Mapping[str, Any]) -> int:
    """Return how many results of calls a conversation with the Gemini API has."""
    return sum("functionResponse" in part for turn in body["contents"] for part in _list_parts(turn.get("parts")))


def build_function_calls(calls: Sequence[ScriptedCall]) -> list[dict[str, Any]]:
    """Return the parts of the Gemini API, which sends each call as a whole, also in streams."""
    return [{"functionCall": {"name": call.name, "args": json.loads(call.arguments)}} for call in calls]


def _list_parts(content: object) -> list[Mapping[str, Any]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
