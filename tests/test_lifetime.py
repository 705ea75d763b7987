"""Background tasks and the block that uses them."""

from __future__ import annotations

import pytest
import trio

from cgw.lifetime import open_background_task


async def test_services_end_with_the_block(autojump_clock: trio.testing.MockClock) -> None:
    """Background tasks run for the length of the block, and have ended when it has."""
    log: list[str] = []

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("service ended")

    async with open_background_task(serve):
        await trio.sleep(1)
        log.append("block ended")
    assert log == ["block ended", "service ended"]


async def test_cancellation_reaches_the_block_first(autojump_clock: trio.testing.MockClock) -> None:
    """While the block cleans up after a cancellation, its background tasks still run."""
    log: list[str] = []

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("service ended")

    with trio.move_on_after(1) as scope:
        async with open_background_task(serve):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(5)
                log.append("cleaned up")
    assert scope.cancelled_caught
    assert log == ["cleaned up", "service ended"]


async def test_error_of_the_block_is_not_wrapped() -> None:
    """The block's own exception comes out as the very object that was raised."""
    error = LookupError("mine")
    with pytest.raises(LookupError) as raised:
        async with open_background_task(trio.sleep_forever):
            raise error
    assert raised.value is error


async def test_failing_service_cancels_the_block() -> None:
    """A background task that fails cancels the block, and its error comes out."""

    async def fail() -> None:
        raise RuntimeError("broken")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="broken")):
        async with open_background_task(fail):
            await trio.sleep_forever()
