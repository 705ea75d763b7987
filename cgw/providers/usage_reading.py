"""The steps that readers of usage share: JSON, event streams and figures from the window of a response body.

No function here raises, whatever the bytes: the response has been relayed already, and a figure that cannot be read is
unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from attrs import define

from cgw.model import BodyWindow, Usage, UsageQuality
from cgw.providers.dialect import PreparedRequest
from cgw.wire.messages import ResponseHead
from cgw.wire.sse import parse_data

MAX_FIGURE = 2**53
"""Token counts from here on are not plausible, and count as unknown."""
# Bounds the work for a text that is full of them: each candidate is parsed up to the end of the window.
_MAX_USAGE_CANDIDATES = 8

SCAN_BYTES = 8 * 1024
"""The bytes at each end of a long event stream that are parsed."""

_decoder = msgspec.json.Decoder()


T = TypeVar("T", bound=msgspec.Struct)

Figure = Annotated[int, msgspec.Meta(ge=0, lt=MAX_FIGURE)]
"""The type of a token count in a struct."""


@define
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
    # An API may end a stream by an error: HTTP's end is there then, and the API's own end marker is not.
    if None not in figures and is_complete and reading.is_final:
        return UsageQuality.EXACT
    # Of an incomplete response the figures may have been lost, so it counts as partial.
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
    # ValueError includes text that is not UTF-8; RecursionError is deep nesting.
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


class PartsDecoder(Generic[T]):
    """Decodes JSON objects into a struct of the few parts that are of use, at half the cost of decoding all of them.

    ``take_parts`` makes the struct from a decoded object of any shape, without the parts that have an unexpected type.
    It is used for objects that are not as ``kind`` declares them; for all others both ways give the same.
    """

    def __init__(self, kind: type[T], take_parts: Callable[[dict[str, Any]], T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode
        self.take_parts = take_parts

    def decode(self, data: bytes) -> T | None:
        """Return the parts of an object; ``None`` for anything else."""
        try:
            return self._decode(data)
        # ValueError includes text that is not UTF-8; RecursionError is deep nesting.
        except (msgspec.MsgspecError, ValueError, RecursionError):
            value = decode_json(data)
            return self.take_parts(value) if isinstance(value, dict) else None


def read_object(
    body: BodyWindow, prompt_key: str, completion_key: str, read_whole: Callable[[bytes], Reading]
) -> Reading:
    """Read a response that is one JSON object with a top-level ``usage``.

    ``prompt_key`` and ``completion_key`` are the names of the token counts in it. ``read_whole`` reads the whole body;
    without the body's middle, the length of the completion's text is unknown.
    """
    if body.is_whole:
        # Both parts are the whole body, as nothing between them was dropped.
        return read_whole(body.head + body.tail)
    usage = find_usage(body)
    if usage is None:
        return Reading()
    # Final: the object was parsed up to the end of the body, and an object has no other end marker.
    return Reading(figure_in(usage, prompt_key), figure_in(usage, completion_key), None, is_final=True)


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


def list_data(body: BodyWindow) -> list[bytes]:
    """Return the data of the complete frames of an event stream in a body's window, in order.

    Of a body whose middle is missing, only :data:`SCAN_BYTES` at each end are parsed.
    """
    if body.is_whole:
        return parse_data(body.head + body.tail)
    # The figures are in the first and the last events. The events between them would only serve to count text, which
    # is incomplete anyway.
    # The tail begins within a frame, whose rest is skipped.
    return [*parse_data(body.head[:SCAN_BYTES]), *parse_data(body.tail[-SCAN_BYTES:], mid_frame=True)]


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
    # In Python, True is an int.
    if isinstance(figure, int) and not isinstance(figure, bool) and 0 <= figure < MAX_FIGURE:
        return figure
    return None


def text_in(value: dict[str, Any], key: str) -> str | None:
    """Return the text under ``key``, or ``None``."""
    text = value.get(key)
    return text if isinstance(text, str) else None
