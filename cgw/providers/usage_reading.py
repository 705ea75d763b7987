"""What the readers of usage share: JSON and frames from what is left of a body, and figures that can be trusted.

Nothing here raises, whatever the bytes: an upstream's answer has been passed on already, and what cannot be read from
it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from attrs import frozen

from cgw.model import BodyWindow, Usage, UsageQuality
from cgw.providers.dialect import PreparedRequest
from cgw.wire.messages import ResponseHead
from cgw.wire.sse import Frame, parse_frames

MAX_FIGURE = 2**53
"""Larger token counts are no counts."""
_MAX_USAGE_CANDIDATES = 8

_decoder = msgspec.json.Decoder()


SCAN_BYTES = 8 * 1024
"""How much of each end of a long event stream is parsed."""


@frozen
class Reading:
    """What one answer said about its tokens and text; ``is_final`` when the provider's own end was seen."""

    prompt_token_count: int | None = None
    completion_token_count: int | None = None
    completion_character_count: int | None = None
    is_final: bool = False


def read_usage(
    request: PreparedRequest,
    response: ResponseHead,
    body: BodyWindow,
    read_whole: Callable[[BodyWindow], Reading],
    read_stream: Callable[[BodyWindow], Reading],
) -> Usage:
    """The usage of one answer, by the reader that suits its content type.

    Answers that are not 2xx, or that the upstream encoded although it was asked not to, say nothing.
    """
    unknown = Usage(prompt_character_count=request.prompt_character_count)
    if not 200 <= response.status < 300 or not _is_identity(response):
        return unknown
    content_type = response.header(b"content-type")
    is_stream = request.is_stream
    if content_type is not None:
        is_stream = content_type.strip().lower().startswith(b"text/event-stream")
    reading = read_stream(body) if is_stream else read_whole(body)
    return Usage(
        prompt_token_count=reading.prompt_token_count,
        completion_token_count=reading.completion_token_count,
        prompt_character_count=request.prompt_character_count,
        completion_character_count=reading.completion_character_count,
        quality=_judge(reading, is_complete=body.is_complete),
    )


def _judge(reading: Reading, *, is_complete: bool) -> UsageQuality:
    figures = (reading.prompt_token_count, reading.completion_token_count)
    if None not in figures and is_complete and reading.is_final:
        return UsageQuality.EXACT
    if figures == (None, None) and is_complete:
        return UsageQuality.ESTIMATED
    return UsageQuality.PARTIAL


def _is_identity(response: ResponseHead) -> bool:
    encoding = response.header(b"content-encoding")
    return encoding is None or encoding.strip().lower() in (b"", b"identity")


def decode_json(data: bytes) -> Any:
    """The decoded value, or ``None`` for anything that is not JSON."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def find_usage(body: BodyWindow) -> dict[str, Any] | None:
    """The top-level ``usage`` object of a JSON body of which only the end may be there.

    APIs put it near the end. A candidate counts only if it and all that follows it is exactly the rest of an object:
    so a ``usage`` deeper inside, or in a text, is never taken for it.
    """
    data, end = body.tail or body.head, None
    for _ in range(_MAX_USAGE_CANDIDATES):
        start = data.rfind(b'"usage"', 0, end)
        if start < 0:
            return None
        rest = decode_json(b"{" + data[start:])
        if isinstance(rest, dict) and isinstance(rest.get("usage"), dict):
            usage: dict[str, Any] = rest["usage"]
            return usage
        end = start
    return None


def list_frames(body: BodyWindow) -> list[Frame]:
    """The whole frames of an event stream that can be seen in a body's windows, in order.

    Of a body that is not whole in them only the outermost :data:`SCAN_BYTES` at each end are looked at: the figures
    stand in the first and the last events, and text cannot be counted any more.
    """
    if body.is_whole:
        return parse_frames(body.head + body.tail)
    return [*parse_frames(body.head[:SCAN_BYTES]), *parse_frames(body.tail[-SCAN_BYTES:], mid_frame=True)]


def list_objects(frames: list[Frame]) -> Iterator[dict[str, Any]]:
    """The JSON objects among the frames' data."""
    for frame in frames:
        value = decode_json(frame.data)
        if isinstance(value, dict):
            yield value


def object_in(value: object, key: str) -> dict[str, Any]:
    """The object under ``key``, or an empty one."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def objects_in(value: object, key: str) -> Iterator[dict[str, Any]]:
    """The objects in the list under ``key``."""
    items = value.get(key) if isinstance(value, dict) else None
    return (item for item in items if isinstance(item, dict)) if isinstance(items, list) else iter(())


def figure_in(value: dict[str, Any], key: str) -> int | None:
    """The token count under ``key``: an integer that is not negative, or ``None``."""
    figure = value.get(key)
    if isinstance(figure, int) and not isinstance(figure, bool) and 0 <= figure < MAX_FIGURE:
        return figure
    return None


def text_length_in(value: dict[str, Any], key: str) -> int:
    """The length of the text under ``key``, in code points; 0 if there is none."""
    text = value.get(key)
    return len(text) if isinstance(text, str) else 0
