"""The windows that are kept of a body."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.windows import BodyWindowCollector


@given(st.lists(st.binary(max_size=30)), st.integers(0, 20), st.integers(1, 20))
def test_windows_hold_the_two_ends(chunks: list[bytes], head_bytes: int, tail_bytes: int) -> None:
    """Head and tail are the body's ends; they are the whole body exactly when nothing was dropped."""
    collector = BodyWindowCollector(head_bytes, tail_bytes)
    for chunk in chunks:
        collector.feed(chunk)
    body = b"".join(chunks)
    window = collector.close(is_complete=True)
    assert window.total_bytes == len(body)
    assert body.startswith(window.head)
    assert body.endswith(window.tail)
    assert len(window.head) == min(head_bytes, len(body))
    assert window.is_whole == (window.head + window.tail == body)
    assert len(body) > head_bytes + 2 * tail_bytes or window.is_whole or len(window.tail) == tail_bytes


def test_memory_is_bounded() -> None:
    """Of a long body at most the head and twice the tail are kept."""
    collector = BodyWindowCollector(100, 100)
    for _ in range(1000):
        collector.feed(b"x" * 50)
        assert len(collector._tail) <= 200
    assert collector.close(is_complete=False).total_bytes == 50_000
