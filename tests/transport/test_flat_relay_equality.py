"""The fast path is compared with the fallback path: whatever upstream and client do, the results are the same."""

from __future__ import annotations

import functools
import random
import ssl

import pytest
import trio
import trio.testing
from attrs import evolve, frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cgw.model import BodyWindow
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool
from tests.support.descriptors import count_descriptors
from tests.support.relay_run import Answered, RelayRun, open_relay_run
from tests.support.tls_peer import TlsAuthority, TlsPeer

CONTENT = random.Random(7).randbytes(600_000)
SILENCE_SECONDS = 60
AUTHORITY = TlsAuthority()
CLIENT_CONTEXT = AUTHORITY.build_client_context()

BAD_LINES = [b"\r\n", b"x\r\n", b"-1\r\n", b"+3\r\n", b"3\n", b"FFFFFFFFFFFFFFFFFFFFF\r\n", b"0x3\r\nabc\r\n"]


@frozen
class Play:
    """A script for both sides. Sizes are in bytes.

    ``chunks`` are sizes and styles of their size lines; ``cut_at`` ends the upstream early; ``steps`` are the sizes of
    what it sends at once (in turn), ``reads`` those of what the client reads after each step (``None``: everything);
    after ``interrupt_after`` steps the exchange is cancelled, or the client leaves.
    """

    framing: str = "chunked"
    chunks: tuple[tuple[int, str], ...] = ((3, "plain"),)
    trailers: bytes = b""
    bad_line: tuple[int, bytes] | None = None
    bad_line_end: int | None = None
    surplus: bytes = b""
    cut_at: int | None = None
    end: str = "open"
    steps: tuple[int, ...] = (100,)
    reads: tuple[int, ...] | None = None
    interrupt: str = "none"
    interrupt_after: int = 0
    is_stream: bool = True

    @property
    def body(self) -> bytes:
        """The payload; of a body that ends with its connection, the part before ``cut_at``."""
        body = CONTENT[: sum(size for size, _ in self.chunks)]
        return body[: self.cut_at] if self.framing == "until close" else body

    def encode(self) -> bytes:
        """Encode head and body as the upstream sends them, up to its early end."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        if self.framing == "counted":
            head += b"content-length: %d\r\n\r\n" % len(self.body)
            framed = self.body + self.surplus
        elif self.framing == "until close":
            head, framed = head + b"\r\n", self.body
        else:
            head, framed = head + b"transfer-encoding: chunked\r\n\r\n", self._encode_chunked() + self.surplus
        return head + framed[: self.cut_at]

    def _encode_chunked(self) -> bytes:
        framed, position = b"", 0
        for index, (size, style) in enumerate(self.chunks):
            if self.bad_line is not None and self.bad_line[0] == index:
                framed += self.bad_line[1]
            framed += encode_size(size, style) + CONTENT[position : position + size]
            framed += b"!" if self.bad_line_end == index else b"\r\n"
            position += size
        return framed + b"0\r\n" + self.trailers + b"\r\n"


def encode_size(size: int, style: str) -> bytes:
    """Encode a chunk-size line in a style."""
    if style == "upper":
        return b"%X\r\n" % size
    if style == "zeros":
        return b"%08x\r\n" % size
    if style == "many zeros":
        return b"%020x\r\n" % size
    if style == "extension":
        return b"%x;name=value\r\n" % size
    if style == "space":
        return b"%x \r\n" % size
    return b"%x\r\n" % size


@frozen
class Result:
    """All that can be observed of an exchange from outside."""

    end: str | None
    answered: Answered
    before_release: Answered
    window: BodyWindow
    is_kept: bool
    is_upstream_closed: bool
    is_reusable: bool
    needs_reset: bool
    body_bytes_sent: int
    first_chunks: int
    held_back: bytes
    is_interrupted: bool


async def perform(play: Play, *, is_flat: bool, version: ssl.TLSVersion | None) -> Result:
    """Play ``play`` on one of the paths, and check that no descriptor is left."""
    deadlines = UpstreamDeadlines(silence_seconds=SILENCE_SECONDS)
    await trio.testing.wait_all_tasks_blocked()  # Trio's own waits are there now
    before = count_descriptors()
    pool = UpstreamPool(CLIENT_CONTEXT, deadlines)
    flat = FlatRelay(tick_seconds=0, silence_seconds=SILENCE_SECONDS)
    tls = None if version is None else TlsPeer(AUTHORITY.build_server_context(version))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flat.run_without_thread)
        await trio.testing.wait_all_tasks_blocked()
        at_rest = count_descriptors()
        buffer_bytes = None if play.reads is None else 2048
        async with open_relay_run(
            pool, flat if is_flat else None, tls=tls, client_buffer_bytes=buffer_bytes, is_stream=play.is_stream
        ) as run:
            result = await play_out(play, run, pool)
            assert flat.statistics().streams == 0
        pool.close_idle()
        await trio.testing.wait_all_tasks_blocked()
        assert count_descriptors() == at_rest
        nursery.cancel_scope.cancel()
    flat.close()
    assert count_descriptors() == before
    return result


async def play_out(play: Play, run: RelayRun, pool: UpstreamPool) -> Result:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    is_interrupted = await play_steps(play, run)
    if not is_interrupted:
        await run.read_all()
        if play.end in ("close", "reset"):
            run.end_upstream(reset=play.end == "reset")
            await run.read_all()
        if run.end is None:
            clock.jump(SILENCE_SECONDS + 1)
            await run.read_all()
    await trio.testing.wait_all_tasks_blocked()
    assert run.end is not None
    before_release = run.answer()
    is_kept = bool(pool.statistics().idle)
    is_upstream_closed = play.end in ("close", "reset") or run.is_upstream_closed()
    run.release.set()
    await run.read_all()
    client = run.client_side
    assert client is not None
    return Result(
        run.end,
        run.answer(),
        before_release,
        run.window,
        is_kept,
        is_upstream_closed,
        client.is_reusable,
        client.needs_reset,
        client.bytes_sent,
        run.first_chunks,
        run.held_back,
        is_interrupted,
    )


async def play_steps(play: Play, run: RelayRun) -> bool:
    """Send the data step by step; return whether the exchange was interrupted on the way."""
    data = play.encode()
    if run.tls is not None:
        head_end = data.index(b"\r\n\r\n") + 4
        # The head and pieces of some sizes are records of their own; then the ciphertext is cut anywhere.
        records = [data[:head_end], *cut(data[head_end:], (700, 1, 16_384, 40_000))]
        data = b"".join(run.tls.encrypt(record) for record in records)
        if play.end == "close_notify":
            data += run.tls.build_close_notify()
    for index, piece in enumerate([*cut(data, play.steps), b""]):
        if play.interrupt != "none" and index == play.interrupt_after and run.end is None:
            if play.interrupt == "cancel":
                run.scope.cancel()
            else:
                run.client.close()
                run.is_client_closed = True
            await trio.testing.wait_all_tasks_blocked()
            return True
        if piece:
            await run.send(piece)
        if play.reads is None:
            while run.read(65536):
                await trio.testing.wait_all_tasks_blocked()
        else:
            run.read(play.reads[index % len(play.reads)])
            await trio.testing.wait_all_tasks_blocked()
    return False


def cut(data: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    """Cut ``data`` into pieces of ``sizes``, in turn, and at most 61 of them."""
    pieces, position, turn = [], 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)] if turn < 60 else len(data)
        pieces.append(data[position : position + size])
        position, turn = position + size, turn + 1
    return pieces


def compare(play: Play, version: ssl.TLSVersion | None = None) -> tuple[Result, Result]:
    """Return the results of both paths, compared as far as they must be equal."""
    plain, flat = (
        trio.run(functools.partial(perform, play, is_flat=is_flat, version=version), clock=trio.testing.MockClock())
        for is_flat in (False, True)
    )
    for result in (plain, flat):
        check(play, result)
    if not plain.is_interrupted and not flat.is_interrupted:
        assert flat.end == plain.end
        assert flat.answered.payload == plain.answered.payload
        assert flat.answered.is_whole == plain.answered.is_whole
        assert flat.window == plain.window
        assert flat.is_reusable == plain.is_reusable
        assert flat.needs_reset == plain.needs_reset
        assert flat.body_bytes_sent == plain.body_bytes_sent
        assert flat.first_chunks == plain.first_chunks
        if play.reads is None or not play.surplus:
            assert flat.is_kept == plain.is_kept
            assert flat.is_upstream_closed == plain.is_upstream_closed
    elif play.reads is None:
        assert flat.end == plain.end
        assert flat.answered.payload == plain.answered.payload
        assert flat.is_kept == plain.is_kept
    return plain, flat


def check(play: Play, result: Result) -> None:
    """Check what must hold on each path."""
    assert play.body.startswith(result.answered.payload)
    assert not result.before_release.is_whole or (play.framing == "counted" and not play.body)
    assert result.answered.is_whole == (result.end == "complete")
    assert result.end == "complete" or not result.is_kept
    assert result.is_kept or result.is_upstream_closed
    assert result.window.is_complete == (result.end == "complete")
    assert play.body.startswith(result.window.head)
    if result.end == "complete":
        assert result.window.total_bytes == len(play.body)
        assert play.body.endswith(result.window.tail)
        assert result.answered.payload == play.body
    assert len(result.answered.payload) <= result.window.total_bytes
    assert result.first_chunks <= 1


SIZES = st.one_of(st.integers(1, 40), st.integers(1, 9_000), st.sampled_from([16, 255, 256, 4096, 65_536]))
LARGE_SIZES = st.one_of(st.integers(3_000, 20_000), st.sampled_from([65_536]))
STYLES = st.sampled_from(["plain"] * 6 + ["upper", "zeros", "many zeros", "extension", "space"])
STEPS = st.one_of(st.integers(1, 12), st.integers(1, 12), st.integers(1, 2_000), st.sampled_from([65_536, 100_000]))
LARGE_STEPS = st.one_of(st.integers(100, 20_000), st.sampled_from([65_536, 100_000]))
READS = st.lists(st.sampled_from([0, 1, 100, 1_000, 5_000, 100_000]), min_size=1, max_size=8).map(tuple)


@st.composite
def plays(draw: st.DrawFn) -> Play:
    is_slow = draw(st.sampled_from([False, False, True]))
    chunks = draw(st.lists(st.tuples(LARGE_SIZES if is_slow else SIZES, STYLES), min_size=is_slow, max_size=8))
    steps = draw(st.lists(LARGE_STEPS if is_slow else STEPS, min_size=1, max_size=20))
    play = Play(
        framing=draw(st.sampled_from(["chunked", "chunked", "chunked", "counted", "until close"])),
        chunks=tuple(chunks),
        surplus=draw(st.sampled_from([b"", b"", b"x", b"HTTP/1.1 200 OK\r\n"])),
        end=draw(st.sampled_from(["open", "close", "reset"])),
        steps=(draw(st.integers(1, 120)), *steps),
        reads=draw(READS) if is_slow else None,
        is_stream=draw(st.booleans()),
    )
    if play.framing == "chunked":
        index = st.integers(0, max(0, len(chunks) - 1))
        if draw(st.integers(0, 3)) == 0:
            play = evolve(play, trailers=draw(st.sampled_from([b"a: b\r\n", b"a: b\r\nc: d\r\n"])))
        if draw(st.integers(0, 5)) == 0:
            play = evolve(play, bad_line=(draw(index), draw(st.sampled_from(BAD_LINES))))
        if draw(st.integers(0, 5)) == 0:
            play = evolve(play, bad_line_end=draw(index))
    if draw(st.integers(0, 3)) == 0:
        play = evolve(play, cut_at=draw(st.integers(0, len(play.body) + 20)))
    if draw(st.integers(0, 2)) == 0:
        interrupt = draw(st.sampled_from(["cancel", "leave"]))
        play = evolve(play, interrupt=interrupt, interrupt_after=draw(st.integers(0, 8)))
    if play.reads is not None and play.end == "reset":
        play = evolve(play, end="close")  # how much the kernel drops with a reset varies
    return play


@settings(max_examples=120)
@given(plays())
@example(Play(end="open"))
@example(Play(framing="counted", chunks=((60_000, "plain"), (9, "plain")), reads=(100,), steps=(65_536,)))
@example(Play(chunks=((5, "plain"), (5, "extension"), (5, "plain")), trailers=b"a: b\r\n"))
@example(Play(chunks=((5, "extension"),)))
@example(Play(chunks=((65_536, "plain"),) * 3, reads=(50,), steps=(100_000,), interrupt="cancel", interrupt_after=2))
def test_both_paths_come_to_the_same(play: Play) -> None:
    """With every framing, cut, pace of the client and interruption both paths end alike, with the same bytes."""
    compare(play)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@settings(max_examples=20)
@given(plays(), st.booleans())
@example(Play(chunks=((3, "plain"),) * 5, steps=(100_000,)), True)
@example(Play(chunks=((65_536, "plain"),) * 4, steps=(100_000,), reads=(3_000,)), True)
@example(Play(chunks=((65_536, "plain"),), cut_at=3_000, end="close"), False)
@example(Play(framing="until close", end="close"), False)
def test_both_paths_come_to_the_same_over_tls(version: ssl.TLSVersion, play: Play, is_notified: bool) -> None:
    """The same over TLS: records cut at arbitrary bytes, many in one segment, ended with and without close_notify."""
    if is_notified and play.end != "reset":
        play = evolve(play, end="close_notify")
    compare(play, version)
