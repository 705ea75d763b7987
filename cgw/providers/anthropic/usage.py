"""Usage in the responses of Anthropic's Messages API.

``usage.input_tokens`` and ``usage.output_tokens`` of a message; in a stream the figures of ``message_start`` and of the
last ``message_delta``, which are cumulative. Tokens read from or written to a cache are not in ``input_tokens``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cgw.model import BodyWindow
from cgw.providers.usage_reading import (
    Figure,
    PartsDecoder,
    Reading,
    figure_in,
    list_data,
    objects_in,
    read_object,
    text_in,
)

# The parts of a message, or of an event of its stream, that are read. Structs without gc: they never form cycles.


class _Text(msgspec.Struct, gc=False):
    text: str | None = None


class _Figures(msgspec.Struct, gc=False):
    input_tokens: Figure | None = None
    output_tokens: Figure | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Text] = []
    usage: _Figures | None = None


class _Start(msgspec.Struct, gc=False):
    usage: _Figures | None = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    delta: _Text | None = None  # of content_block_delta
    message: _Start | None = None  # of message_start
    usage: _Figures | None = None  # of message_delta


def _take_message(value: dict[str, Any]) -> _Message:
    return _Message([_Text(text_in(block, "text")) for block in objects_in(value, "content")], _take_figures(value))


def _take_event(value: dict[str, Any]) -> _Event:
    delta, message = value.get("delta"), value.get("message")
    return _Event(
        text_in(value, "type"),
        _Text(text_in(delta, "text")) if isinstance(delta, dict) else None,
        _Start(_take_figures(message)) if isinstance(message, dict) else None,
        _take_figures(value),
    )


def _take_figures(value: dict[str, Any]) -> _Figures | None:
    usage = value.get("usage")
    if not isinstance(usage, dict):
        return None
    return _Figures(figure_in(usage, "input_tokens"), figure_in(usage, "output_tokens"))


MESSAGES = PartsDecoder(_Message, _take_message)
EVENTS = PartsDecoder(_Event, _take_event)


def read_message(body: BodyWindow) -> Reading:
    """Read a message that was not streamed."""
    return read_object(body, "input_tokens", "output_tokens", _read_whole)


def _read_whole(data: bytes) -> Reading:
    message = MESSAGES.decode(data)
    if message is None:
        return Reading()
    length = sum([len(block.text) for block in message.content if block.text is not None])
    usage = message.usage or _Figures()
    return Reading(usage.input_tokens, usage.output_tokens, length, is_final=True)


def read_message_stream(body: BodyWindow) -> Reading:
    """Read a streamed message. It is final if ``message_stop`` was seen."""
    prompt: int | None = None
    completion: int | None = None
    length = 0
    is_final = False
    for data in list_data(body):
        event = EVENTS.decode(data)
        if event is None:
            continue
        if event.type == "content_block_delta":
            if event.delta is not None and event.delta.text is not None:
                length += len(event.delta.text)
        elif event.type == "message_start":
            # Its output_tokens are only those of the first event: without a message_delta the count is unknown.
            start = event.message
            prompt = start.usage.input_tokens if start is not None and start.usage is not None else None
        elif event.type == "message_delta" and event.usage is not None:
            # Cumulative figures, so the last one counts.
            completion = _latest(completion, event.usage.output_tokens)
            # Server tools can make the prompt grow after message_start.
            prompt = _largest(prompt, event.usage.input_tokens)
        elif event.type == "message_stop":
            is_final = True
    # Without the middle of the body, the length would be too small.
    return Reading(prompt, completion, length if body.is_whole else None, is_final)


def _latest(known: int | None, figure: int | None) -> int | None:
    return known if figure is None else figure


def _largest(known: int | None, figure: int | None) -> int | None:
    if known is None or figure is None:
        return _latest(known, figure)
    return max(known, figure)
