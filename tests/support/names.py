"""A stand-in for the system's look-up of host names: addresses to set, failures, and look-ups that hang."""

from __future__ import annotations

import math
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NameServer:
    """Takes the place of :func:`socket.getaddrinfo` for names in ``.test``. Those that are not set do not exist."""

    def __init__(self) -> None:
        self._system = socket.getaddrinfo
        self.asked: Counter[str] = Counter()
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._hanging: dict[str, float] = {}
        self._is_released = threading.Event()

    def set(self, host: str, *addresses: str) -> None:
        """Give ``host`` these numeric addresses; none: it does not exist."""
        self._addresses[host] = addresses

    @contextmanager
    def hanging(self, host: str, *, times: float = math.inf) -> Iterator[None]:
        """Let the next look-ups of ``host``, so many ``times``, hang until the block ends or :meth:`release`."""
        self._is_released.clear()
        self._hanging[host] = times
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let all look-ups go on."""
        self._hanging.clear()
        self._is_released.set()

    def look_up(
        self, host: Any, port: Any, family: int = 0, kind: int = 0, protocol: int = 0, flags: int = 0
    ) -> list[Any]:
        """Return as :func:`socket.getaddrinfo` does."""
        name = host.decode() if isinstance(host, bytes) else str(host)
        if flags & socket.AI_NUMERICHOST or not name.endswith(".test"):
            return self._system(host, port, family, kind, protocol, flags)
        self.asked[name] += 1
        left = self._hanging.get(name, 0)
        if left:
            self._hanging[name] = left - 1
            assert self._is_released.wait(30)
        addresses = self._addresses.get(name, ())
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in addresses for found in self._system(address, port, family, kind)]
