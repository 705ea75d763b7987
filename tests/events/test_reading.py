"""Reading segments: every whole line once, whatever stands between them; and at what price the report is had."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgw.events import reading
from cgw.events.lines import MAX_LINE_BYTES, EventLine, encode, render_line
from cgw.events.reading import decode_lines, read_chunks, read_events
from cgw.events.report import summarise
from cgw.events.segments import SEALED_SUFFIX, SUMMARY_SUFFIX, Segment
from tests.events.conftest import build_event

LINES = [render_line(build_event(f"actor-{number}", model="a/b", note='"{\n')) for number in range(6)]
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def write_segment(folder: Path, content: bytes, name: str = "20261123T000000.000000Z-00000000") -> Segment:
    folder.mkdir(exist_ok=True)
    (folder / (name + SEALED_SUFFIX)).write_bytes(content)
    return Segment(folder, name, is_open=False)


@st.composite
def damaged_segments(draw: st.DrawFn) -> bytes:
    """Lines of events, with pieces cut out, overwritten, and put in between."""
    content = bytearray(b"".join(draw(st.lists(st.sampled_from(LINES), max_size=12))))
    garbage = st.one_of(
        st.binary(max_size=40), st.sampled_from([b"\n", b"{", b"[" * 2000, b"}\n{", b"\0" * 500, *LINES])
    )
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 400))
        content[start : start + length] = draw(garbage)
    return bytes(content)


def is_object(line: bytes) -> bool:
    """Whether another parser takes a line for a JSON object; damage may by chance leave it one."""
    try:
        return isinstance(json.loads(line.decode(errors="replace"), strict=False), dict)
    except (ValueError, RecursionError):
        return False


@settings(max_examples=300)
@given(content=damaged_segments(), chunk_bytes=st.sampled_from([1, 7, 100, 2**20]))
def test_every_whole_line_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk_bytes: int
) -> None:
    """Whatever was cut or damaged: each line that is still whole is read, none twice, and nothing raises."""
    folder = tmp_path_factory.mktemp("data") / "events"
    write_segment(folder, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK_BYTES", chunk_bytes)
        found = Counter(encode(event) + b"\n" for event in read_events(folder))
    lines = content.split(b"\n")[:-1]
    whole = Counter(line + b"\n" for line in lines)
    assert all(found[line] >= whole[line] for line in LINES)
    assert found.total() <= sum(map(is_object, lines))
    summarise(folder)  # reads the same lines with another decoder


@settings(max_examples=100)
@given(content=damaged_segments(), chunk_bytes=st.sampled_from([1, 64, 2**20]))
def test_cursor_goes_on_where_a_chunk_ended(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk_bytes: int
) -> None:
    """Reading on from the offset of any chunk gives what a single pass gives."""
    segment = write_segment(tmp_path_factory.mktemp("data") / "events", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK_BYTES", chunk_bytes)
        whole = content[: content.rfind(b"\n") + 1]
        offset, found = 0, b""
        while (chunk := next(read_chunks(segment, offset), None)) is not None:
            found += chunk.lines
            offset = chunk.offset
            assert found == whole[:offset]
        assert found == whole


def test_damage_is_said_once_per_segment(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One error names the segment and counts its damaged lines; blank lines are none."""
    write_segment(folder, LINES[0] + b"garbage\n\n{}\n \n" + LINES[1])
    assert len(list(read_events(folder))) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"event segment {folder}/20261123T000000.000000Z-00000000.ndjson has 2 damaged lines; they are skipped"
    ]
    for _ in range(2):  # also from the summary
        caplog.clear()
        assert sum(row.requests for row in summarise(folder)) == 2
        assert len(caplog.records) == 1


def test_two_halves_do_not_make_a_line() -> None:
    """A line that a newline cuts in two is damaged, although JSON allows a newline there."""
    line = LINES[0].replace(b'","name"', b'",\n"name"')
    found, damaged = decode_lines(msgspec.json.Decoder(EventLine), line + LINES[1])
    assert [event.identifier for event in found] == ["actor-1"]
    assert damaged == 2


def test_endless_garbage_costs_no_memory(folder: Path) -> None:
    """A line without an end is passed over in bounded memory, and counted as one."""
    write_segment(folder, LINES[0] + b"x" * (40 * MAX_LINE_BYTES) + b"\n" + LINES[1])
    tracemalloc.start()
    try:
        assert len(list(read_events(folder))) == 2
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


# --- the report's price, in counts ----------------------------------------------------------------------------------


def test_report_decodes_by_the_chunk_and_holds_none_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 events in three segments are decoded in one call per MiB, and take no memory but their chunk's."""
    line = render_line(build_event(model="a/b", prompt_token_count=1, padding="x" * 300))
    for number in range(3):
        write_segment(folder, line * 7000, f"2026112{number}T000000.000000Z-00000000")
    calls = []

    def count(decoder: object, lines: bytes) -> object:
        calls.append(len(lines))
        return decode_lines(decoder, lines)  # type: ignore[arg-type]

    monkeypatch.setattr("cgw.events.report.decode_lines", count)
    tracemalloc.start()
    try:
        (row,) = summarise(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (row.requests, row.prompt_tokens) == (21_000, 21_000)
    assert len(calls) <= 3 * (1 + 7000 * len(line) // 2**20)
    assert peak < 10 * 2**20


def test_sealed_segment_is_read_once(folder: Path) -> None:
    """The second report takes a sealed segment's sums from the file beside it, until the segment's size differs."""
    segment = write_segment(folder, LINES[0] * 3)
    (first,) = summarise(folder)
    segment.path.write_bytes(b"\0" * len(LINES[0] * 3))
    assert summarise(folder) == [first]
    assert summarise(folder, actor="other") == []
    segment.path.write_bytes(LINES[0] * 2)
    assert [row.requests for row in summarise(folder)] == [2]


@pytest.mark.parametrize("content", [b"", b"\0garbage", b"{}", b'{"version":99}'])
def test_summary_that_cannot_be_read_is_made_again(folder: Path, content: bytes) -> None:
    """A damaged summary costs time, not figures."""
    segment = write_segment(folder, LINES[0] * 3)
    (first,) = summarise(folder)
    segment.beside(SUMMARY_SUFFIX).write_bytes(content)
    assert summarise(folder) == [first]
    assert json.loads(segment.beside(SUMMARY_SUFFIX).read_bytes())["bytes"] == len(LINES[0] * 3)
    assert len(os.listdir(folder)) == 2


def test_sums_of_segments_are_merged(folder: Path) -> None:
    """Sums add up over sealed and open segments; unknown figures stay unknown; the newest name is shown."""

    def build(number: int, **metadata: Any) -> bytes:
        event = msgspec.structs.replace(
            build_event(model="a/b", **metadata), created_at=NOON + timedelta(minutes=number)
        )
        return render_line(event)

    write_segment(folder, build(3, actor_name="new", prompt_token_count=1), "1")
    write_segment(folder, build(1, actor_name="old", prompt_token_count=2) + build(4), "2")
    (folder / "3.open.ndjson").write_bytes(build(2, actor_name="older", resolved_status_code=200) + b'{"torn')
    for _ in range(2):
        (row,) = summarise(folder)
        assert (row.requests, row.errors, row.prompt_tokens, row.completion_tokens) == (4, 3, 3, None)
        assert row.actor_name == "new"
