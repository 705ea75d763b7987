"""Usage in the responses of Anthropic's Messages API.

``usage.input_tokens`` and ``usage.output_tokens`` of a message; in a stream the figures of ``message_start`` and of the
last ``message_delta``, which are cumulative. Tokens read from or written to a cache are not in ``input_tokens``.
"""

from __future__ import annotations

from typing import Any

from cgw.model import BodyWindow
from cgw.providers.usage_reading import (
    Reading,
    figure_in,
    list_frames,
    list_objects,
    object_in,
    objects_in,
    read_object,
    text_length_in,
)


def read_message(body: BodyWindow) -> Reading:
    """Read a message that was not streamed."""
    return read_object(body, "input_tokens", "output_tokens", _count_characters)


def _count_characters(message: dict[str, Any]) -> int:
    return sum(text_length_in(block, "text") for block in objects_in(message, "content"))


def read_message_stream(body: BodyWindow) -> Reading:
    """Read a streamed message. It is final if ``message_stop`` was seen."""
    prompt: int | None = None
    completion: int | None = None
    length = 0
    is_final = False
    for value in list_objects(list_frames(body)):
        kind = value.get("type")
        if kind == "content_block_delta":
            length += text_length_in(object_in(value, "delta"), "text")
        elif kind == "message_start":
            # Its output_tokens are only those of the first event: without a message_delta the count is unknown.
            prompt = figure_in(object_in(object_in(value, "message"), "usage"), "input_tokens")
        elif kind == "message_delta":
            usage = object_in(value, "usage")
            completion = _latest(completion, figure_in(usage, "output_tokens"))
            # Server tools can make the prompt grow after message_start.
            prompt = _largest(prompt, figure_in(usage, "input_tokens"))
        elif kind == "message_stop":
            is_final = True
    return Reading(prompt, completion, length if body.is_whole else None, is_final)


def _latest(known: int | None, figure: int | None) -> int | None:
    return known if figure is None else figure


def _largest(known: int | None, figure: int | None) -> int | None:
    if known is None or figure is None:
        return _latest(known, figure)
    return max(known, figure)
