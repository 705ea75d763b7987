"""Reading batches: every whole event once, in order, whatever stands between them and however the file grows."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.events.lines import MAX_LINE_BYTES, render_line
from cgw.events.shipping import batches
from cgw.events.shipping.batches import SegmentReader
from cgw.events.shipping.claims import ClaimedFile
from tests.events.conftest import build_event

LINE = render_line(build_event("acme", text="x" * 100))
GARBAGE = st.sampled_from([b"\n", b"  \n", b"{}\n", b"\x00\xff\n", LINE[:50] + b"\n", LINE[50:], b"x" * 5000 + b"\n"])
PIECES = st.lists(st.one_of(st.just(LINE), GARBAGE), max_size=30)


def open_reader(path: Path, offset: int = 0) -> SegmentReader:
    return SegmentReader("segment", ClaimedFile(os.open(path, os.O_RDONLY)), offset)


def read_all(reader: SegmentReader, max_events: int, max_bytes: int) -> list[bytes]:
    lines: list[bytes] = []
    end = reader.offset
    while (batch := reader.read_batch(max_events, max_bytes)) is not None:
        assert batch.start == end
        assert len(batch.lines) <= max_events
        assert sum(map(len, batch.lines)) <= max_bytes or len(batch.lines) == 1
        end = batch.end
        lines += batch.lines
    assert reader.offset == end
    return lines


@given(PIECES, st.lists(st.integers(0, 5000), max_size=6), st.integers(1, 7), st.integers(1, 1000), st.integers(1, 300))
def test_every_event_is_read_once(
    pieces: list[bytes], cuts: list[int], max_events: int, max_bytes: int, read_bytes: int
) -> None:
    """However the file grows, also in the middle of lines; and a reader that begins at a batch's end goes on."""
    data = b"".join(pieces)
    expected = [line + b"\n" for line in data.split(b"\n")[:-1] if batches.examine_line(line) is not None]
    before, batches.READ_BYTES = batches.READ_BYTES, read_bytes
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder, "segment")
            path.write_bytes(b"")
            reader = open_reader(path)
            lines: list[bytes] = []
            for end in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
                path.write_bytes(data[:end])
                lines += read_all(reader, max_events, max_bytes)
                reader = reader if end % 2 else open_reader(path, reader.offset)
            assert lines == expected
            assert reader.offset == len(data)
    finally:
        batches.READ_BYTES = before


def test_a_line_that_is_too_long_costs_no_memory_and_itself_only(tmp_path: Path) -> None:
    """Its end is no event, even if it looks like one."""
    path = tmp_path / "segment"
    path.write_bytes(LINE + b"x" * (3 * MAX_LINE_BYTES) + LINE + LINE)
    reader = open_reader(path)
    assert read_all(reader, 10, 2**20) == [LINE, LINE]
    assert reader.damaged == 1
    assert len(reader._buffer) < 2 * MAX_LINE_BYTES


def test_a_segment_of_garbage_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call does not read it to its end: the thread is free again, and can be left."""
    monkeypatch.setattr(batches, "MAX_DAMAGE_BYTES", 4 * 2**12)
    monkeypatch.setattr(batches, "READ_BYTES", 2**10)
    path = tmp_path / "segment"
    path.write_bytes(b"\n" * (12 * 2**12) + LINE)
    reader = open_reader(path)
    first = reader.read_batch(10, 2**12)
    assert first is not None
    assert first.lines == []
    assert first.end < 6 * 2**12
    assert read_all(reader, 10, 2**12) == [LINE]


def test_the_rest_of_a_sealed_segment_is_skipped(tmp_path: Path) -> None:
    """A batch without events covers it, so that the segment counts as shipped."""
    path = tmp_path / "segment"
    path.write_bytes(LINE + LINE[:30])
    reader = open_reader(path)
    assert read_all(reader, 10, 2**20) == [LINE]
    rest = reader.skip_rest()
    assert rest is not None
    assert (rest.start, rest.end, list(rest.lines)) == (len(LINE), len(LINE) + 30, [])
    assert reader.skip_rest() is None
    assert msgspec.json.decode(LINE)["identifier"] == "acme"
