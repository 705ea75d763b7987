"""Hypercorn's log lines, sent the way of all others."""

from __future__ import annotations

import logging
from typing import Any

from hypercorn.config import Config
from hypercorn.logging import Logger


class HypercornLogger(Logger):
    """Writes no access lines (exchanges have their own) and sends the rest to ``cgw.control``."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.access_logger = None
        self.error_logger = logging.getLogger("cgw.control")

    async def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log as debugging: it is the start, with a hint for a terminal that does not apply here."""
        await self.debug(message, *args, **kwargs)

    async def access(self, request: Any, response: Any, request_time: float) -> None:
        """Nothing."""
