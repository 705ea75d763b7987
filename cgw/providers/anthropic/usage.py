"""Usage in the responses of Anthropic's Messages API.

``usage.input_tokens`` and ``usage.output_tokens`` of a message; in a stream the figures of ``message_start`` and of the
last ``message_delta``, which are cumulative. Tokens read from or written to a cache are not in ``input_tokens``.

They count on quotas by their price (https://docs.claude.com/en/docs/build-with-claude/prompt-caching): a token that was
read as a tenth, one that was written as five quarters of a token of the prompt.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import msgspec

from cgw.model import BodyWindow
from cgw.providers.usage_reading import (
    Figure,
    PartsDecoder,
    Reading,
    choose_length,
    count_json,
    largest,
    latest,
    list_data,
    read_object,
    sum_lengths,
)

# The parts of a message, or of an event of its stream, that are read. Structs without gc: they never form cycles.


class _Block(msgspec.Struct, gc=False):
    """A block of a message's content: text, thinking, or the call of a tool."""

    text: str | None = None
    thinking: str | None = None
    input: Any = None


class _Delta(msgspec.Struct, gc=False):
    """A piece of a block's text, of its thinking, or of the JSON of a tool's input."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Figures(msgspec.Struct, gc=False):
    input_tokens: Figure | None = None
    output_tokens: Figure | None = None
    cache_read_input_tokens: Figure | None = None
    cache_creation_input_tokens: Figure | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Block] = []
    usage: _Figures | None = None


class _Start(msgspec.Struct, gc=False):
    usage: _Figures | None = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    delta: _Delta | None = None  # of content_block_delta
    message: _Start | None = None  # of message_start
    usage: _Figures | None = None  # of message_delta


_NO_FIGURES = _Figures()

MESSAGES = PartsDecoder(_Message)
EVENTS = PartsDecoder(_Event)
FIGURES = PartsDecoder(_Figures)


def read_message(body: BodyWindow) -> Reading:
    """Read a message that was not streamed."""
    return read_object(body, _read_whole, _read_figures)


def _read_whole(data: bytes) -> Reading:
    message = MESSAGES.decode(data)
    if message is None:
        return Reading()
    length = 0
    for block in message.content:
        if block.text is not None:
            length += len(block.text)
        if block.thinking is not None:
            length += len(block.thinking)
        if block.input is not None:
            length += count_json(block.input)
    return _build_reading(message.usage or _NO_FIGURES, length, is_final=True)


def _read_figures(usage: dict[str, Any]) -> Reading:
    return _build_reading(FIGURES.take_parts(usage), None)


def read_message_stream(body: BodyWindow) -> Reading:
    """Read a streamed message. It is final if ``message_stop`` was seen."""
    usage = _Figures()
    is_final = False
    events = EVENTS.decode_all(list_data(body))
    deltas = [event.delta for event in events if event.type == "content_block_delta" and event.delta is not None]
    for event in [event for event in events if event.type in _USAGE_EVENTS]:
        if event.type == "message_start":
            if event.message is not None and event.message.usage is not None:
                usage = event.message.usage
                # Only those of the first event: without a message_delta the count is unknown.
                usage.output_tokens = None
        elif event.type == "message_stop":
            is_final = True
        elif event.usage is not None:
            _add_delta(usage, event.usage)
    length = sum([sum_lengths(map(part, deltas)) for part in _DELTA_PARTS])
    return _build_reading(usage, choose_length(body, length, usage.output_tokens), is_final=is_final)


_USAGE_EVENTS = ("message_start", "message_delta", "message_stop")
_DELTA_PARTS = tuple(map(attrgetter, ("text", "thinking", "partial_json")))


def _add_delta(usage: _Figures, delta: _Figures) -> None:
    """Bring ``usage`` up to date with a ``message_delta``, whose figures are cumulative."""
    usage.output_tokens = latest(usage.output_tokens, delta.output_tokens)
    # Server tools can make the prompt grow after message_start.
    usage.input_tokens = largest(usage.input_tokens, delta.input_tokens)
    usage.cache_read_input_tokens = largest(usage.cache_read_input_tokens, delta.cache_read_input_tokens)
    usage.cache_creation_input_tokens = largest(usage.cache_creation_input_tokens, delta.cache_creation_input_tokens)


def _build_reading(usage: _Figures, length: int | None, *, is_final: bool = False) -> Reading:
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    charged = None
    if usage.input_tokens is not None and (read or written):
        # Rounded up, so that nothing is free.
        charged = usage.input_tokens + -(-(read or 0) // 10) + -(-5 * (written or 0) // 4)
    return Reading(usage.input_tokens, usage.output_tokens, length, is_final, read, written, charged)
