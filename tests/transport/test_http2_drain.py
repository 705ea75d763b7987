"""Draining HTTP/2 connections: two GOAWAY frames, no request lost, no answer cut that could finish."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from cgw.transport.http2_client import Http2Client
from cgw.wire import http2_frames as frames
from cgw.wire.http2_frames import pack_frame
from tests.support.http2_engine import echo, open_frames, open_http2_engine
from tests.support.waiting import wait_until


async def test_drain_says_goaway_twice() -> None:
    """First with 2^31−1, so that requests under way are served; then with the last id. It ends with the last stream."""
    may_answer = trio.Event()

    async def answer(client: Http2Client) -> None:
        await may_answer.wait()
        await echo(client)

    async with open_http2_engine(answer) as engine, open_frames(engine.port) as client:
        client.answers_pings = False
        await client.send(client.request(1))
        await wait_until(lambda: engine.handled == 1)
        assert not engine.connections[0].is_idle
        engine.drain()
        await client.receive_until(lambda: bool(client.goaways))
        assert client.goaways == [(2**31 - 1, ErrorCodes.NO_ERROR)]
        await client.send(client.request(3))  # it crossed the GOAWAY
        await wait_until(lambda: engine.handled == 2)
        await client.send(pack_frame(frames.PING, frames.ACK, 0, client.frames[-1].payload))
        await client.receive_until(lambda: len(client.goaways) == 2)
        assert client.goaways[1] == (3, ErrorCodes.NO_ERROR)
        await client.send(client.request(5))
        assert await client.wait_reset(5) == ErrorCodes.REFUSED_STREAM
        may_answer.set()
        for stream_id in (1, 3):
            assert (await client.wait_answer(stream_id)).status == 200
        assert await client.wait_end() == ErrorCodes.NO_ERROR
        assert engine.handled == 2


async def test_drain_of_an_idle_connection_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    """At once where the client answers the PING, after a second where it does not."""
    autojump_clock.autojump_threshold = 0.01
    async with open_http2_engine() as engine:
        for answers_pings, seconds in ((True, 0), (False, 1)):
            async with open_frames(engine.port) as client:
                client.answers_pings = answers_pings
                await client.wait_pong()
                assert engine.connections[-1].is_idle
                started = trio.current_time()
                engine.drain()
                while len(client.goaways) < 2:
                    assert await client.receive()
                assert trio.current_time() - started == pytest.approx(seconds, abs=0.2)
                await client.stream.send_eof()
                while await client.receive():
                    pass


async def test_connection_that_begins_while_draining() -> None:
    """It is told to go, and what it sends meanwhile is served."""
    async with open_http2_engine() as engine:
        engine.is_draining = True
        async with open_frames(engine.port) as client:
            client.answers_pings = False
            await client.send(client.request(1))
            assert (await client.wait_answer(1)).status == 200
            await client.receive_until(lambda: bool(client.goaways))
            await client.stream.send_eof()


async def test_cut_ends_exchanges_visibly() -> None:
    """At the deadline of a drain what is left is cancelled, and no answer looks complete."""

    async def answer(client: Http2Client) -> None:
        await client.send_head(200, [], is_stream=True)
        await trio.sleep_forever()

    async with open_http2_engine(answer) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1))
        await client.receive_until(lambda: client.answer(1).status == 200)
        engine.server.cut()
        while await client.receive():
            pass
        assert not client.answer(1).is_complete
        assert client.answer(1).reset in (None, ErrorCodes.INTERNAL_ERROR)
