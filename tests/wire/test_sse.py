"""Frames of event streams, from any pieces."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgw.wire.sse import Frame, FrameParser, parse_data, parse_frames

ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start"}\n\n'
    b": keep-alive\n\n"
    b'event: ping\ndata: {"type": "ping"}\n\n'
    b'event: content_block_delta\ndata: {"delta":{"text":"h\xc3\xa9"}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)

field_lines = st.one_of(
    st.binary(max_size=8).map(lambda value: b"data:" + re.sub(rb"[\r\n]", b"", value)),
    st.sampled_from([b"data", b"data: x", b"data:  y", b"event: a", b"event:b", b"event", b": comment", b"id:1", b"x"]),
)
streams = st.lists(st.tuples(st.one_of(field_lines, st.just(b"")), st.sampled_from([b"\n", b"\r", b"\r\n"]))).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    bounds = [0, *sorted(position % (len(data) + 1) for position in positions), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def feed_all(parser: FrameParser, pieces: list[bytes]) -> list[Frame]:
    return [frame for piece in pieces for frame in parser.feed(piece)]


def test_named_frames_are_read_and_comments_are_not() -> None:
    """Each event with data becomes a frame with its name; comments are skipped."""
    frames = parse_frames(ANTHROPIC)
    assert [frame.event for frame in frames] == [b"message_start", b"ping", b"content_block_delta", b"message_stop"]
    assert json.loads(frames[2].data) == {"delta": {"text": "hé"}}


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_of_the_standard_is_known(end: bytes) -> None:
    """LF, CR and CRLF end lines alike."""
    data = ANTHROPIC.replace(b"\n", end)
    assert parse_frames(data) == parse_frames(ANTHROPIC)


@pytest.mark.parametrize(
    ("data", "frames"),
    [
        (b"\xef\xbb\xbfdata: a\n\n", [Frame(b"", b"a")]),
        (b"data: a\n\xef\xbb\xbfdata: b\n\n", [Frame(b"", b"a")]),
        (b"data: a\ndata: b\n\n", [Frame(b"", b"a\nb")]),
        (b"data:a\ndata\ndata:\n\n", [Frame(b"", b"a\n\n")]),
        (b"data:  a\n\n", [Frame(b"", b" a")]),
        (b"event: x\n\ndata: a\n\n", [Frame(b"", b"a")]),
        (b"event: x\nevent: y\ndata: a\n\n", [Frame(b"y", b"a")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [Frame(b"x", b"a"), Frame(b"", b"b")]),
        (b"data: a: b\n\n", [Frame(b"", b"a: b")]),
        (b"id: 1\nretry: 5\nunknown\n\n", []),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"", []),
        (b"\n\n\n", []),
    ],
)
def test_frames_follow_the_standard(data: bytes, frames: list[Frame]) -> None:
    """The standard's corner cases: marks, joined lines, empty values, names that are reset, unfinished frames."""
    assert parse_frames(data) == frames


@pytest.mark.parametrize(
    ("data", "frames"),
    [
        (b"ta: a\n\ndata: b\n\n", [Frame(b"", b"b")]),
        (b"\ndata: a\n\ndata: b\n\n", [Frame(b"", b"b")]),
        (b"\n\ndata: b\n\n", [Frame(b"", b"b")]),
        (b"\n\r\ndata: b\r\n\r\n", [Frame(b"", b"b")]),
        (b"data: a\r\rdata: b\r\r", [Frame(b"", b"b")]),
        (b"no line end", []),
        (b"", []),
    ],
)
def test_a_window_in_mid_frame_begins_after_the_first_sure_blank_line(data: bytes, frames: list[Frame]) -> None:
    """Data up to the first certain blank line is skipped, so that no partial frame is returned."""
    assert parse_frames(data, mid_frame=True) == frames


@given(streams, st.lists(st.integers(min_value=0)))
def test_any_pieces_give_the_same_frames(data: bytes, positions: list[int]) -> None:
    """The frames are the same wherever a stream is cut."""
    assert feed_all(FrameParser(), cut(data, positions)) == parse_frames(data)


@given(streams, st.lists(st.integers(min_value=0)))
def test_any_pieces_of_a_window_give_the_same_frames(data: bytes, positions: list[int]) -> None:
    """The frames of a window that begins in mid-frame are the same wherever it is cut."""
    assert feed_all(FrameParser(mid_frame=True), cut(data, positions)) == parse_frames(data, mid_frame=True)


@given(st.binary(), st.booleans())
def test_arbitrary_bytes_are_no_error(data: bytes, mid_frame: bool) -> None:
    """No bytes make the parser raise."""
    assert all(isinstance(frame, Frame) for frame in parse_frames(data, mid_frame=mid_frame))


@given(streams, st.integers(min_value=0))
def test_a_window_yields_only_frames_of_the_stream(data: bytes, position: int) -> None:
    """A window's frames are the last frames of the whole stream: no other ones, and all of them."""
    window = data[position % (len(data) + 1) :]
    whole = parse_frames(data)
    seen = parse_frames(window, mid_frame=True)
    assert seen == whole[len(whole) - len(seen) :]


@given(st.lists(st.tuples(st.from_regex(rb"[a-z_]*", fullmatch=True), st.from_regex(rb"[^\r\n]+", fullmatch=True))))
def test_written_frames_are_read_back(events: list[tuple[bytes, bytes]]) -> None:
    """Frames written in the usual way come back as they were."""
    data = b"".join(b"event: " + name + b"\ndata: " + value + b"\n\n" for name, value in events)
    assert parse_frames(data) == [Frame(name, value) for name, value in events]


LINES = st.sampled_from(
    [b"data: a", b"data: ", b"event: b", b"event: ", b"", b"data:c", b"event", b": d", b"data: e\r"]
)
PLAIN = st.sampled_from([b"data: a\n\n", b"data: [DONE]\n\n"])
NAMED = st.sampled_from(
    [b"event: b\ndata: a\n\n", b"event: \ndata: \n\n", b"data: a\ndata: b\n\n", b": d\ndata: e\n\n"]
)


@settings(max_examples=500)
@given(
    (st.just([]) | st.lists(PLAIN) | st.lists(NAMED)).map(b"".join),
    st.lists(LINES, max_size=5).map(b"\n".join),
    st.sampled_from([b"", b"\n", b"\n\n"]),
)
def test_data_is_read_alike_in_usual_and_other_streams(usual: bytes, other: bytes, end: bytes) -> None:
    """The short way for streams as providers send them gives what the parser gives."""
    data = usual + other + end
    assert parse_data(data) == [frame.data for frame in FrameParser().feed(data)]
