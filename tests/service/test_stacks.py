"""The stacks that SIGQUIT logs."""

from __future__ import annotations

import threading

import trio
import trio.testing

from cgw.service.stacks import format_stacks


async def wait_here(event: trio.Event) -> None:
    await event.wait()


async def nest(depth: int, event: trio.Event) -> None:
    """Wait in the innermost of ``depth`` nurseries within one another, each in a task of its own."""
    if depth == 0:
        await event.wait()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nest, depth - 1, event)


async def test_each_place_where_tasks_wait_is_listed_once_with_their_number() -> None:
    """Tasks with the same stack share an entry, which says how many they are and where they wait."""
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(wait_here, event)
        await trio.testing.wait_all_tasks_blocked()
        stacks = format_stacks()
        event.set()
    (waiting,) = [stack for stack in stacks if "wait_here" in stack.partition("\n")[0]]
    assert waiting.startswith("50 tasks ")
    assert "in a nursery of" in waiting
    assert "await event.wait()" in waiting
    assert f"{__file__}:" in waiting


async def test_the_running_task_and_threads_are_listed() -> None:
    """The task that asks is there as well, and every thread with its name."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="a-thread-of-the-test")
    thread.start()
    stacks = format_stacks()
    release.set()
    thread.join()
    assert any("test_the_running_task_and_threads_are_listed" in stack for stack in stacks)
    assert any(stack.startswith("thread a-thread-of-the-test\n") and "wait" in stack for stack in stacks)
    assert any(stack.startswith("thread MainThread\n") for stack in stacks)


async def test_deeply_nested_nurseries_are_walked() -> None:
    """Nurseries that are nested more deeply than Python's calls may be do not end the walk."""
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nest, 1500, event)
        await trio.testing.wait_all_tasks_blocked()
        stacks = format_stacks()
        event.set()
    assert any(stack.startswith("1500 tasks") or "nest" in stack for stack in stacks)
