"""OpenAI's Responses API, as far as scripts need it: responses, whole and streamed, and what it stores of them.

Formats are those of https://platform.openai.com/docs/api-reference/responses and ``responses-streaming``. Token counts
are counts of words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, field, frozen

from cgw.testing.script import BodyPiece, Script, ScriptedAnswer, ScriptedCall
from cgw.testing.scripted_calls import count_call_tokens
from cgw.testing.scripted_dialects import RequestError, ScriptedChat, build_json, build_stream, build_whole, cut_answer

MAX_STORED = 1000
"""Responses that are kept; beyond that the oldest goes."""


@define
class Stored:
    """A stored response and the items of its input, with ids."""

    response: dict[str, Any]
    input_items: list[dict[str, Any]]


@frozen
class ScriptedResponses(ScriptedChat):
    """``POST /v1/responses`` and the routes below it. Responses are stored unless ``store`` is false."""

    path: str = "/v1/responses"
    stored: dict[str, Stored] = field(factory=dict)

    def matches(self, path: str) -> bool:
        # A compaction is answered like a response: its own format has the same figures.
        return path in (self.path, f"{self.path}/compact")

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if "input" not in body:
            raise RequestError("Missing required parameter: 'input'.", "input")
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.stored:
            raise RequestError(f"Previous response with id '{previous}' not found.", "previous_response_id")
        known = {item["id"] for stored in self.stored.values() for item in stored.response["output"]}
        for item in list_items(body["input"]):
            if item.get("type") == "item_reference" and item.get("id") not in known:
                raise RequestError(f"Item with id '{item.get('id')}' not found.", "input")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        calls = script.choose_calls(count_results(body["input"]), has_tools=bool(body.get("tools")))
        most = body.get("max_output_tokens")
        tokens, is_cut = cut_answer(script, most if isinstance(most, int) else None)
        tokens = () if calls else tokens
        response = _build_response(body, serial)
        output = [_build_call(call, serial, index) for index, call in enumerate(calls)]
        if not calls:
            output = [_build_message("".join(tokens), serial, "incomplete" if is_cut else "completed")]
        prompt_tokens = count_input_tokens(body)
        output_tokens = len(tokens) + count_call_tokens(calls)
        final = response | {
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": output,
            "usage": {
                "input_tokens": prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt_tokens + output_tokens,
            },
        }
        self._store(body, final)
        if body.get("stream") is True:
            pieces = _list_events(script, response, final, tokens)
            return build_stream(script, self._headers(serial), tuple(_number(pieces)))
        return build_whole(script, self._headers(serial), final, len(tokens))

    def _store(self, body: Mapping[str, Any], response: dict[str, Any]) -> None:
        if body.get("store") is False:
            return
        items = [
            item | {"id": f"msg_in{index}{response['id']}"} for index, item in enumerate(list_items(body["input"]))
        ]
        self.stored[response["id"]] = Stored(response, items)
        if len(self.stored) > MAX_STORED:
            del self.stored[next(iter(self.stored))]

    def answer_stored(self, method: str, path: str, body: bytes, serial: int) -> ScriptedAnswer | None:
        """Answer a request below the route; ``None`` for what is not there. The key was checked."""
        headers = self._headers(serial)
        rest = path.removeprefix(f"{self.path}/")
        if rest == path:
            return None
        if (method, rest) == ("POST", "input_tokens"):
            counted = {"object": "response.input_tokens", "input_tokens": count_input_tokens(json.loads(body))}
            return build_json(200, headers, counted)
        id_, _, what = rest.partition("/")
        stored = self.stored.get(id_)
        if stored is None:
            return self.render_error(404, f"Response with id '{id_}' not found.", serial)
        match method, what:
            case "GET", "":
                return build_json(200, headers, stored.response)
            case "DELETE", "":
                del self.stored[id_]
                return build_json(200, headers, {"id": id_, "object": "response", "deleted": True})
            case "POST", "cancel":
                return self.render_error(400, "Cannot cancel a synchronous response.", serial)
            case "GET", "input_items":
                items = stored.input_items
                page = {"object": "list", "data": items, "has_more": False}
                ids = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
                return build_json(200, headers, page | ids)
        return None


def list_items(value: Any) -> list[dict[str, Any]]:
    """Return the items of an input, of which a text is one."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def count_results(value: Any) -> int:
    """Return how many results of calls an input has."""
    return sum(item.get("type") in ("function_call_output", "custom_tool_call_output") for item in list_items(value))


def count_input_tokens(body: Mapping[str, Any]) -> int:
    """Count the words of the instructions and of the messages' text."""
    count = len((body.get("instructions") or "").split())
    for item in list_items(body.get("input")):
        content = item.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content or []
        count += sum(len(part["text"].split()) for part in parts if isinstance(part.get("text"), str))
    return count


def _build_response(body: Mapping[str, Any], serial: int) -> dict[str, Any]:
    """Return the response as it is at the start, with its fields in the API's order."""
    return {
        "id": f"resp_scripted{serial:06d}",
        "object": "response",
        "created_at": 1_750_000_000 + serial,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": body["model"],
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def _build_message(text: str, serial: int, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": text}]
    return {
        "id": f"msg_scripted{serial:06d}",
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def _build_call(call: ScriptedCall, serial: int, index: int) -> dict[str, Any]:
    name = f"scripted{serial:06d}{index}"
    return {
        "id": f"fc_{name}",
        "type": "function_call",
        "status": "completed",
        "arguments": call.arguments,
        "call_id": f"call_{name}",
        "name": call.name,
    }


Event = tuple[float, dict[str, Any]]


def _list_events(
    script: Script, response: dict[str, Any], final: dict[str, Any], tokens: tuple[str, ...]
) -> Iterator[Event]:
    start, end = script.head_delay_seconds, script.token_at_seconds(max(0, len(tokens) - 1))
    yield start, {"type": "response.created", "response": response}
    yield start, {"type": "response.in_progress", "response": response}
    for index, item in enumerate(final["output"]):
        yield from _list_item_events(script, index, item, tokens)
    yield end, {"type": f"response.{final['status']}", "response": final}


def _list_item_events(script: Script, index: int, item: dict[str, Any], tokens: tuple[str, ...]) -> Iterator[Event]:
    start, end = script.head_delay_seconds, script.token_at_seconds(max(0, len(tokens) - 1))
    place: dict[str, Any] = {"output_index": index}
    inside = {"item_id": item["id"], **place}
    if item["type"] == "function_call":
        begun = item | {"status": "in_progress", "arguments": ""}
        yield start, {"type": "response.output_item.added", **place, "item": begun}
        pieces = [item["arguments"][at : at + 8] for at in range(0, len(item["arguments"]), 8)]
        for piece in pieces:
            yield start, {"type": "response.function_call_arguments.delta", **inside, "delta": piece}
        yield start, {"type": "response.function_call_arguments.done", **inside, "arguments": item["arguments"]}
        yield start, {"type": "response.output_item.done", **place, "item": item}
        return
    part = item["content"][0]
    inside["content_index"] = 0
    begun = item | {"status": "in_progress", "content": []}
    yield start, {"type": "response.output_item.added", **place, "item": begun}
    yield start, {"type": "response.content_part.added", **inside, "part": part | {"text": ""}}
    for number, token in enumerate(tokens):
        delta = {"type": "response.output_text.delta", **inside, "delta": token, "logprobs": []}
        yield script.token_at_seconds(number), delta
    yield end, {"type": "response.output_text.done", **inside, "text": part["text"], "logprobs": []}
    yield end, {"type": "response.content_part.done", **inside, "part": part}
    yield end, {"type": "response.output_item.done", **place, "item": item}


def _number(events: Iterator[Event]) -> Iterator[BodyPiece]:
    for number, (at, event) in enumerate(events):
        data = json.dumps({**event, "sequence_number": number}, ensure_ascii=False, separators=(",", ":"))
        yield BodyPiece(at, f"event: {event['type']}\ndata: {data}\n\n".encode())
