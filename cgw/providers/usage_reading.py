"""The steps that readers of usage share: JSON, event streams and figures from the window of a response body.

No function here raises, whatever the bytes: the response has been relayed already, and a figure that cannot be read is
unknown.
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
"""Token counts from here on are not plausible, and count as unknown."""
_MAX_USAGE_CANDIDATES = 8

SCAN_BYTES = 8 * 1024
"""The bytes at each end of a long event stream that are parsed."""

_decoder = msgspec.json.Decoder()


@frozen
class Reading:
    """The figures that were read from one response. ``is_final`` is true if the API's end marker was seen."""

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
    """Return the usage of one response, read by the reader for its content type.

    For a response that is not 2xx, or that has a content coding (which cgw never asks for), only the prompt's length is
    known.
    """
    unknown = Usage(prompt_character_count=request.prompt_character_count)
    if not 200 <= response.status < 300 or not _is_identity(response):
        return unknown
    content_type = response.header(b"content-type")
    is_stream = request.is_stream
    # An API may answer a streaming request with JSON, so the response decides, if it says anything.
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
    """Return the decoded value, or ``None`` for anything that is not JSON."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def read_object(
    body: BodyWindow, prompt_key: str, completion_key: str, count_characters: Callable[[dict[str, Any]], int]
) -> Reading:
    """Read a response that is one JSON object with a top-level ``usage``.

    ``prompt_key`` and ``completion_key`` are the names of the token counts in it. ``count_characters`` returns the
    length of the completion's text; it is unknown if the body's middle is missing.
    """
    usage: dict[str, Any] | None
    character_count: int | None = None
    if body.is_whole:
        value = decode_json(body.head + body.tail)
        if not isinstance(value, dict):
            return Reading()
        usage, character_count = object_in(value, "usage"), count_characters(value)
    else:
        usage = find_usage(body)
        if usage is None:
            return Reading()
    return Reading(figure_in(usage, prompt_key), figure_in(usage, completion_key), character_count, is_final=True)


def find_usage(body: BodyWindow) -> dict[str, Any] | None:
    """Return the top-level ``usage`` object of a JSON body whose middle may be missing, or ``None``."""
    # APIs put it near the end. A candidate counts only if it and everything behind it is exactly the rest of an object;
    # so a "usage" deeper inside, or within a text, is never taken for it.
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
    """Return the complete frames of an event stream in a body's window, in order.

    Of a body whose middle is missing, only :data:`SCAN_BYTES` at each end are parsed.
    """
    if body.is_whole:
        return parse_frames(body.head + body.tail)
    # The figures are in the first and the last events. The events between them would only serve to count text, which
    # is incomplete anyway.
    return [*parse_frames(body.head[:SCAN_BYTES]), *parse_frames(body.tail[-SCAN_BYTES:], mid_frame=True)]


def list_objects(frames: list[Frame]) -> Iterator[dict[str, Any]]:
    """Yield the frames' data that are JSON objects, decoded."""
    for frame in frames:
        value = decode_json(frame.data)
        if isinstance(value, dict):
            yield value


def object_in(value: object, key: str) -> dict[str, Any]:
    """Return the object under ``key``, or an empty one."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def objects_in(value: object, key: str) -> Iterator[dict[str, Any]]:
    """Return the objects in the list under ``key``."""
    items = value.get(key) if isinstance(value, dict) else None
    return (item for item in items if isinstance(item, dict)) if isinstance(items, list) else iter(())


def figure_in(value: dict[str, Any], key: str) -> int | None:
    """Return the token count under ``key``, an integer that is not negative, or ``None``."""
    figure = value.get(key)
    if isinstance(figure, int) and not isinstance(figure, bool) and 0 <= figure < MAX_FIGURE:
        return figure
    return None


def text_length_in(value: dict[str, Any], key: str) -> int:
    """Return the length of the text under ``key``, in code points; 0 if there is none."""
    text = value.get(key)
    return len(text) if isinstance(text, str) else 0
