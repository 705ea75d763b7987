"""Lifetimes: running background tasks for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background_task(run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run ``run`` in a task of its own for the length of the block.

    Guarantees: a cancellation from outside reaches the block first; the task goes on until the block has ended, so
    that the block's shielded cleanup can still use it, and is then cancelled and waited for. What the block raises
    comes out as it is, in no exception group. If the task raises, the block is cancelled and the error comes out in
    an exception group. The task must end promptly once it is cancelled.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        background_scope = trio.CancelScope(shield=True)

        async def run_shielded() -> None:
            with background_scope:
                await run()

        nursery.start_soon(run_shielded)
        try:
            yield
        except BaseException as raised:  # noqa: BLE001 - raised again below
            # Kept back until the nursery has ended: leaving it with an error would wrap that in a group.
            error = raised
        background_scope.cancel()
        # From here on only the end of the background task is waited for.
        nursery.cancel_scope.shield = True
    if error is not None:
        raise error
