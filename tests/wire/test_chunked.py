"""The strict checker of chunked bodies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.chunked import ChunkedFramingError, ChunkScanner


def encode(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.binary(max_size=20),
    st.lists(st.integers(min_value=1, max_value=9), min_size=1, max_size=40),
)
def test_any_split_finds_the_same_end(chunks: list[bytes], rest: bytes, steps: list[int]) -> None:
    """Size and end of a body are the same, however it is cut, and data behind it is not used."""
    data = encode(chunks) + rest
    scanner, position, turn = ChunkScanner(), 0, 0
    while not scanner.is_complete:
        step = steps[turn % len(steps)]
        position += scanner.feed(data[position : position + step])
        turn += 1
    assert position == len(data) - len(rest)
    assert scanner.body_bytes == sum(map(len, chunks))


def test_extensions_and_trailers_are_valid() -> None:
    """Chunk extensions and trailer fields are valid framing (RFC 9112 §7.1.1, §7.1.2)."""
    scanner = ChunkScanner()
    data = b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\nnext"
    assert scanner.feed(data) == len(data) - 4
    assert scanner.is_complete


@pytest.mark.parametrize(
    "data",
    [
        b"+3\r\n",
        b" 3\r\n",
        b"0x3\r\n",
        b"3 \r\n",
        b"3\n",
        b"\r\n",
        b"g\r\n",
        b"3\r\nabcd",
        b"3\r\nabc\n",
        b"11111111111111111\r\n",
        b"3" + b"0" * 300,
        b"0\r\nX: y\n",
        b"0\r\n" + b"X: y\r\n" * 2000,
    ],
)
def test_malformed_framing_is_refused(data: bytes) -> None:
    """Signs, spaces, bare LF, overlong sizes and missing line ends are errors at the first byte that shows them."""
    with pytest.raises(ChunkedFramingError):
        ChunkScanner().feed(data)
