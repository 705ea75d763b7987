"""Usage in the responses of OpenAI's Responses API.

``usage`` of the response object: that of a whole response, and that of the last event of a stream, which repeats the
whole object. It stands behind the instructions, the output and the tools, so that it is in the last bytes of the body
however long these are. Tokens that were read from the cache are part of ``input_tokens``, and tokens of reasoning part
of ``output_tokens``.
"""

from __future__ import annotations

import json
import re
from operator import attrgetter
from typing import Any

import msgspec

from cgw.model import BodyWindow
from cgw.providers.usage_reading import Figure, PartsDecoder, Reading, choose_length, list_data, sum_lengths
from cgw.wire.sse import parse_data

FINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")
"""The events of which one ends every complete stream (https://platform.openai.com/docs/api-reference/responses-streaming)."""

FINAL_MARKERS = tuple(f"event: {name}".encode() for name in FINAL_EVENTS)

_MAX_USAGE_CANDIDATES = 8
_FINAL_LINE = re.compile(
    rb"(?:\A|[\r\n])(event: ?(?:" + b"|".join(map(re.escape, (n.encode() for n in FINAL_EVENTS))) + rb")[\r\n])"
)

# The parts of a response that are read. Structs without gc: they never form cycles.


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct, gc=False):
    id: str | None = None
    content: list[_Part] | None = None  # of a message, and of reasoning that is told
    summary: list[_Part] | None = None  # of reasoning
    arguments: str | None = None  # of a function's call
    input: str | None = None  # of the call of a custom tool


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: Figure | None = None
    cache_write_tokens: Figure | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: Figure | None = None


class _Figures(msgspec.Struct, gc=False):
    input_tokens: Figure | None = None
    output_tokens: Figure | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Response(msgspec.Struct, gc=False):
    id: str | None = None
    output: list[_Item] = []
    usage: _Figures | None = None  # null before the end


class _Event(msgspec.Struct, gc=False):
    response: _Response | None = None
    delta: str | None = None
    item: _Item | None = None
    item_id: str | None = None


_RESPONSES = PartsDecoder(_Response)
_EVENTS = PartsDecoder(_Event)
_FIGURES = PartsDecoder(_Figures)
_prefix_decoder = json.JSONDecoder()


def read_response(body: BodyWindow) -> Reading:
    """Read a response that was not streamed, also one of which the middle is missing."""
    if not body.is_whole:
        usage = _find_usage(body.tail or body.head)
        return Reading() if usage is None else _build_reading(usage, None, is_final=True)
    response = _RESPONSES.decode(body.head + body.tail)
    if response is None:
        return Reading()
    return _build_reading(response.usage or _Figures(), _count_characters(response), is_final=True)


def read_response_stream(body: BodyWindow) -> Reading:
    """Read a streamed response. It is final if one of the events that end a stream was seen."""
    final = _read_final_event(body)
    if final is not None:
        return _build_reading(final.usage or _Figures(), _count_characters(final), is_final=True)
    if not body.is_whole:
        # The last event may be longer than the window. No other has figures.
        usage = _find_usage(body.tail)
        if usage is not None:
            return _build_reading(usage, None, is_final=True)
    length = sum_lengths(map(attrgetter("delta"), _EVENTS.decode_all(list_data(body))))
    return Reading(completion_character_count=choose_length(body, length, None))


def list_ids(body: BodyWindow) -> set[str]:
    """Return the ids of a response and of the items of its output, as far as the body's window tells them."""
    if body.is_whole:
        whole = _RESPONSES.decode(body.head + body.tail)
        if whole is not None:
            return _collect_ids(whole)
    if (final := _read_final_event(body)) is not None:
        return _collect_ids(final)
    # The end is missing, or longer than the window: what the events of the window tell.
    found: set[str] = set()
    for event in _EVENTS.decode_all(list_data(body, scan_bytes=len(body.head) + len(body.tail))):
        found |= {event.item_id or "", (event.item or _Item()).id or "", (event.response or _Response()).id or ""}
    return found - {""}


def _collect_ids(response: _Response) -> set[str]:
    return {response.id or "", *(item.id or "" for item in response.output)} - {""}


def _read_final_event(body: BodyWindow) -> _Response | None:
    """Return the response in the last event of a stream; ``None`` if the window does not have all of it."""
    data = body.head + body.tail if body.is_whole else body.tail
    starts = [line.start(1) for line in _FINAL_LINE.finditer(data)]
    contents = parse_data(data[starts[-1] :]) if starts else []
    event = _EVENTS.decode(contents[0]) if contents else None
    return None if event is None else event.response


def _find_usage(data: bytes) -> _Figures | None:
    """Return the figures in the last bytes of a response or of a stream; ``None`` if there are none.

    Inside a text its quotation marks would be escaped, and neither tools nor metadata can have figures there: schemas
    and texts have other types.
    """
    end = len(data)
    for _ in range(_MAX_USAGE_CANDIDATES):
        start = data.rfind(b'"usage"', 0, end)
        if start < 0:
            return None
        value = _decode_prefix(data[start + len(b'"usage"') :])
        figures = _FIGURES.take_parts(value) if isinstance(value, dict) else _Figures()
        if figures.input_tokens is not None and figures.output_tokens is not None:
            return figures
        end = start
    return None


def _decode_prefix(data: bytes) -> Any:
    """Return the JSON value at the start of ``data``, behind a colon; ``None`` if there is none."""
    text = data.decode("utf-8", "replace").lstrip()
    try:
        return _prefix_decoder.raw_decode(text[1:].lstrip())[0] if text.startswith(":") else None
    except (ValueError, RecursionError):
        return None


def _build_reading(usage: _Figures, length: int | None, *, is_final: bool) -> Reading:
    cached = usage.input_tokens_details or _InputDetails()
    return Reading(
        usage.input_tokens,
        usage.output_tokens,
        length,
        is_final,
        cache_read_token_count=cached.cached_tokens,
        cache_write_token_count=cached.cache_write_tokens,
        reasoning_token_count=(usage.output_tokens_details or _OutputDetails()).reasoning_tokens,
    )


def _count_characters(response: _Response) -> int:
    """Return the length of the text, the thinking and the calls of tools in a response's output."""
    count = 0
    for item in response.output:
        count += len(item.arguments or "") + len(item.input or "")
        count += sum(len(part.text or part.refusal or "") for part in (*(item.content or ()), *(item.summary or ())))
    return count
