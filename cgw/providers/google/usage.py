"""Usage in the responses of the Gemini API.

``usageMetadata`` of a response; in a stream that of the last chunk that has one, as its figures are cumulative.
Thinking is not in ``candidatesTokenCount``, nor is what tools added to the prompt in ``promptTokenCount``: both are
added.

Tokens of the prompt that were read from a cache are part of ``promptTokenCount``, and count on quotas in full, as in
Google's own rate limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from cgw.model import BodyWindow
from cgw.providers.usage_reading import (
    SCAN_BYTES,
    Figure,
    PartsDecoder,
    Reading,
    choose_length,
    count_json,
    list_data,
    read_object,
)

_KEY = "usageMetadata"

# The parts of a response, or of a chunk, that are read. Structs without gc: they never form cycles.


class _Call(msgspec.Struct, gc=False):
    args: Any = None


class _Part(msgspec.Struct, gc=False):
    """A part of the content: text, which may be thinking, or the call of a function."""

    text: str | None = None
    functionCall: _Call | None = None


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct, gc=False):
    content: _Content | None = None
    finishReason: str | None = None


class _Feedback(msgspec.Struct, gc=False):
    blockReason: str | None = None


class _Figures(msgspec.Struct, gc=False):
    promptTokenCount: Figure | None = None
    candidatesTokenCount: Figure | None = None
    thoughtsTokenCount: Figure | None = None
    toolUsePromptTokenCount: Figure | None = None
    cachedContentTokenCount: Figure | None = None
    totalTokenCount: Figure | None = None


class _Response(msgspec.Struct, gc=False):
    candidates: list[_Candidate] = []
    promptFeedback: _Feedback | None = None  # of a prompt that was blocked: there are no candidates then
    usageMetadata: _Figures | None = None


RESPONSES = PartsDecoder(_Response)
FIGURES = PartsDecoder(_Figures)


def read_response(body: BodyWindow) -> Reading:
    """Read a response that was not streamed."""
    return read_object(body, _read_whole, _read_figures, _KEY)


def _read_whole(data: bytes) -> Reading:
    response = RESPONSES.decode(data)
    if response is None:
        return Reading()
    return _build_reading(response.usageMetadata or _Figures(), _count_characters(response), is_final=True)


def _read_figures(usage: dict[str, Any]) -> Reading:
    return _build_reading(FIGURES.take_parts(usage), None)


def read_response_stream(body: BodyWindow) -> Reading:
    """Read a streamed response. It is final if a chunk says why it ended: the API has no other end marker."""
    reading = _read_stream(body, SCAN_BYTES)
    if reading.is_final or body.is_whole:
        return reading
    # The last chunk may be larger than that: it has signatures of thinking, and the sources of a search.
    return _read_stream(body, max(len(body.head), len(body.tail)))


def _read_stream(body: BodyWindow, scan_bytes: int) -> Reading:
    usage = _Figures()
    length = 0
    is_final = False
    for chunk in RESPONSES.decode_all(list_data(body, scan_bytes)):
        length += _count_characters(chunk)
        # The reason may come with the last text, and the last figures after it.
        is_final = is_final or _has_ended(chunk)
        if chunk.usageMetadata is not None and chunk.usageMetadata != _Figures():
            usage = chunk.usageMetadata
    reading = _build_reading(usage, None, is_final=is_final)
    reading.completion_character_count = choose_length(body, length, reading.completion_token_count, scan_bytes)
    return reading


def read_response_array(body: BodyWindow) -> Reading:
    """Read a response that was streamed as one JSON array of chunks, which the API sends without ``alt=sse``.

    An object, such as an error, is read as a response that was not streamed.
    """
    if body.head[:1] != b"[":
        return read_response(body)
    if not body.is_whole:
        # The last chunk is at the end of the window, and the array's own end behind it.
        tail = body.tail.rstrip().removesuffix(b"]").rstrip()
        return read_object(replace(body, tail=tail), _read_whole, _read_figures, _KEY)
    usage, length, is_final = _Figures(), 0, False
    for value in _list_items(body.head + body.tail):
        chunk = RESPONSES.take_parts(value)
        length += _count_characters(chunk)
        is_final = is_final or _has_ended(chunk)
        if chunk.usageMetadata is not None and chunk.usageMetadata != _Figures():
            usage = chunk.usageMetadata
    return _build_reading(usage, length, is_final=is_final)


def _list_items(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON array that may be cut off, up to the last one that is whole."""
    text = data.decode("utf-8", "replace")
    decoder, at = json.JSONDecoder(), 1
    while True:
        while at < len(text) and text[at] in ", \t\r\n":
            at += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            yield value


def _has_ended(chunk: _Response) -> bool:
    if chunk.promptFeedback is not None and chunk.promptFeedback.blockReason is not None:
        return True
    return any(candidate.finishReason is not None for candidate in chunk.candidates)


def _count_characters(response: _Response) -> int:
    """Return the length of a response's text, thinking, and arguments of functions."""
    count = 0
    for candidate in response.candidates:
        for part in candidate.content.parts if candidate.content is not None else ():
            count += len(part.text or "")
            if part.functionCall is not None and part.functionCall.args is not None:
                count += count_json(part.functionCall.args)
    return count


def _build_reading(usage: _Figures, length: int | None, *, is_final: bool = False) -> Reading:
    prompt = usage.promptTokenCount
    if prompt is not None:
        prompt += usage.toolUsePromptTokenCount or 0
    completion = usage.candidatesTokenCount
    if completion is not None or usage.thoughtsTokenCount is not None:
        completion = (completion or 0) + (usage.thoughtsTokenCount or 0)
    elif prompt is not None and usage.totalTokenCount is not None:
        # Figures that are 0 are left out by the API: of a prompt that was blocked, for example.
        completion = max(0, usage.totalTokenCount - prompt)
    return Reading(prompt, completion, length, is_final=is_final, cache_read_token_count=usage.cachedContentTokenCount)
