"""The API's last event is found wherever the stream is cut, and held back until it is to go out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.final_events import MAX_EVENT_BYTES, FinalEventScanner
from cgw.wire.framers import ChunkedFramer, ChunkSizes, FramerState
from cgw.wire.windows import BodyWindowCollector

OPENAI = (b"data: [DONE]",)
ANTHROPIC = (b"event: message_stop",)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.lists(
    st.sampled_from(
        [b"data: {}", b'data: {"text": "data: [DONE]"}', b"data: [DONE] ", b"x", b"", b"data: " + b"y" * 90]
    ),
    max_size=6,
)
CUTS = st.lists(st.integers(min_value=1, max_value=9), min_size=1, max_size=40)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut ``data`` into pieces of ``sizes``, which repeat."""
    pieces, position, turn = [], 0, 0
    while position < len(data):
        pieces.append(data[position : position + sizes[turn % len(sizes)]])
        position += len(pieces[-1])
        turn += 1
    return pieces


@given(LINES, LINE_ENDS, CUTS, st.sampled_from([b"data: [DONE]", b"data:[DONE]"]))
def test_event_is_found_at_its_end(lines: list[bytes], line_end: bytes, sizes: list[int], marker: bytes) -> None:
    """However the stream is cut, ``is_ending`` comes with the marker's line end, ``is_final`` with the empty line."""
    scanner = FinalEventScanner(OPENAI)
    before = b"".join(line + line_end for line in lines)
    marked = before + marker + line_end
    whole = marked + line_end
    fed = 0
    for piece in cut(whole, sizes):
        fed += len(piece)
        scanner.feed(piece)
        # Behind a CR there may come an LF, which belongs to the same line end.
        assert scanner.is_ending == (fed >= len(marked) - len(line_end) + 1)
        if fed < len(marked) + 1:
            assert not scanner.is_final
    assert scanner.is_final


@pytest.mark.parametrize("step", [1, 100, 10_000])
def test_event_that_does_not_end_counts_as_ended(step: int) -> None:
    """So what is held back of it is bounded, in however many pieces it comes."""
    scanner, held = FinalEventScanner(ANTHROPIC), 0
    scanner.feed(b"event: message_stop\n")
    while not scanner.is_final:
        scanner.feed(b"x" * step)
        held += step
    assert held <= MAX_EVENT_BYTES + 4 * step


@given(LINES, CUTS)
def test_nothing_else_is_taken_for_it(lines: list[bytes], sizes: list[int]) -> None:
    """A marker inside a JSON string, behind other text, or with text behind it, is none."""
    scanner = FinalEventScanner(OPENAI)
    for piece in cut(b"".join(line + b"\n" for line in lines), sizes):
        scanner.feed(piece)
    assert not scanner.is_ending


@pytest.mark.parametrize(
    "text", [b'data: {"content":"\\n\\ndata: [DONE]\\n\\n"}\n\n', b": data: [DONE]\n\n", b"data: [DONE"]
)
def test_lookalikes(text: bytes) -> None:
    """What a model writes cannot end its answer."""
    scanner = FinalEventScanner(OPENAI)
    assert not scanner.feed(text)


def test_event_ends_later_than_its_marker() -> None:
    """Anthropic's marker is the name of the event, whose data follow."""
    scanner = FinalEventScanner(ANTHROPIC)
    assert scanner.feed(b"event: message_stop\n")
    assert not scanner.is_final
    scanner.feed(b'data: {"type":"message_stop"}\n')
    assert not scanner.is_final
    scanner.feed(b"\n")
    assert scanner.is_final


@pytest.mark.parametrize("marker", [b"[DONE]", b"data: ", b"data: " + b"x" * 60])
def test_markers_are_checked(marker: bytes) -> None:
    """A marker that could not be found is refused when it is used first."""
    with pytest.raises(ValueError, match="a marker must be"):
        FinalEventScanner((marker,))


EVENTS = st.lists(
    st.binary(min_size=1, max_size=30).map(lambda text: b"data: " + text.hex().encode() + b"\n\n"), max_size=5
)


@given(EVENTS, CUTS, CUTS, st.binary(max_size=6))
def test_framer_holds_the_last_event(events: list[bytes], chunks: list[int], reads: list[int], behind: bytes) -> None:
    """Whatever the chunks and reads are, nothing of the last event's end passes before it may, and nothing is lost."""
    payload = b"".join(events) + b"data: [DONE]\n\n"
    raw = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in cut(payload, chunks))
    raw += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in cut(behind, [3])) + b"0\r\n\r\n"
    collector = BodyWindowCollector()
    collector.look_for(OPENAI)
    framer = ChunkedFramer(collector, ChunkSizes())
    passed, state, is_released = b"", FramerState.OPEN, False
    pieces = cut(raw, reads)
    while state is not FramerState.COMPLETE:
        data = framer.held + (pieces.pop(0) if pieces else b"")
        count, state = framer.feed(data, len(data))
        passed += data[:count]
        if not is_released:
            assert b"[DONE]\n" not in _decode(passed)
            collector.fold()
            assert collector.total_bytes - framer.final_payload_bytes == len(_decode(passed))
        if state is not FramerState.OPEN and not is_released:
            assert collector.is_final
            passed, is_released = passed + framer.final, True
    assert is_released
    assert passed + framer.held == raw
    window = collector.close(is_complete=True)
    assert window.head + window.tail == payload + behind


def _decode(raw: bytes) -> bytes:
    """Return the payload in ``raw``, which may be cut in a chunk."""
    payload = b""
    while (end := raw.find(b"\r\n")) >= 0:
        size = int(raw[:end], 16)
        payload += raw[end + 2 : end + 2 + size]
        raw = raw[end + 2 + size + 2 :]
    return payload
