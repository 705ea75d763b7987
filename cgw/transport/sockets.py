"""Non-blocking sockets that can be read and written both by waiting tasks and by a loop that must not wait.

The fallback path awaits ``receive_some`` and ``send_all``; the fast path reads by ``open_reading`` when its epoll
reports a socket as ready. Each must be able to continue where the other stops, so a transport never keeps data that
only one of them would find.
"""

from __future__ import annotations

import abc
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

import trio

from cgw.transport.arrival import CONTROL_BYTES, Ancillary

RECEIVE_BYTES = 64 * 1024
"""The most that the relay and TLS read from a socket at once."""

BUFFER_BYTES = RECEIVE_BYTES + 32 * 1024
"""The size of a buffer for one read. TLS may yield more than was read: up to one record (16 KiB of payload), most of
which was read before and could not be decrypted without its end."""


MAX_READS_WITHOUT_WAIT = 4
"""Reads of one connection, one after the other, that find data at once; after these other tasks get their turn. Without
it a peer that sends as fast as it is read would keep the whole process to itself."""

LINGER_SECONDS = 5.0
LINGER_BYTES = 64 * 1024 * 1024


class Scratch:
    """Buffers to read into, shared by many transports.

    No data stays in them across an ``await``. They belong to one thread: the flat relay's has its own.
    """

    def __init__(self) -> None:
        self.raw = bytearray(RECEIVE_BYTES)
        self.plain = bytearray(BUFFER_BYTES)


class Transport(abc.ABC):
    """A connected stream socket. Whoever has the transport owns the socket, and closes it."""

    _keeps_data: ClassVar[bool] = True
    """Whether data may have been read of the socket that nobody has got yet."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ancillary: Ancillary = []  # of the last read by :meth:`receive_nowait`: tells when its data came
        self._reads_without_wait = 0

    @abc.abstractmethod
    def open_reading(self, scratch: Scratch) -> Callable[[int], bytes]:
        """Return a function like :meth:`receive_nowait` that returns the bytes; its argument is the most to read.

        It is a function of its own so that the relay's loop calls ``socket.recv`` without a method around it.
        ``scratch`` is the caller's, which may read in another thread than the transport's other users.
        """

    @abc.abstractmethod
    def receive_nowait(self, buffer: bytearray) -> int:
        """Read what is available into ``buffer`` (of :data:`BUFFER_BYTES`); return 0 at the end of the stream.

        Raises :exc:`BlockingIOError` when nothing is available, and other :exc:`OSError` for a broken connection.
        """

    @abc.abstractmethod
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``. When cancelled, an unknown part has been written. Raises as :meth:`receive_some`."""

    def fileno(self) -> int:
        """Return the file descriptor, −1 once closed."""
        return self.sock.fileno()

    async def receive_some(self, buffer: bytearray, *, waits_first: bool = False) -> int:
        """Like :meth:`receive_nowait`, but wait for data. Cancel-safe: nothing is lost.

        With ``waits_first`` the kernel is asked for data only once it reports some: for when there is hardly any yet.

        Raises :exc:`OSError` for a broken connection, and :exc:`trio.ClosedResourceError` when it is closed meanwhile.
        """
        if waits_first and not self._keeps_data:
            self._reads_without_wait = 0
            await trio.lowlevel.wait_readable(self.sock)  # the checkpoint of this call
        elif self._reads_without_wait < MAX_READS_WITHOUT_WAIT:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._reads_without_wait = 0
            await trio.lowlevel.checkpoint()
        while True:
            # Try first, wait only if needed: a request's head is usually there already.
            try:
                size = self.receive_nowait(buffer)
            except BlockingIOError:
                self._reads_without_wait = 0
                await trio.lowlevel.wait_readable(self.sock)
            else:
                self._reads_without_wait += 1
                return size

    def end_sending(self) -> None:
        """Tell the peer that nothing more will come. Raises :exc:`OSError` for a broken connection."""
        self.sock.shutdown(socket.SHUT_WR)

    async def linger(self, buffer: bytearray) -> None:
        """Let a peer that is still sending read our last response: end our side, then read and discard what comes.

        Without this the kernel answers the peer's data with a reset, on which it forgets the response unread
        (RFC 9112 §9.6). Bounded to five seconds and 64 MiB; the transport is left for the caller to close.
        """
        with trio.move_on_after(LINGER_SECONDS):
            try:
                self.end_sending()
                discarded = 0
                while discarded < LINGER_BYTES and (size := await self.receive_some(buffer)):
                    discarded += size
            except (OSError, trio.ClosedResourceError):
                return

    async def _send_raw(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)

    def is_quiet(self, buffer: bytearray) -> bool:
        """Return whether the connection is open and the peer has sent no data. ``buffer`` is scratch.

        It reads: data or an end that is found makes the connection unusable, and TLS processes its own messages.
        """
        try:
            self.receive_nowait(buffer)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def reset(self) -> None:
        """Close the socket so that the peer sees an error instead of an end; see :func:`send_reset_on_close`."""
        send_reset_on_close(self.sock)
        self.close()

    def close(self) -> None:
        """Close the socket at once. Tasks that wait for it get :exc:`trio.ClosedResourceError`."""
        if self.sock.fileno() >= 0:
            # Before closing: afterwards the number may belong to another file, and Trio could not find its waiters.
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class PlainTransport(Transport):
    """A socket without TLS: of a client, or of an upstream with an ``http`` URL."""

    _keeps_data = False

    def open_reading(self, scratch: Scratch) -> Callable[[int], bytes]:
        """See :meth:`Transport.open_reading`."""
        return self.sock.recv

    def receive_nowait(self, buffer: bytearray) -> int:
        """See :meth:`Transport.receive_nowait`."""
        size, self.ancillary, _, _ = self.sock.recvmsg_into((buffer,), CONTROL_BYTES)
        return size

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write as much of ``data`` as the kernel takes; return how much. Raises as :meth:`receive_nowait`."""
        return self.sock.send(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See :meth:`Transport.send_all`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        # Nearly always the kernel takes all of it at once.
        try:
            sent = self.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            await self._send_raw(memoryview(data)[sent:])


def send_reset_on_close(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the kernel send a TCP reset instead of an end when ``sock`` is closed, and discard what is unsent.

    Needed where the end of the connection would be the end of the message (RFC 9112 §6.3, rule 8): an incomplete body
    must not look complete.
    """
    with suppress(OSError):  # closed already, or not a TCP socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
