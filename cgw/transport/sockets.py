"""Non-blocking sockets that can be read and written from both worlds: a task that waits, and a loop that must not.

The plain path awaits; the flat relay calls the ``_nowait`` methods when its epoll says that they will get somewhere.
Both see the same bytes, TLS included: nothing is buffered where only one of them would find it.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import trio

RECEIVE_BYTES = 64 * 1024
"""The most that is read from a socket at once."""

BUFFER_BYTES = RECEIVE_BYTES + 32 * 1024
"""Room for what one read can yield: TLS adds at most one record that had been incomplete before."""


class PlainTransport:
    """A connected stream socket, owned: whoever holds the transport closes it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    def open_reading(self, scratch: Scratch) -> Callable[[int], bytes]:
        """A function like :meth:`receive_nowait`, but it returns the bytes: for who reads often.

        ``scratch`` is the caller's: it may read in another thread than everybody else.
        """
        return self.sock.recv

    def fileno(self) -> int:
        """The file descriptor, −1 once closed."""
        return self.sock.fileno()

    def receive_nowait(self, buffer: bytearray) -> int:
        """Read into ``buffer`` (of :data:`BUFFER_BYTES`) what is there; 0 at the end of the stream.

        Raises :exc:`BlockingIOError` when there is nothing, and other :exc:`OSError` for a broken connection.
        """
        return self.sock.recv_into(buffer, RECEIVE_BYTES)

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the kernel takes of ``data``; raises as :meth:`receive_nowait` does."""
        return self.sock.send(data)

    async def receive_some(self, buffer: bytearray) -> int:
        """Like :meth:`receive_nowait`, but waits. Cancel-safe: nothing is lost.

        Raises :exc:`OSError` for a broken connection, :exc:`trio.ClosedResourceError` for one closed meanwhile.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self.receive_nowait(buffer)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``. When cancelled, an unknown part has been written. Raises as :meth:`receive_some`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._send_raw(data)

    async def _send_raw(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)

    def is_quiet(self, buffer: bytearray) -> bool:
        """Whether the connection is open and the peer has sent nothing for the reader; ``buffer`` is scratch."""
        try:
            self.receive_nowait(buffer)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def reset(self) -> None:
        """Close the socket so that the peer sees an error instead of an end (TCP RST).

        That is needed where the end of the stream would be the end of the message: RFC 9112 §6.3, rule 8.
        """
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket at once; whoever waits on it gets :exc:`trio.ClosedResourceError`."""
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class Scratch:
    """Room to read into, which many transports may share: nothing stays in it over a wait."""

    def __init__(self) -> None:
        self.raw = bytearray(RECEIVE_BYTES)
        self.plain = bytearray(BUFFER_BYTES)


class TlsTransport(PlainTransport):
    """TLS over a socket, as a client, by memory BIOs: so that reading never waits for anything but the socket.

    A peer that ends without close_notify raises :exc:`ssl.SSLEOFError` (an :exc:`OSError`): the bytes may be cut.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str, scratch: Scratch) -> None:
        super().__init__(sock)
        self._scratch = scratch
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._unsent = b""
        self._is_ended = False

    def open_reading(self, scratch: Scratch) -> Callable[[int], bytes]:
        """See :meth:`PlainTransport.open_reading`."""

        def receive(_: int) -> bytes:
            size = self._receive(scratch.plain, scratch.raw)
            return bytes(memoryview(scratch.plain)[:size])

        return receive

    async def do_handshake(self) -> None:
        """Agree on keys and verify the peer. Raises :exc:`OSError`; :exc:`ssl.SSLError` is one."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_raw(self._outgoing.read())
                await self._receive_raw()
            else:
                await self._send_raw(self._outgoing.read())
                return

    async def _receive_raw(self) -> None:
        while True:
            try:
                self._take_raw(self._scratch.raw)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
            else:
                return

    def _take_raw(self, raw: bytearray) -> None:
        size = self.sock.recv_into(raw)
        if size:
            self._incoming.write(memoryview(raw)[:size])
        else:
            self._incoming.write_eof()

    def receive_nowait(self, buffer: bytearray) -> int:
        """See :meth:`PlainTransport.receive_nowait`. Empties TLS's own buffers, so that epoll tells the whole truth."""
        return self._receive(buffer, self._scratch.raw)

    def _receive(self, buffer: bytearray, raw: bytearray) -> int:
        view = memoryview(buffer)
        total = self._decrypt(view)
        if not total and not self._is_ended:
            self._take_raw(raw)
            total = self._decrypt(view)
            self._answer()
            if not total and not self._is_ended:
                raise BlockingIOError("TLS had something to say, but nothing for the reader")
        return total

    def _decrypt(self, view: memoryview) -> int:
        total = 0
        while total < len(view):
            try:
                size = cast("int", self._tls.read(len(view) - total, view[total:]))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                if not total:
                    raise
                self._show_end()  # and it will be raised again, after these bytes
                break
            if not size:
                self._is_ended = True
                if total:
                    self._show_end()
                break
            total += size
        return total

    def _show_end(self) -> None:
        """Make the socket readable for good. The end is in TLS's buffers already, where epoll cannot see it, and the
        peer may leave the socket itself open and silent."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)

    def _answer(self) -> None:
        """Send what TLS itself has to say, as after a key update; what the kernel does not take waits.

        A connection that takes nothing any more is no reason to lose what came on it: reading will tell of it.
        """
        if self._outgoing.pending or self._unsent:
            self._unsent += self._outgoing.read()
            with suppress(OSError):
                self._unsent = self._unsent[self.sock.send(self._unsent) :]

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Not for TLS: the flat relay only reads from upstreams."""
        raise NotImplementedError

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See :meth:`PlainTransport.send_all`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
            unsent, self._unsent = self._unsent + self._outgoing.read(), b""
            await self._send_raw(unsent)


def take_socket(stream: trio.SocketStream) -> socket.socket:
    """The stdlib socket under ``stream``, which must not be used any more. Non-blocking."""
    trio_socket = stream.socket
    family, kind, protocol = trio_socket.family, trio_socket.type, trio_socket.proto
    sock = socket.socket(family, kind, protocol, fileno=trio_socket.detach())
    sock.setblocking(False)
    return sock
