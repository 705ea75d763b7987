"""One scope for all requests of a connection: what is cancelled is concluded outside of it, and hurts no other."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from cgw.errors import ClientGone
from cgw.transport.client_side import ClientLimits, ClientSide
from cgw.transport.serving_scope import Cause, ServingScope
from tests.support.http2_engine import PSEUDO, open_frames, open_http2_engine
from tests.support.http_engine import HEAD, Engine, echo, open_engine, read_refusal
from tests.support.raw_client import open_client
from tests.support.waiting import wait_until

REQUEST = HEAD + b"Content-Length: 2\r\n\r\nok"


def scope_of(engine: Engine) -> ServingScope:
    assert engine.scope is not None
    return engine.scope


async def wait_and_answer_late(client: ClientSide, scope: ServingScope) -> None:
    """Wait until the deadline has passed, which is answered with 504 when the scope is left."""

    async def conclude() -> None:
        assert scope.cause is Cause.LATE
        scope.conclude = None
        await trio.lowlevel.checkpoint()  # the scope was left: nothing is cancelled here
        await client.send_response(504, (), b"late")

    await client.receive_body()
    scope.conclude = conclude
    scope.set_deadline(trio.current_time() + 3)
    await trio.sleep_forever()


async def test_who_is_late_answers_outside_of_the_scope(autojump_clock: trio.testing.MockClock) -> None:
    """The connection is kept, and goes on in another scope, whose deadlines hold again."""
    autojump_clock.autojump_threshold = 0.01

    async def play(client: ClientSide) -> None:
        if client.head.path == b"/fast":
            await echo(client)
        else:
            await wait_and_answer_late(client, scope_of(engine))

    async with open_engine(play) as engine, open_client(engine.port) as client:
        for _ in range(3):
            started = trio.current_time()
            answer = await client.ask(REQUEST.replace(b"/fast", b"/slow"))
            assert (answer.status, answer.body) == (504, b"late")
            assert trio.current_time() - started == pytest.approx(3, abs=0.1)
            assert (await client.ask(REQUEST)).status == 200
        started = trio.current_time()
        assert await client.read_end() == b""
        assert trio.current_time() - started == pytest.approx(75, abs=0.1)


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("has_left_something", [False, True])
async def test_a_cancellation_in_the_last_moment_hurts_no_other_request(cause: Cause, has_left_something: bool) -> None:
    """When the scope is cancelled as its request ends, the next ones are served, pipelined ones too."""
    concluded: list[Cause | None] = []

    async def play(client: ClientSide) -> None:
        scope = scope_of(engine)

        async def conclude() -> None:
            scope.conclude = None
            await trio.lowlevel.checkpoint()
            concluded.append(scope.cause)

        await echo(client)
        scope.cancel(cause)
        scope.conclude = conclude if has_left_something else None

    async with open_engine(play) as engine, open_client(engine.port) as client:
        for _ in range(3):
            assert (await client.ask(REQUEST)).status == 200
        await client.send(REQUEST * 3)
        for _ in range(3):
            assert (await client.read_answer()).status == 200
        assert engine.handled == 6
        await wait_until(lambda: concluded == [cause] * 6 * has_left_something)


async def test_a_request_that_comes_as_its_time_is_over_is_served(autojump_clock: trio.testing.MockClock) -> None:
    """When the keep-alive timeout passes in the turn in which a request arrives, whichever task is first."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine(limits=ClientLimits(keep_alive_timeout_seconds=20)) as engine:
        for _ in range(20):
            async with open_client(engine.port) as client:
                await client.ask(REQUEST)
                await trio.testing.wait_all_tasks_blocked(0.001)
                client.stream.socket._sock.send(REQUEST)  # type: ignore[attr-defined]
                autojump_clock.jump(21)
                assert (await client.read_answer()).status == 200


async def test_a_head_that_is_complete_as_its_time_is_over_is_served(autojump_clock: trio.testing.MockClock) -> None:
    """The second half of a head may arrive in the turn in which its timeout passes."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine(limits=ClientLimits(header_timeout_seconds=5)) as engine:
        for _ in range(20):
            async with open_client(engine.port) as client:
                await client.send(REQUEST[:20])
                await trio.testing.wait_all_tasks_blocked(0.001)
                client.stream.socket._sock.send(REQUEST[20:])  # type: ignore[attr-defined]
                autojump_clock.jump(6)
                assert (await client.read_answer()).status == 200
        async with open_client(engine.port) as client:
            await client.send(REQUEST[:20])
            await trio.testing.wait_all_tasks_blocked(0.001)
            autojump_clock.jump(6)
            assert "5 seconds" in await read_refusal(client, 408)


async def test_what_is_cut_from_outside_is_concluded_too() -> None:
    """When the server is cut, each request is concluded while it is cancelled, and without a cause."""
    concluded: list[Cause | None] = []

    async def play(client: ClientSide) -> None:
        scope = scope_of(engine)

        async def conclude() -> None:
            scope.conclude = None
            concluded.append(scope.cause)
            with trio.CancelScope(shield=True):
                await client.send_response(503, (), b"cut")

        scope.conclude = conclude
        await trio.sleep_forever()

    async with open_engine(play) as engine, open_client(engine.port) as client:
        await client.send(REQUEST)
        await wait_until(lambda: engine.handled == 1)
        engine.server.cut()
        assert (await client.read_answer()).body == b"cut"
        assert concluded == [None]


async def test_an_error_of_a_request_leaves_its_scope() -> None:
    """The connection of a client that left, as its handler says, ends without anything left."""

    async def play(client: ClientSide) -> None:
        await client.receive_body()
        raise ClientGone

    async with open_engine(play) as engine, open_client(engine.port) as client:
        await client.send(REQUEST)
        assert await client.read_end() == b""
        assert engine.deadlines.statistics().planned == 0


async def test_each_stream_of_http_2_has_a_scope_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    """One stream that is late is answered, and the others go on."""
    autojump_clock.autojump_threshold = 0.01

    async def play(client: ClientSide) -> None:
        if client.head.path == b"/slow":
            assert engine.scope is not None
            await wait_and_answer_late(client, engine.scope)
        else:
            await trio.sleep(5)
            await client.send_response(200, (), b"ok")

    async with open_http2_engine(play) as engine, open_frames(engine.port) as client:
        slow = [(name, b"/slow" if name == b":path" else value) for name, value in PSEUDO]
        await client.send(client.request(1, pseudo=slow) + client.request(3))
        assert (await client.wait_answer(1)).status == 504
        assert (await client.wait_answer(3, seconds=10)).status == 200
        assert engine.deadlines.statistics().planned == 1  # that of the connection itself


async def test_a_connection_of_http_2_leaves_no_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """Not by an exchange either that ends after the client has left, and so after the last frame was read."""
    autojump_clock.autojump_threshold = 0.01

    async def play(client: ClientSide) -> None:
        await client.wait_gone()
        await trio.sleep(1)

    async with open_http2_engine(play) as engine:
        async with open_frames(engine.port) as client:
            await client.send(client.request(1))
            await wait_until(lambda: engine.scope is not None)
        await wait_until(lambda: engine.server.connection_count == 0)
        assert engine.deadlines.statistics().planned == 0
