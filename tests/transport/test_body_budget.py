"""The budget of request bodies: never exceeded, in the order of asking, and nothing is lost by cancellation."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cgw.transport.body_budget import FREE_BYTES, BodyBudget
from cgw.transport.client_side import ClientLimits, ClientSide
from tests.support.http_engine import HEAD, echo, open_engine
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import open_client
from tests.support.waiting import wait_until

__all__ = ["quiet_log"]

MIB = 1024 * 1024
UNIT = FREE_BYTES + 1
MAXIMUM = 4 * UNIT

sizes = st.integers(1, 6).map(lambda units: units * UNIT)
steps = st.one_of(
    st.tuples(st.just("ask"), sizes),
    st.tuples(st.just("ask now"), sizes),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("end after release"), st.integers(0, 9)),
)


class Model:
    """Tasks that hold or wait, in the order of asking."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.budget = BodyBudget(MAXIMUM)
        self.nursery = nursery
        self.waiting: list[tuple[int, trio.CancelScope]] = []
        self.holding: list[tuple[int, trio.CancelScope]] = []

    async def hold(self, size: int, scope: trio.CancelScope) -> None:
        entry = (size, scope)
        self.waiting.append(entry)
        with scope:
            try:
                await self.budget.acquire(size)
            finally:
                self.waiting.remove(entry)
            self.holding.append(entry)
            try:
                await trio.sleep_forever()
            finally:
                self.holding.remove(entry)
                self.budget.release(size)

    async def play(self, step: str, value: int) -> None:
        if step == "ask":
            self.nursery.start_soon(self.hold, value, trio.CancelScope())
        elif step == "ask now":
            if self.budget.acquire_nowait(value):
                assert not self.waiting
                self.budget.release(value)
        else:
            tasks = [*self.waiting, *self.holding]
            if tasks:
                tasks[value % len(tasks)][1].cancel()
            if step == "end after release" and self.holding and self.waiting:
                # The room and the cancellation reach the first that waits in the same turn.
                self.holding[0][1].cancel()
                self.waiting[0][1].cancel()
        await trio.testing.wait_all_tasks_blocked()
        self.check()

    def check(self) -> None:
        held = sum(min(size, MAXIMUM) for size, _ in self.holding)
        assert self.budget.used_bytes == held <= MAXIMUM
        # Nobody waits for room that is there.
        assert not self.waiting or min(self.waiting[0][0], MAXIMUM) > MAXIMUM - held


@settings(max_examples=150)
@given(st.lists(steps, max_size=25))
def test_budget_is_kept_in_the_order_of_asking(script: list[tuple[str, int]]) -> None:
    """However bodies come, end and are cancelled, the bound holds, the first goes next, and all comes back."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            model = Model(nursery)
            for step, value in script:
                await model.play(step, value)
            nursery.cancel_scope.cancel()
        assert model.budget.used_bytes == 0

    trio.run(run)


async def test_small_bodies_do_not_starve_a_large_one() -> None:
    """While a large body waits, smaller ones that would fit wait behind it, or are told that there is no room."""
    budget = BodyBudget(MAXIMUM)
    order: list[int] = []

    async def take(units: int) -> None:
        await budget.acquire(units * UNIT)
        order.append(units)

    await budget.acquire(2 * UNIT)
    async with trio.open_nursery() as nursery:
        for units in (4, 1):
            nursery.start_soon(take, units)
            await trio.testing.wait_all_tasks_blocked()
        assert not budget.acquire_nowait(UNIT)
        budget.release(2 * UNIT)
        await trio.testing.wait_all_tasks_blocked()
        assert order == [4]
        budget.release(4 * UNIT)
    assert order == [4, 1]


def post(size: int) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % size


async def test_twenty_large_bodies_are_served_within_the_budget() -> None:
    """Twenty bodies of 3 MB against 8 MiB are all served, never more than two at a time."""
    budget = BodyBudget(8 * MIB)
    most = inside = 0

    async def handle(client: ClientSide) -> None:
        nonlocal most, inside
        body = await client.receive_body()
        inside += 1
        most = max(most, inside)
        assert budget.used_bytes <= 8 * MIB
        await trio.sleep(0.005)
        inside -= 1
        await client.send_response(200, (), b"%d" % len(body))

    async def send(port: int) -> None:
        async with open_client(port) as client:
            assert (await client.ask(post(3_000_000) + b"x" * 3_000_000)).body == b"3000000"

    async with open_engine(handle, budget=budget) as engine, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(send, engine.port)
    assert most == 2
    assert budget.used_bytes == 0


async def test_body_that_waits_is_not_read() -> None:
    """Until its turn comes, a body stays with its client: nothing but what came with its head is in memory."""
    budget = BodyBudget(MIB)
    await budget.acquire(MIB)
    async with open_engine(budget=budget) as engine, open_client(engine.port) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, post(20 * MIB) + b"x" * 20 * MIB)
            with trio.move_on_after(0.2):
                await wait_until(lambda: not nursery.child_tasks)  # pragma: no cover
            assert nursery.child_tasks, "all was taken although there is no room"
            budget.release(MIB)
        assert (await client.read_answer()).status == 200
    assert budget.used_bytes == 0


@pytest.mark.parametrize("name", ["length", "chunked"])
async def test_body_without_room_is_503(autojump_clock: trio.testing.MockClock, name: str) -> None:
    """A chunked body that finds no room is refused at once, one with a length after the body's timeout."""
    autojump_clock.autojump_threshold = 0.02
    budget = BodyBudget(MIB)
    await budget.acquire(MIB)
    limits = ClientLimits(body_timeout_seconds=5)
    async with open_engine(limits=limits, budget=budget) as engine, open_client(engine.port) as client:
        started = trio.current_time()
        if name == "length":
            await client.send(post(500_000) + b"x" * 1000)
        else:
            await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n80000\r\n" + b"x" * 1000)
        answer = await client.read_answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert trio.current_time() - started == pytest.approx(5 if name == "length" else 0, abs=0.5)
    assert budget.used_bytes == MIB


async def test_chunked_bodies_are_counted_as_they_grow() -> None:
    """The memory of a chunked body is reserved before it is filled, and given back at its end."""
    budget = BodyBudget(8 * MIB)
    async with open_engine(echo, budget=budget) as engine, open_client(engine.port) as client:
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 32)
        await wait_until(lambda: budget.used_bytes >= 2 * MIB)
        answer = await client.ask(b"0\r\n\r\n")
        assert len(answer.body) == len(b"/fast ") + 2 * MIB
        await wait_until(lambda: budget.used_bytes == 0)


@pytest.mark.parametrize("size", [70_000, 500_000], ids=["received with its head", "still to come"])
async def test_client_that_leaves_while_it_waits_is_not_run(size: int) -> None:
    """A client that leaves before its turn is dropped at once; its body is never handled, and holds nothing."""
    budget = BodyBudget(MIB)
    await budget.acquire(MIB)
    handled: list[bytes] = []

    async def handle(client: ClientSide) -> None:
        handled.append(await client.receive_body())

    async with open_engine(handle, budget=budget) as engine:
        async with open_client(engine.port) as client:
            await client.send(post(size) + b"x" * 70_000)
            await wait_until(lambda: engine.handled == 1)
        await wait_until(lambda: engine.server.connection_count == 0)
        assert budget.used_bytes == MIB
        budget.release(MIB)
    assert (handled, budget.used_bytes) == ([], 0)
