"""Usage in the answers of OpenAI's Chat Completions API.

``usage`` of a completion; in a stream the last chunk that carries one, which OpenAI sends only to those who asked with
``stream_options: {"include_usage": true}``.
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

DONE = b"[DONE]"
"""The data of a stream's last frame."""


def read_completion(body: BodyWindow) -> Reading:
    """What a completion that was not streamed came to."""
    if not body.is_whole:
        usage = find_usage(body)
        return Reading() if usage is None else _read_figures(usage, None, is_final=True)
    completion = decode_json(body.head + body.tail)
    if not isinstance(completion, dict):
        return Reading()
    return _read_figures(object_in(completion, "usage"), _text_length(completion, "message"), is_final=True)


def _read_figures(usage: dict[str, Any], character_count: int | None, *, is_final: bool) -> Reading:
    prompt, completion = figure_in(usage, "prompt_tokens"), figure_in(usage, "completion_tokens")
    return Reading(prompt, completion, character_count, is_final)


def _text_length(completion: dict[str, Any], key: str) -> int:
    return sum(text_length_in(object_in(choice, key), "content") for choice in objects_in(completion, "choices"))


def read_completion_stream(body: BodyWindow) -> Reading:
    """What a streamed completion came to; final when ``[DONE]`` was seen."""
    usage: dict[str, Any] = {}
    length = 0
    frames = list_frames(body)
    for chunk in list_objects(frames):
        length += _text_length(chunk, "delta")
        usage = object_in(chunk, "usage") or usage
    is_final = any(frame.data == DONE for frame in frames[-1:])
    return _read_figures(usage, length if body.is_whole else None, is_final=is_final)
