"""Usage in the responses of OpenAI's Chat Completions API.

``usage`` of a completion; in a stream the ``usage`` of the last chunk that has one. OpenAI sends such a chunk only if
the request has ``stream_options: {"include_usage": true}``.
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

DONE = b"[DONE]"
"""The data of a stream's last frame."""


def read_completion(body: BodyWindow) -> Reading:
    """Read a completion that was not streamed."""
    return read_object(
        body, "prompt_tokens", "completion_tokens", lambda completion: _text_length(completion, "message")
    )


def read_completion_stream(body: BodyWindow) -> Reading:
    """Read a streamed completion. It is final if ``[DONE]`` was seen."""
    usage: dict[str, Any] = {}
    length = 0
    frames = list_frames(body)
    for chunk in list_objects(frames):
        length += _text_length(chunk, "delta")
        usage = object_in(chunk, "usage") or usage  # null in all chunks but the last
    return Reading(
        figure_in(usage, "prompt_tokens"),
        figure_in(usage, "completion_tokens"),
        length if body.is_whole else None,
        is_final=bool(frames) and frames[-1].data == DONE,
    )


def _text_length(completion: dict[str, Any], key: str) -> int:
    return sum(text_length_in(object_in(choice, key), "content") for choice in objects_in(completion, "choices"))
