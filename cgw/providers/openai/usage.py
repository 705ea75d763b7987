"""Usage in the responses of OpenAI's Chat Completions API.

``usage`` of a completion; in a stream the ``usage`` of the last chunk that has one. OpenAI sends such a chunk only if
the request has ``stream_options: {"include_usage": true}``.
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
    object_in,
    objects_in,
    read_object,
    text_in,
)

DONE = b"[DONE]"
"""The data of a stream's last frame."""


# The parts of a completion, or of a chunk, that are read. Structs without gc: they never form cycles.


class _Text(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Text | None = None  # of a whole completion
    delta: _Text | None = None  # of a chunk


class _Figures(msgspec.Struct, gc=False):
    prompt_tokens: Figure | None = None
    completion_tokens: Figure | None = None


class _Completion(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Figures | None = None  # null in all chunks but the last


def _take_parts(value: dict[str, Any]) -> _Completion:
    choices = [
        _Choice(_take_text(choice, "message"), _take_text(choice, "delta")) for choice in objects_in(value, "choices")
    ]
    usage = object_in(value, "usage")
    figures = _Figures(figure_in(usage, "prompt_tokens"), figure_in(usage, "completion_tokens"))
    return _Completion(choices, figures if isinstance(value.get("usage"), dict) else None)


def _take_text(choice: dict[str, Any], key: str) -> _Text | None:
    text = choice.get(key)
    return _Text(text_in(text, "content")) if isinstance(text, dict) else None


COMPLETIONS = PartsDecoder(_Completion, _take_parts)


def read_completion(body: BodyWindow) -> Reading:
    """Read a completion that was not streamed."""
    return read_object(body, "prompt_tokens", "completion_tokens", _read_whole)


def _read_whole(data: bytes) -> Reading:
    completion = COMPLETIONS.decode(data)
    if completion is None:
        return Reading()
    length = 0
    for choice in completion.choices:
        if choice.message is not None and choice.message.content is not None:
            length += len(choice.message.content)
    usage = completion.usage or _Figures()
    return Reading(usage.prompt_tokens, usage.completion_tokens, length, is_final=True)


def read_completion_stream(body: BodyWindow) -> Reading:
    """Read a streamed completion. It is final if ``[DONE]`` was seen."""
    usage = _Figures()
    length = 0
    contents = list_data(body)
    is_final = bool(contents) and contents[-1] == DONE
    for data in contents:
        chunk = COMPLETIONS.decode(data)
        if chunk is None:
            continue  # [DONE]
        for choice in chunk.choices:
            if choice.delta is not None and choice.delta.content is not None:
                length += len(choice.delta.content)
        # A usage without figures does not replace an earlier one.
        if chunk.usage is not None and chunk.usage != _Figures():
            usage = chunk.usage
    # Without the middle of the body, the length would be too small.
    return Reading(usage.prompt_tokens, usage.completion_tokens, length if body.is_whole else None, is_final)
