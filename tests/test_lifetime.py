"""Background tasks, and the block that uses them."""

from __future__ import annotations

import pytest
import trio

from cgw.lifetime import open_background_task


async def test_task_ends_with_the_block(autojump_clock: trio.testing.MockClock) -> None:
    """The task runs while the block runs, and has ended when the block is left."""
    log: list[str] = []

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("task ended")

    async with open_background_task(serve):
        await trio.sleep(1)
        log.append("block ended")
    assert log == ["block ended", "task ended"]


async def test_cancellation_reaches_the_block_first(autojump_clock: trio.testing.MockClock) -> None:
    """While the block cleans up after a cancellation, the task still runs."""
    log: list[str] = []

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("task ended")

    with trio.move_on_after(1) as scope:
        async with open_background_task(serve):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(5)
                log.append("cleaned up")
    assert scope.cancelled_caught
    assert log == ["cleaned up", "task ended"]


async def test_error_of_the_block_is_not_wrapped() -> None:
    """The block's own exception comes out as the same object, not in a group."""
    error = LookupError("mine")
    with pytest.raises(LookupError) as raised:
        async with open_background_task(trio.sleep_forever):
            raise error
    assert raised.value is error


async def test_failing_task_cancels_the_block() -> None:
    """A task that fails cancels the block, and its error comes out in a group."""

    async def fail() -> None:
        raise RuntimeError("broken")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="broken")):
        async with open_background_task(fail):
            await trio.sleep_forever()
