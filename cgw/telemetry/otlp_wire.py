"""Encoding for OTLP: Protocol Buffers' wire format, as far as spans need it. Pure.

https://protobuf.dev/programming-guides/encoding/. Written by hand, because traces are encoded in the process that
serves: 10 spans take 9 µs here, 47 µs with the generated classes, and 320 µs through the SDK's ``ReadableSpan``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

AttributeValue = str | bool | int | float | tuple[str, ...]

MAX_TEXT_CHARACTERS = 1024
"""The part of a text that is sent: a path or a model's name may be as long as a whole request."""

_ONE_BYTE = tuple(bytes([value]) for value in range(128))
_pack_double = struct.Struct("<d").pack


def encode_varint(value: int) -> bytes:
    """Return a number of up to 64 bits as a varint. Negative ones are in two's complement, as ``int64`` is."""
    if 0 <= value < 128:
        return _ONE_BYTE[value]
    if 0 <= value < 0x4000:
        return bytes((value & 127 | 128, value >> 7))
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_bytes(field: int, value: bytes) -> bytes:
    """Return field number ``field``, of type bytes, string or message."""
    return encode_varint(field << 3 | 2) + encode_varint(len(value)) + value


def encode_text(field: int, text: str) -> bytes:
    """Return field number ``field``, of type string, with at most :data:`MAX_TEXT_CHARACTERS`."""
    # A lone surrogate has no UTF-8; receivers reject a whole request for one invalid string.
    return encode_bytes(field, text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace"))


def encode_value(value: AttributeValue) -> bytes:
    """Return an ``AnyValue``."""
    if isinstance(value, str):
        return encode_text(1, value)
    if isinstance(value, bool):  # before int, of which it is a kind
        return b"\x10" + _ONE_BYTE[value]
    if isinstance(value, int):
        return b"\x18" + encode_varint(value)
    if isinstance(value, float):
        return b"\x21" + _pack_double(value)
    return encode_bytes(5, b"".join(encode_bytes(1, encode_text(1, text)) for text in value))


def encode_attributes(field: int, attributes: Mapping[str, AttributeValue | None]) -> bytes:
    """Return the repeated field number ``field`` of ``KeyValue``; ``None`` leaves an attribute out."""
    return b"".join(
        encode_bytes(field, encode_text(1, name) + encode_bytes(2, encode_value(value)))
        for name, value in attributes.items()
        if value is not None
    )


def build_integer_encoder(field: int, name: str) -> Callable[[int], bytes]:
    """Return the function that encodes the attribute ``name`` for whole numbers from 0 on, of up to 63 bits.

    It takes a quarter of the time of :func:`encode_attributes`: only the number is still to be encoded.
    """
    key = encode_text(1, name)
    # By the length of the number: everything before it is known.
    starts = [
        encode_varint(field << 3 | 2)
        + encode_varint(len(key) + 3 + size)
        + key
        + b"\x12"
        + _ONE_BYTE[size + 1]
        + b"\x18"
        for size in range(11)
    ]

    small = [starts[1] + number for number in _ONE_BYTE]

    def encode(value: int) -> bytes:
        # Most numbers are small: without the call of encode_varint() they take half the time.
        if value < 128:
            return small[value]
        if value < 0x4000:
            return starts[2] + bytes((value & 127 | 128, value >> 7))
        number = encode_varint(value)
        return starts[len(number)] + number

    return encode


def build_text_encoder(field: int, name: str) -> Callable[[str], bytes]:
    """Return the function that encodes the attribute ``name`` for short texts, such as ids."""
    starts: dict[int, bytes] = {}  # by the length of the text in UTF-8, of which there are few

    def encode(text: str) -> bytes:
        value = text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace")
        start = starts.get(len(value))
        if start is None:
            whole = encode_attributes(field, {name: text})
            start = starts[len(value)] = whole[: len(whole) - len(value)]
        return start + value

    return encode


def build_double_encoder(field: int, name: str) -> Callable[[float], bytes]:
    """Return the function that encodes the attribute ``name`` for fractional numbers."""
    whole = encode_attributes(field, {name: 0.0})
    start = whole[:-8]
    return lambda value: start + _pack_double(value)


def build_request(resource: bytes, scope: bytes, spans: Sequence[bytes]) -> bytes:
    """Return an ``ExportTraceServiceRequest``.

    ``resource`` and ``scope`` are messages; each of ``spans`` is one or more whole fields ``spans`` (number 2) of
    ``ScopeSpans``.
    """
    # Lengths first, so that the spans, up to a megabyte, are copied once and not for each message around them.
    resource_field, scope_field = encode_bytes(1, resource), encode_bytes(1, scope)
    scope_spans_bytes = len(scope_field) + sum(map(len, spans))
    scope_spans_start = b"\x12" + encode_varint(scope_spans_bytes)
    length = encode_varint(len(resource_field) + len(scope_spans_start) + scope_spans_bytes)
    return b"".join([b"\x0a", length, resource_field, scope_spans_start, scope_field, *spans])
