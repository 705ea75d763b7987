"""One epoll instance tells the hang-ups of all clients, once each, and is woken up by nothing else."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from cgw.transport.hangup_watch import MAX_HANGUPS_PER_PASS, HangupWatch
from tests.support.waiting import wait_until


@asynccontextmanager
async def open_watch() -> AsyncIterator[HangupWatch]:
    watch = HangupWatch()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            yield watch
            nursery.cancel_scope.cancel()
    finally:
        watch.close()


def leave_by_close(client: socket.socket) -> None:
    client.close()


def leave_half(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [leave_by_close, leave_half])
@pytest.mark.parametrize("has_sent", [False, True], ids=["", "with data unread"])
@pytest.mark.parametrize("is_early", [False, True], ids=["", "before it is watched"])
async def test_a_hangup_is_told_once(leave: Callable[[socket.socket], None], has_sent: bool, is_early: bool) -> None:
    """Whether it closes or only ends its sending side, with pipelined data before that, and also before the watch."""
    calls: list[None] = []
    here, there = socket.socketpair()
    async with open_watch() as watch:
        if has_sent:
            there.send(b"GET / HTTP/1.1\r\n")
        if is_early:
            leave(there)
        watched = watch.register(here)
        watched.on_gone = lambda: calls.append(None)
        await trio.testing.wait_all_tasks_blocked()
        if not is_early:
            assert calls == []
            leave(there)
        await wait_until(lambda: bool(calls))
        there.close()
        await trio.sleep(0.01)
        assert calls == [None]
        assert watched.is_gone
        watch.forget(here)
    here.close()


async def test_data_wakes_nobody_up() -> None:
    """What a client sends is the business of who reads it."""
    here, there = socket.socketpair()
    async with open_watch() as watch:
        watched = watch.register(here)
        await trio.testing.wait_all_tasks_blocked()
        switches = CountSteps()
        trio.lowlevel.add_instrument(switches)
        for _ in range(100):
            there.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(switches)
        assert switches.names.count(f"{HangupWatch.__module__}.HangupWatch.run") == 0
        assert not watched.is_gone
        watch.forget(here)
    here.close()
    there.close()


async def test_a_forgotten_socket_is_told_no_more() -> None:
    """Its number may belong to another socket afterwards. Forgetting twice does nothing."""
    calls: list[None] = []
    here, there = socket.socketpair()
    async with open_watch() as watch:
        watched = watch.register(here)
        watched.on_gone = lambda: calls.append(None)
        watch.forget(here)
        watch.forget(here)
        there.close()
        await trio.sleep(0.02)
        assert calls == []
    here.close()


async def test_thousands_leave_at_once() -> None:
    """More hang-ups than one pass tells are told in several."""
    count = MAX_HANGUPS_PER_PASS + 10
    calls: list[None] = []
    pairs = [socket.socketpair() for _ in range(count)]
    async with open_watch() as watch:
        for here, _ in pairs:
            watched = watch.register(here)
            watched.on_gone = lambda: calls.append(None)
        for _, there in pairs:
            there.close()
        await wait_until(lambda: len(calls) == count)
        for here, _ in pairs:
            watch.forget(here)
            here.close()
    assert len(calls) == count


async def test_a_socket_that_the_kernel_does_not_watch_is_looked_at(autojump_clock: trio.testing.MockClock) -> None:
    """Its hang-up is told a little later, like every other; forgetting it ends that."""
    here, there = socket.socketpair()
    forgotten, leaving = socket.socketpair()
    calls: list[str] = []
    async with open_watch() as watch:
        for sock, name in ((here, "here"), (forgotten, "forgotten")):
            watch.register(sock)
            watched = watch.register(sock)  # EEXIST here, ENOSPC when the kernel's bound on watches is reached
            watched.on_gone = partial(calls.append, name)
            watch._epoll.unregister(sock.fileno())
        watch.forget(forgotten)
        await trio.sleep(2)
        assert calls == []
        there.close()
        leaving.close()
        await trio.sleep(2)
        assert calls == ["here"]
        watch.forget(here)
        await trio.sleep(2)
    here.close()
    forgotten.close()


async def test_wait_gone() -> None:
    """Waiting returns once the client has left, at once if it has, and leaves nothing behind when cancelled."""
    here, there = socket.socketpair()
    async with open_watch() as watch:
        watched = watch.register(here)
        with trio.move_on_after(0.01) as scope:
            await watched.wait_gone()
        assert scope.cancelled_caught
        assert watched.on_gone is None
        there.close()
        with trio.fail_after(5):
            await watched.wait_gone()
            await watched.wait_gone()
        watch.forget(here)
    here.close()


class CountSteps(trio.abc.Instrument):
    """Names the tasks that ran."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.names.append(task.name)
