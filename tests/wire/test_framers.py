"""Framers: the end of a body in raw data, wherever the data is cut."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgw.wire.framers import ChunkedFramer, ChunkSizes, Framer, FramerState, LengthFramer
from cgw.wire.windows import BodyWindowCollector

CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
STEPS = st.lists(st.integers(min_value=1, max_value=12), min_size=1, max_size=60)


def encode(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def feed_in_steps(framer: Framer, data: bytes, steps: list[int]) -> tuple[bytes, FramerState, bytes]:
    """Feed ``data`` in ``steps``; return what may be forwarded, the last state, and what was not fed."""
    passable, position, turn, state = b"", 0, 0, FramerState.OPEN
    while state is FramerState.OPEN and position < len(data):
        piece = framer.held + data[position : position + steps[turn % len(steps)]]
        position += steps[turn % len(steps)]
        turn += 1
        count, state = framer.feed(piece, len(piece))
        passable += piece[:count]
        if state is FramerState.OPEN:
            assert piece[count:] == framer.held
    return passable, state, data[position:]


@given(CHUNKS, st.binary(max_size=8), STEPS)
def test_chunks_pass_and_the_end_is_held(chunks: list[bytes], surplus: bytes, steps: list[int]) -> None:
    """All but the last chunk may be forwarded, the payload is collected, and the end is found, however it is cut."""
    collector = BodyWindowCollector()
    framer = ChunkedFramer(collector, ChunkSizes())
    data = encode(chunks)
    passable, state, rest = feed_in_steps(framer, data + surplus, steps)
    assert state is FramerState.COMPLETE
    assert passable == data[: -len(b"0\r\n\r\n")]
    assert framer.held.startswith(b"0\r\n\r\n")
    assert framer.surplus_bytes + len(rest) == len(surplus)
    window = collector.close(is_complete=True)
    assert window.head + window.tail == b"".join(chunks)


PAYLOADS = st.sampled_from(
    [b"data: %b\n\n" % (b"x" * size) for size in (1, 12, 13, 240, 250, 1100)]
    + [
        b"data: no line end",
        b"data: [DONE]\n\n",
        b"data: [DONE]\n",
        b"\n\n",
        b": [DONE]\n\n",
        b"event: e\r\n\r\n",
        b"d",
    ]
)


def play(
    pieces: list[bytes], sizes: ChunkSizes, *, takes: bool, markers: tuple[bytes, ...] = (b"data: [DONE]",)
) -> tuple[list[object], int]:
    """Feed ``pieces``; return all that can be observed, and how many of them were taken."""
    collector = BodyWindowCollector(60, 60)
    collector.look_for(markers)
    framer = ChunkedFramer(collector, sizes)
    seen: list[object] = []
    taken = 0
    for piece in pieces:
        if takes and framer.take(piece, len(piece)):
            taken += 1
            seen.append((len(piece), FramerState.OPEN, b"", b""))
            continue
        data = framer.held + piece
        passable, state = framer.feed(data, len(data))
        # What was held is not new.
        seen.append((passable - len(data) + len(piece), state, framer.held, framer.final))
        if state not in (FramerState.OPEN, FramerState.FINAL):
            break
    window = collector.close(is_complete=True)
    seen.append((window, collector.chunks, framer.is_at_boundary, framer.has_begun, framer.final_payload_bytes))
    return seen, taken


@settings(max_examples=400)
@given(
    st.lists(st.lists(PAYLOADS, min_size=1, max_size=3), max_size=50),
    st.lists(st.integers(0, 3000), max_size=3),
    st.booleans(),
    st.sampled_from([(), (b"data: [DONE]",), (b"event: response.completed", b"event: response.failed")]),
)
def test_taking_comes_to_the_same_as_feeding(
    reads: list[list[bytes]], cuts: list[int], has_end: bool, markers: tuple[bytes, ...]
) -> None:
    """Whether small chunks are taken or fed, the same is forwarded and collected, wherever the data is cut."""
    pieces = [encode(payloads)[: -len(b"0\r\n\r\n")] for payloads in reads] + [b"0\r\n\r\n"] * has_end
    for cut in cuts:
        if pieces:
            piece = pieces.pop(index := cut % len(pieces))
            pieces[index:index] = [part for part in (piece[: cut % 50], piece[cut % 50 :]) if part]
    sizes = ChunkSizes()
    expected, _ = play(pieces, sizes, takes=False, markers=markers)
    # Known sizes and unknown ones: the cache is filled by the first rounds.
    for cache in (ChunkSizes(), sizes, sizes):
        assert play(pieces, cache, takes=True, markers=markers)[0] == expected


@pytest.mark.parametrize("markers", [(), (b"data: [DONE]",), (b"event: is.a", b"event: is.b")])
def test_small_chunks_are_taken(markers: tuple[bytes, ...]) -> None:
    """Of a usual stream only the first chunk, and those with a size that is new, are not taken."""
    sizes = ChunkSizes()
    pieces = [encode([b"data: %b\n\n" % (b"x" * (20 + 60 * (n % 5)))])[:-5] for n in range(200)]
    assert play(pieces, sizes, takes=True, markers=markers)[1] >= 180
    assert play(pieces, sizes, takes=True, markers=markers)[1] == 199


@given(st.binary(min_size=1, max_size=80), st.binary(max_size=8), STEPS)
def test_counted_bodies_hold_their_last_piece(body: bytes, surplus: bytes, steps: list[int]) -> None:
    """A body with a length may be forwarded but for its last piece; what follows is surplus."""
    collector = BodyWindowCollector()
    framer = LengthFramer(collector, len(body))
    passable, state, rest = feed_in_steps(framer, body + surplus, steps)
    assert state is FramerState.COMPLETE
    assert passable + framer.held == body
    assert framer.held
    assert framer.surplus_bytes + len(rest) == len(surplus)
    assert collector.total_bytes == len(body)


@pytest.mark.parametrize(
    "unusual", [b"3;a=b\r\nabc\r\n0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b" 3\r\n", b"3 \r\n", b"+3\r\n"]
)
@given(chunks=CHUNKS, steps=STEPS)
def test_what_is_unusual_is_left_at_a_boundary(unusual: bytes, chunks: list[bytes], steps: list[int]) -> None:
    """Extensions, trailers and other unusual lines are held from their first byte on; nothing is lost."""
    framer = ChunkedFramer(BodyWindowCollector(), ChunkSizes())
    usual = encode(chunks)[: -len(b"0\r\n\r\n")]
    passable, state, rest = feed_in_steps(framer, usual + unusual, steps)
    assert state is FramerState.UNUSUAL
    assert passable == usual
    assert framer.held + rest == unusual


@pytest.mark.parametrize("bad", [b"3\r\nabcd\r\n", b"3\r\nabc\n\n", b"3\r\nabc\r\r", b"1\r\nabcdef"])
@given(steps=STEPS)
def test_missing_line_ends_are_malformed(bad: bytes, steps: list[int]) -> None:
    """A chunk that is not followed by CR LF is malformed, however it is cut."""
    _, state, _ = feed_in_steps(ChunkedFramer(BodyWindowCollector(), ChunkSizes()), bad, steps)
    assert state is FramerState.MALFORMED


@settings(max_examples=300)
@given(st.binary(max_size=60), STEPS)
def test_agrees_with_h11_on_arbitrary_bytes(data: bytes, steps: list[int]) -> None:
    """The forwarded part of arbitrary bytes is for h11 a valid start of a chunked body with the same payload."""
    collector = BodyWindowCollector()
    passable, _, _ = feed_in_steps(ChunkedFramer(collector, ChunkSizes()), data, steps)
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + passable)
    payload = b""
    try:
        while isinstance(event := connection.next_event(), h11.Response | h11.Data):
            if isinstance(event, h11.Data):
                payload += bytes(event.data)
    except h11.RemoteProtocolError:
        # Only a wrong CR LF after a chunk is found after the bytes of the chunk were forwarded.
        pass
    window = collector.close(is_complete=False)
    assert (window.head + window.tail).startswith(payload) or payload.startswith(window.head + window.tail)
