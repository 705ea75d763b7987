"""Compressed bodies are decoded in any pieces, within bounds, and never look complete when they are not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import UpstreamProtocolError
from cgw.wire.content_codings import MAX_PIECE_BYTES, BodyDecoder, open_decoder
from cgw.wire.messages import ResponseHead

ENCODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
}


def decode(decoder: BodyDecoder, pieces: list[bytes]) -> bytes:
    """Feed ``pieces``, and return all that is decoded."""
    decoded = b""
    for piece in pieces:
        decoder.feed(piece)
        while part := decoder.take():
            assert len(part) <= MAX_PIECE_BYTES
            decoded += part
    decoder.close()
    return decoded


@given(st.binary(max_size=2000), st.sampled_from(sorted(ENCODERS)), st.lists(st.integers(0, 2000)))
def test_any_pieces_give_the_body(body: bytes, coding: bytes, cuts: list[int]) -> None:
    """However the compressed data is cut, the body comes out; one that is cut off does not end well."""
    data = ENCODERS[coding](body)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(places)]
    assert decode(BodyDecoder(coding), pieces) == body
    for end in range(1, len(data), 7):
        with pytest.raises(UpstreamProtocolError):
            decode(BodyDecoder(coding), [data[:end]])
    with pytest.raises(UpstreamProtocolError, match="behind its end"):
        decode(BodyDecoder(coding), [data, b"more"])


@given(st.binary(min_size=1, max_size=200))
def test_what_is_not_compressed_is_an_error(data: bytes) -> None:
    """Random data decodes to nothing that ends well, and raises nothing else."""
    with pytest.raises(UpstreamProtocolError):
        decode(BodyDecoder(b"gzip"), [data])


def test_a_bomb_comes_in_small_pieces() -> None:
    """64 MiB of zeros, in less than 128 KiB, are handed out by 64 KiB: memory is bounded, and its reader may stop."""
    decoder = BodyDecoder(b"gzip")
    compressor = zlib.compressobj(wbits=31)
    data = b"".join(compressor.compress(b"\0" * 2**20) for _ in range(64)) + compressor.flush()
    decoder.feed(data)
    assert len(data) < 2**17
    assert {len(decoder.take()) for _ in range(500)} == {MAX_PIECE_BYTES}


def test_an_empty_body_is_complete() -> None:
    """No data at all is the end of a body without any, such as that of a 204."""
    assert decode(BodyDecoder(b"gzip"), []) == b""


def test_the_head_is_that_of_the_decoded_body() -> None:
    """Coding, length and framing are gone, as they are those of the compressed body; other fields stay."""
    fields = ((b"content-encoding", b"GZIP"), (b"content-length", b"9"), (b"date", b"x"), (b"transfer-encoding", b"a"))
    head, decoder = open_decoder(ResponseHead(200, fields))
    assert decoder is not None
    assert list(head.headers) == [(b"date", b"x")]


@pytest.mark.parametrize("value", [b"br", b"gzip, gzip", b"zstd", b"x" * 1000, b"gzip;q=1"])
def test_other_codings_are_refused(value: bytes) -> None:
    """What cannot be decoded is an error that names it, in part if it is long."""
    with pytest.raises(UpstreamProtocolError, match="content coding") as caught:
        open_decoder(ResponseHead(200, ((b"content-encoding", value),)))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [b"identity", b"", b" Identity "])
def test_identity_needs_no_decoder(value: bytes) -> None:
    """``identity`` says that there is no coding."""
    head = ResponseHead(200, ((b"content-encoding", value),))
    assert open_decoder(head) == (head, None)
