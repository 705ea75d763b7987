"""The writing side of an HTTP/2 connection: serialised writes with a bound and a stall timeout."""

from __future__ import annotations

from collections.abc import Callable

import trio

from cgw.transport.sockets import PlainTransport, Transport

TLS_PART_BYTES = 64 * 1024
"""The most that is encrypted and sent at once over TLS."""


class Http2Writer:
    """Writes to the socket at once as far as the kernel accepts it, and keeps the rest for :meth:`run`.

    :meth:`write` never waits, so any task can call it, and frames of different tasks are never mixed. ``on_room`` is
    called when :attr:`is_full` becomes false; ``on_broken`` once, when a write fails or the client reads nothing for
    ``stall_timeout_seconds``.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        full_bytes: int,
        stall_timeout_seconds: float,
        on_room: Callable[[], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._transport = transport
        # TLS has no writing without waiting: what it encrypted and the kernel refuses could not be kept here.
        self._plain = transport if isinstance(transport, PlainTransport) else None
        self._full_bytes = full_bytes
        self._stall_timeout_seconds = stall_timeout_seconds
        self._on_room = on_room
        self._on_broken = on_broken
        self._unsent = bytearray()
        self._wanted = trio.Event()
        self._idle = trio.Event()
        self.is_broken = False
        self.is_stalled = False

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that the kernel has not accepted yet."""
        return len(self._unsent)

    @property
    def is_full(self) -> bool:
        """True while at least ``full_bytes`` are unsent: answers should wait."""
        return len(self._unsent) >= self._full_bytes

    def write(self, data: bytes) -> None:
        """Write ``data`` now or later, in order. Discards it once the connection is broken."""
        if self.is_broken or not data:
            return
        # Only while nothing is unsent: otherwise these bytes would overtake those, in the middle of a frame.
        if not self._unsent and self._plain is not None:
            try:
                sent = self._plain.send_nowait(data)
            except BlockingIOError:
                sent = 0
            except (OSError, trio.ClosedResourceError):
                self._break()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent += data
        self._wanted.set()

    async def run(self) -> None:
        """Write unsent bytes as the client reads, until cancelled or the connection is broken."""
        while not self.is_broken:
            await self._wanted.wait()
            self._wanted = trio.Event()  # before the loop, so that a write during its last await is not missed
            while self._unsent and not self.is_broken:
                await self._send_some()

    async def flush(self) -> None:
        """Wait until nothing is unsent, or the connection is broken. :meth:`run` must be running."""
        while self._unsent and not self.is_broken:
            await self._idle.wait()

    async def _send_some(self) -> None:
        # Progress of any size counts here. A connection may carry many users' streams; the lower bound on progress is
        # applied to each answer by itself (PROGRESS_BYTES in Http2Client).
        with trio.move_on_after(self._stall_timeout_seconds) as stall_scope:
            try:
                if self._plain is None:
                    part = bytes(self._unsent[:TLS_PART_BYTES])
                    await self._transport.send_all(part)
                    sent = len(part)
                else:
                    # Waiting first: the kernel has just refused these bytes, or a part of them.
                    await trio.lowlevel.wait_writable(self._plain.sock)
                    sent = self._plain.send_nowait(self._unsent)
            except BlockingIOError:
                return
            except (OSError, trio.ClosedResourceError):
                self._break()
                return
        if stall_scope.cancelled_caught:
            self.is_stalled = True
            self._break()
            return
        was_full = self.is_full
        del self._unsent[:sent]
        # After the deletion, since on_room runs code that may write.
        if was_full and not self.is_full:
            self._on_room()
        if not self._unsent:
            self._wake_flush()

    def _break(self) -> None:
        # Frames for a broken connection are dropped, not kept: its exchanges may take a while to end.
        self.is_broken = True
        self._unsent.clear()
        self._wanted.set()
        self._wake_flush()
        self._on_broken()

    def _wake_flush(self) -> None:
        self._idle.set()
        self._idle = trio.Event()
