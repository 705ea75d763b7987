"""Usage in the answers of Anthropic's Messages API.

``usage.input_tokens`` and ``usage.output_tokens`` of a message; in a stream the figures of ``message_start`` and of the
last ``message_delta``, which are cumulative. Tokens read from or written to a cache are not in ``input_tokens``.
"""

from __future__ import annotations

from typing import Any

from cgw.model import BodyWindow
from cgw.providers.usage_reading import (
    Reading,
    decode_json,
    figure_in,
    find_usage,
    list_frames,
    list_objects,
    object_in,
    objects_in,
    text_length_in,
)


def read_message(body: BodyWindow) -> Reading:
    """What a message that was not streamed came to."""
    if not body.is_whole:
        usage = find_usage(body)
        return Reading() if usage is None else _read_figures(usage, None)
    message = decode_json(body.head + body.tail)
    if not isinstance(message, dict):
        return Reading()
    length = sum(text_length_in(block, "text") for block in objects_in(message, "content"))
    return _read_figures(object_in(message, "usage"), length)


def _read_figures(usage: dict[str, Any], character_count: int | None) -> Reading:
    return Reading(figure_in(usage, "input_tokens"), figure_in(usage, "output_tokens"), character_count, is_final=True)


def read_message_stream(body: BodyWindow) -> Reading:
    """What a streamed message came to; final when ``message_stop`` was seen.

    The few output tokens that ``message_start`` speaks of are no figure for the whole: without a ``message_delta`` the
    count is unknown. Where server tools made the prompt grow, the last ``message_delta`` says so.
    """
    prompt: int | None = None
    completion: int | None = None
    length = 0
    is_final = False
    for value in list_objects(list_frames(body)):
        kind = value.get("type")
        if kind == "content_block_delta":
            length += text_length_in(object_in(value, "delta"), "text")
        elif kind == "message_start":
            prompt = figure_in(object_in(object_in(value, "message"), "usage"), "input_tokens")
        elif kind == "message_delta":
            usage = object_in(value, "usage")
            completion = _latest(completion, figure_in(usage, "output_tokens"))
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
