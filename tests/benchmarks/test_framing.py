"""HTTP/1.1 framing of the tools in Python."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tools.framing import FramingError, MessageBody, split_head

PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def feed(wire: bytes, cuts: list[int]) -> tuple[bytes, bool, bytes]:
    """Parse ``wire`` in parts; return the body's data, whether the body ended, and the remaining bytes."""
    places = sorted({min(cut, len(wire)) for cut in cuts} | {len(wire)})
    buffer, data, body, start = bytearray(), b"", None, 0
    for place in places:
        buffer += wire[start:place]
        start = place
        if body is None:
            head = split_head(buffer)
            body = MessageBody(head, "until-close") if head else None
        if body is not None and not body.done:
            data += b"".join(body.take(buffer))
    assert body is not None
    return data, body.done, bytes(buffer)


@given(PIECES, st.lists(st.integers(0, 500), max_size=12))
def test_a_chunked_body_is_the_same_however_it_is_split(pieces: list[bytes], cuts: list[int]) -> None:
    """The data is that of all chunks, and bytes after the last one remain."""
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nx: y\r\n\r\n"

    assert feed(wire + b"next", cuts) == (b"".join(pieces), True, b"next")
    assert feed(wire[:-2], cuts)[1] is False


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=12))
def test_a_counted_body_ends_at_its_length(data: bytes, cuts: list[int]) -> None:
    """The body has exactly ``content-length`` bytes."""
    wire = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)

    assert feed(wire + b"next", cuts) == (data, True, b"next")


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"\r\n", b"2\r\nabc\r\n", b"-1\r\n"])
def test_broken_framing_is_an_error(chunk: bytes) -> None:
    """An invalid size, or a chunk longer than its size, raises an error and is never taken for data."""
    with pytest.raises(FramingError):
        feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk, [])
