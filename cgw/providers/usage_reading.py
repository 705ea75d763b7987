"""The steps that readers of usage share: JSON, event streams and figures from the window of a response body.

No function here raises, whatever the bytes: the response has been relayed already, and a figure that cannot be read is
unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

import msgspec

from cgw.model import BodyWindow
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


# A Struct, because each exchange makes one.
class Reading(msgspec.Struct, gc=False):
    """The figures that were read from one response, named as in :class:`~cgw.model.Usage`.

    ``is_final`` is true if the API's end marker was seen.
    """

    prompt_token_count: int | None = None
    completion_token_count: int | None = None
    completion_character_count: int | None = None
    is_final: bool = False
    cache_read_token_count: int | None = None
    cache_write_token_count: int | None = None
    prompt_quota_token_count: int | None = None
    reasoning_token_count: int | None = None


def decode_json(data: bytes) -> Any:
    """Return the decoded value, or ``None`` for anything that is not JSON."""
    try:
        return _decoder.decode(data)
    # ValueError includes text that is not UTF-8; RecursionError is deep nesting.
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


_get_first, _get_last = itemgetter(0), itemgetter(-1)
_OPENING, _CLOSING = {*b"{"}, {*b"}"}


class PartsDecoder(Generic[T]):
    """Decodes JSON objects into a struct of the few parts that are of use, at half the cost of decoding all of them.

    Fields of a struct are texts, figures, structs and lists of structs, and have defaults. Parts that have an
    unexpected type count as absent: objects with such parts are decoded again, as a whole.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        decoder = msgspec.json.Decoder(kind)
        self._decode = decoder.decode
        self._decode_lines = decoder.decode_lines

    def decode(self, data: bytes) -> T | None:
        """Return the parts of an object; ``None`` for anything else."""
        try:
            return self._decode(data)
        # ValueError includes text that is not UTF-8; RecursionError is deep nesting.
        except (msgspec.MsgspecError, ValueError, RecursionError):
            value = decode_json(data)
            return self.take_parts(value) if isinstance(value, dict) else None

    def decode_all(self, contents: list[bytes]) -> list[T]:
        """Return the parts of the objects among ``contents``, in order: those of a stream, in one call into C.

        Where that fails, each is decoded by itself.
        """
        # Where each content begins and ends with a brace, and is one line, no object goes on from one to the next: then
        # as many objects as lines are one in each.
        try:
            are_closed = {*map(_get_first, contents)} == _OPENING and {*map(_get_last, contents)} == _CLOSING
            lines = b"\n".join(contents)
            if are_closed and lines.count(b"\n") == len(contents) - 1:
                parts = self._decode_lines(lines)
                if len(parts) == len(contents):
                    return parts
        except (msgspec.MsgspecError, ValueError, RecursionError, IndexError):  # IndexError is an empty content
            pass
        return [value for data in contents if (value := self.decode(data)) is not None]

    def take_parts(self, value: dict[str, Any]) -> T:
        """Return the parts of a decoded object of any shape."""
        return _take_struct(self._kind, value)


def _take_struct(kind: type[T], value: dict[str, Any]) -> T:
    found = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name in value:
            part = _take_part(field.type, value[field.encode_name])
            if part is not None:
                found[field.name] = part
    return kind(**found)


def _take_part(hint: Any, part: Any) -> Any:
    """Return ``part`` as the type ``hint``; ``None`` if it is of another one."""
    inner = next((option for option in get_args(hint) if _is_struct(option)), None)
    if inner is not None and isinstance(part, dict) and get_origin(hint) is not list:
        return _take_struct(inner, part)
    if inner is not None and isinstance(part, list) and get_origin(hint) is list:
        return [_take_struct(inner, item) for item in part if isinstance(item, dict)]
    try:
        return msgspec.convert(part, hint)
    except msgspec.ValidationError:
        return None


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def read_object(
    body: BodyWindow,
    read_whole: Callable[[bytes], Reading],
    read_figures: Callable[[dict[str, Any]], Reading],
    key: str = "usage",
) -> Reading:
    """Read a response that is one JSON object with its token counts in the object under ``key``.

    ``read_whole`` reads the whole body, ``read_figures`` the object alone: without the body's middle, the length of the
    completion's text is unknown.
    """
    head, tail = body.head, body.tail
    # Both parts are the whole body if nothing between them was dropped: `is_whole`, without the call.
    if len(head) + len(tail) == body.total_bytes:
        return read_whole(head + tail)
    usage = find_usage(body, key)
    if usage is None:
        return Reading()
    reading = read_figures(usage)
    # The object was parsed up to the end of the body, and an object has no other end marker.
    reading.is_final = True
    return reading


def find_usage(body: BodyWindow, key: str = "usage") -> dict[str, Any] | None:
    """Return the top-level object under ``key`` of a JSON body whose middle may be missing, or ``None``."""
    # APIs put it near the end. A candidate counts only if it and everything behind it is exactly the rest of an object;
    # so a "usage" deeper inside, or within a text, is never taken for it.
    data, end = body.tail or body.head, None
    for _ in range(_MAX_USAGE_CANDIDATES):
        start = data.rfind(b'"%b"' % key.encode("ascii"), 0, end)
        if start < 0:
            return None
        rest = decode_json(b"{" + data[start:])
        if isinstance(rest, dict) and isinstance(rest.get(key), dict):
            usage: dict[str, Any] = rest[key]
            return usage
        end = start
    return None


def list_data(body: BodyWindow, scan_bytes: int = SCAN_BYTES) -> list[bytes]:
    """Return the data of the complete frames of an event stream in a body's window, in order.

    Of a body whose middle is missing, only ``scan_bytes`` at each end are parsed.
    """
    if body.is_whole:
        return parse_data(body.head + body.tail)
    # The figures are in the first and the last events. The events between them would only serve to count text, which
    # is incomplete anyway.
    # The tail begins within a frame, whose rest is skipped.
    return [*parse_data(body.head[:scan_bytes]), *parse_data(body.tail[-scan_bytes:], mid_frame=True)]


def sum_lengths(texts: Iterable[str | None]) -> int:
    """Return the number of characters of all ``texts``; ``None`` has none.

    For iterators that are written in C, such as the ``map`` of an ``attrgetter``: no bytecode runs for a piece of text.
    """
    return sum(map(len, filter(None, texts)))


def choose_length(
    body: BodyWindow, length: int, completion_token_count: int | None, scan_bytes: int = SCAN_BYTES
) -> int | None:
    """Return the number of characters of a streamed completion, of which ``length`` were in the window.

    Where the middle of the body is missing, that is unknown; but an estimate takes the place of a token count that the
    provider did not send: as many characters per byte as in the parts that :func:`list_data` parsed.
    """
    if body.is_whole:
        return length
    if completion_token_count is not None:
        return None
    parsed = min(len(body.head), scan_bytes) + min(len(body.tail), scan_bytes)
    return length * body.total_bytes // max(1, parsed)


def count_json(value: object) -> int:
    """Return the length of a tool's arguments as they would stream: compact JSON."""
    try:
        return len(msgspec.json.encode(value).decode())
    except (RecursionError, OverflowError):  # nested deeply, or with numbers that no tool means
        return 0


def latest(known: int | None, figure: int | None) -> int | None:
    """Return ``figure`` if it is known, otherwise what was known before: for cumulative figures."""
    return known if figure is None else figure


def largest(known: int | None, figure: int | None) -> int | None:
    """Return the larger of two figures of which either may be unknown."""
    return latest(known, figure) if known is None or figure is None else max(known, figure)
