"""Waiting for what nobody announces."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def wait_until(is_true: Callable[[], bool], *, seconds: float = 5) -> None:
    """Look again every millisecond until ``is_true()``; :exc:`trio.TooSlowError` after ``seconds``."""
    with trio.fail_after(seconds):
        while not is_true():  # noqa: ASYNC110 - the point of this function
            await trio.sleep(0.001)
