"""Usage in the responses of OpenAI's Chat Completions and Completions APIs, and of the many that follow them.

``usage`` of a completion; in a stream the ``usage`` of the last chunk that has one. OpenAI sends such a chunk only if
the request has ``stream_options: {"include_usage": true}``; Fireworks always does.

Tokens of the prompt that were read from the cache are part of ``prompt_tokens``, and count on quotas in full: the
discount is another one for each model, and OpenAI's own rate limits count them so.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec

from cgw.model import BodyWindow
from cgw.providers.usage_reading import (
    Figure,
    PartsDecoder,
    Reading,
    choose_length,
    list_data,
    read_object,
    sum_lengths,
)

DONE = b"[DONE]"
"""The data of a stream's last frame."""

DONE_MARKER = b"data: " + DONE
"""The line that ends a stream."""


# The parts of a completion, or of a chunk, that are read. Structs without gc: they never form cycles.


class _Function(msgspec.Struct, gc=False):
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Text(msgspec.Struct, gc=False):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    # Names that servers of open models have for the thinking.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Text | None = None  # of a whole chat completion
    delta: _Text | None = None  # of its chunks
    text: str | None = None  # of the older Completions API, whole and in chunks


class _Details(msgspec.Struct, gc=False):
    cached_tokens: Figure | None = None
    cache_write_tokens: Figure | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: Figure | None = None


class _Figures(msgspec.Struct, gc=False):
    prompt_tokens: Figure | None = None
    completion_tokens: Figure | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Completion(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Figures | None = None  # null in all chunks but the last


_NO_FIGURES = _Figures()

COMPLETIONS = PartsDecoder(_Completion)
FIGURES = PartsDecoder(_Figures)


def read_completion(body: BodyWindow) -> Reading:
    """Read a completion that was not streamed."""
    return read_object(body, _read_whole, _read_figures)


def _read_whole(data: bytes) -> Reading:
    completion = COMPLETIONS.decode(data)
    if completion is None:
        return Reading()
    length = 0
    for choice in completion.choices:
        length += _measure_choice(choice)
    return _build_reading(completion.usage or _NO_FIGURES, length, is_final=True)


def _read_figures(usage: dict[str, Any]) -> Reading:
    return _build_reading(FIGURES.take_parts(usage), None)


def read_completion_stream(body: BodyWindow) -> Reading:
    """Read a streamed completion. It is final if ``[DONE]`` was seen."""
    usage = _Figures()
    contents = list_data(body)
    is_final = bool(contents) and contents[-1] == DONE
    if is_final:
        contents.pop()  # it is not JSON
    chunks = COMPLETIONS.decode_all(contents)
    # A usage without figures does not replace an earlier one. Nearly all chunks have none, so C looks for the others.
    for figures in filter(None, map(_get_usage, chunks)):
        if figures != _Figures():
            usage = figures
    length = choose_length(body, _count_characters(chunks), usage.completion_tokens)
    return _build_reading(usage, length, is_final=is_final)


def _build_reading(usage: _Figures, length: int | None, *, is_final: bool = False) -> Reading:
    reading = Reading(usage.prompt_tokens, usage.completion_tokens, length, is_final)
    if (prompt := usage.prompt_tokens_details) is not None:
        reading.cache_read_token_count = prompt.cached_tokens
        reading.cache_write_token_count = prompt.cache_write_tokens
    if (completion := usage.completion_tokens_details) is not None:
        reading.reasoning_token_count = completion.reasoning_tokens
    return reading


def _measure_choice(choice: _Choice) -> int:
    """Return what :func:`_count_characters` does, for one choice: a tenth of the time of its calls into C."""
    count = 0 if choice.text is None else len(choice.text)
    text = choice.delta or choice.message
    if text is None:
        return count
    # One by one: most texts have content alone, and a loop would cost as much as all of this.
    if text.content is not None:
        count += len(text.content)
    if text.reasoning_content is not None:
        count += len(text.reasoning_content)
    if text.reasoning is not None:
        count += len(text.reasoning)
    if text.tool_calls is not None:
        for call in text.tool_calls:
            if call.function is not None and call.function.arguments is not None:
                count += len(call.function.arguments)
    return count


_get_usage = attrgetter("usage")
_get_choices = attrgetter("choices")
_get_delta = attrgetter("delta")
_get_tool_calls = attrgetter("tool_calls")
_get_choice_text = attrgetter("text")
_TEXT_PARTS = tuple(map(attrgetter, ("content", "reasoning_content", "reasoning")))


def _count_characters(chunks: Iterable[_Completion]) -> int:
    """Return the length of what the chunks of a stream have of text, thinking and arguments of tools."""
    choices: list[_Choice] = list(chain.from_iterable(map(_get_choices, chunks)))
    texts: list[_Text] = list(filter(None, map(_get_delta, choices)))
    if len(texts) < len(choices):  # not the chunks of a chat
        texts = [text for choice in choices if (text := choice.delta or choice.message) is not None]
    count = sum_lengths(map(_get_choice_text, choices))
    for part in _TEXT_PARTS:
        count += sum_lengths(map(part, texts))
    for call in chain.from_iterable(filter(None, map(_get_tool_calls, texts))):
        if call.function is not None:
            count += len(call.function.arguments or "")
    return count
