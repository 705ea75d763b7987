"""The parts under the HTTP/2 engine by themselves: frames from pieces, bounds on HPACK, the bucket."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from cgw.wire import http2_frames as frames
from cgw.wire.heads import HTTP2_PREFACE
from cgw.wire.http2_bounds import FloodBucket, Http2Bounds
from cgw.wire.http2_core import HEADER_TABLE_BYTES, Http2Core
from cgw.wire.http2_frames import END_HEADERS, END_STREAM, Frame, FrameSplitter, Http2ConnectionError, pack_frame
from cgw.wire.http2_protocol import Http2Protocol

FRAMES = st.builds(Frame, st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=30))


@given(st.lists(FRAMES, max_size=6), st.integers(1, 40))
def test_frames_come_out_as_they_went_in(packed: list[Frame], size: int) -> None:
    """Frames are the same for every split of their bytes."""
    data = b"".join(pack_frame(*frame) for frame in packed)
    splitter = FrameSplitter()
    found = []
    for start in range(0, len(data), size):
        splitter.feed(data[start : start + size])
        while (frame := splitter.next_frame()) is not None:
            found.append(frame)
    assert found == packed
    assert not splitter.is_partial


def test_large_frame_is_refused_by_its_header() -> None:
    """Nine bytes are enough to refuse a frame; h2 would wait for all of it, up to 16 MiB."""
    splitter = FrameSplitter()
    splitter.feed(b"\x00\x40\x01\0\0\0\0\0\x01")
    with pytest.raises(Http2ConnectionError) as caught:
        splitter.next_frame()
    assert caught.value.code == ErrorCodes.FRAME_SIZE_ERROR


@given(st.binary(max_size=50_000), st.sampled_from([0, END_STREAM]))
def test_header_blocks_are_cut_into_frames(block: bytes, flags: int) -> None:
    """HEADERS, then CONTINUATION frames, END_HEADERS on the last one only."""
    splitter = FrameSplitter()
    splitter.feed(frames.pack_header_block(3, flags, block))
    found = []
    while (frame := splitter.next_frame()) is not None:
        found.append(frame)
    assert b"".join(frame.payload for frame in found) == block
    assert [frame.type for frame in found] == [frames.HEADERS] + [frames.CONTINUATION] * (len(found) - 1)
    assert [frame.flags & END_HEADERS for frame in found] == [0] * (len(found) - 1) + [END_HEADERS]
    assert found[0].flags & END_STREAM == flags


def test_bucket_refills_with_time() -> None:
    """The burst at once, then the rate; never more than the burst at a time."""
    now = 0.0
    bucket = FloodBucket(10, 20, lambda: now)
    bucket.charge(20)
    with pytest.raises(Http2ConnectionError) as caught:
        bucket.charge(1)
    assert caught.value.code == ErrorCodes.ENHANCE_YOUR_CALM
    now = 1.0
    bucket.charge(9)  # one was owed
    now = 1000.0
    bucket.charge(20)
    with pytest.raises(Http2ConnectionError):
        bucket.charge(1)


def test_client_decides_on_a_smaller_table_only() -> None:
    """hpack obeys any size, and lists every change that it was told of until there is something to send."""
    core = Http2Core(Http2Bounds(), 65536)
    encoder = core.h2.encoder
    for size in (2**32 - 1, 100, 4096, 0, 2**31, 200) * 100:
        encoder.header_table_size = size
    assert encoder.header_table.maxsize == 200
    assert encoder.table_size_changes == [0, 200]
    encoder.header_table_size = 2**32 - 1
    assert encoder.header_table.maxsize == HEADER_TABLE_BYTES


def test_settings_are_not_collected() -> None:
    """65,536 settings that nobody knows are not stored; h2 by itself keeps a queue for each."""
    protocol = Http2Protocol(Http2Bounds(), 65536, lambda: 0.0)
    protocol.feed(HTTP2_PREFACE)
    for first in range(0, 65_536, 2048):
        protocol.feed(frames.pack_settings({code: 1 for code in range(first, first + 2048) if code > 8}))
        protocol.process_frame()
    assert len(protocol._h2.remote_settings) < 10


def test_idle_connection_is_small() -> None:
    """After 5,000 streams a connection remembers no live stream and a thousand closed ones."""
    protocol = Http2Protocol(Http2Bounds(), 65536, lambda: 0.0)
    protocol.feed(HTTP2_PREFACE + frames.pack_settings({}))
    protocol.process_frame()
    block = Encoder().encode([(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/")])
    for stream_id in range(1, 10_001, 2):
        protocol.feed(pack_frame(frames.HEADERS, END_HEADERS | END_STREAM, stream_id, block))
        assert protocol.process_frame()
        protocol.send_head(stream_id, 200, [])
        protocol.send_data(stream_id, b"", is_end=True)
        protocol.end(stream_id)
    assert protocol.take_output()
    assert not protocol._streams
    assert len(protocol._closed) == len(protocol._h2._closed_streams) == 1000
