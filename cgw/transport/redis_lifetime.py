"""A nursery for background services that outlive the cancellation of the block that uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def run_services(services: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run ``services`` in a task of its own for the length of the block.

    Guarantees: a cancellation from outside reaches the block first; the services go on until the block has ended,
    so that its shielded cleanup can still use them, and are then cancelled and waited for. What the block raises
    comes out as it is, in no exception group. If the services raise, the block is cancelled and the error comes
    out in an exception group. The services must end promptly once they are cancelled.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        service_scope = trio.CancelScope(shield=True)

        async def run() -> None:
            with service_scope:
                await services()

        nursery.start_soon(run)
        try:
            yield
        except BaseException as raised:  # noqa: BLE001 - raised again below
            # Kept back until the nursery has ended: leaving it with an error would wrap that in a group.
            error = raised
        service_scope.cancel()
        # Only the end of the services is waited for from here on.
        nursery.cancel_scope.shield = True
    if error is not None:
        raise error
