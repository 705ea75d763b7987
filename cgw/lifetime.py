"""Background tasks that run for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background_task(run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run ``run`` in a task of its own for the length of the block.

    A cancellation from outside reaches the block first. The task goes on until the block has ended, so that the
    block's shielded cleanup can still use it; then it is cancelled and waited for, and must end promptly. An exception
    of the block comes out unchanged, not in an exception group. If the task raises, the block is cancelled, and the
    error comes out in an exception group.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        # Shielded from the nursery's and all outer cancellations: only the line after the block ends the task.
        background_scope = trio.CancelScope(shield=True)

        async def run_shielded() -> None:
            with background_scope:
                await run()

        nursery.start_soon(run_shielded)
        try:
            yield
        except BaseException as raised:  # noqa: BLE001 - raised again below
            # Held back until the nursery has ended: the nursery would wrap it in a group.
            error = raised
        background_scope.cancel()
        # Now only the end of the background task is waited for: a cancellation from outside must not add a Cancelled.
        nursery.cancel_scope.shield = True
    if error is not None:
        raise error
