"""Waiting for conditions that have no event."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def wait_until(is_true: Callable[[], bool], *, seconds: float = 20) -> None:
    """Poll ``is_true()`` every millisecond. Raises :exc:`trio.TooSlowError` after ``seconds``."""
    with trio.fail_after(seconds):
        while not is_true():  # noqa: ASYNC110 - polling is the purpose of this function
            await trio.sleep(0.001)
