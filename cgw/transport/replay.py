"""Streams at the edges of a connection's life: handed over with bytes already read, lingering, aborted."""

from __future__ import annotations

import trio

from cgw.transport.sockets import send_reset_on_close

_NO_H2C = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 42\r\nconnection: close\r\n\r\n"
    b'{"error":"upgrading to h2c is not served"}'
)

LINGER_SECONDS = 5.0
LINGER_BYTES = 64 * 1024 * 1024


class ReplayedStream:
    """A socket stream whose first bytes are those that were read from it before; what Hypercorn gets to see.

    A write that the client does not take within ``stall_timeout_seconds`` closes the stream: Hypercorn shields its
    writes, so nobody above could end it.
    """

    def __init__(self, stream: trio.SocketStream, data: bytes, stall_timeout_seconds: float) -> None:
        self._stream = stream
        self._data = data
        self._stall_timeout_seconds = stall_timeout_seconds
        self.socket = stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The replayed bytes first, then the socket's."""
        if self._data:
            data, self._data = self._data, b""
            await trio.lowlevel.checkpoint()
            return data
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        """Send ``data``; raises :exc:`trio.BrokenResourceError` when the client takes nothing for too long.

        An upgrade to HTTP/2 in mid-connection, which Hypercorn would grant, is refused: it makes a tunnel past the
        rules of any proxy in front, and RFC 9113 §3.1 has done away with it.
        """
        if data.startswith(b"HTTP/1.1 101 ") and b"h2c" in data:
            await self._stream.send_all(_NO_H2C)
            self.abort()
            raise trio.BrokenResourceError("an upgrade to h2c was refused")
        with trio.move_on_after(self._stall_timeout_seconds) as stall_scope:
            await self._stream.send_all(data)
        if stall_scope.cancelled_caught:
            self.abort()
            raise trio.BrokenResourceError("the client takes nothing")

    async def send_eof(self) -> None:
        """Close the sending side."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    def abort(self, *, reset: bool = False) -> None:
        """Close the socket at once; whoever waits on it gets :exc:`trio.ClosedResourceError`."""
        abort_socket(self.socket, reset=reset)


def abort_socket(sock: trio.socket.SocketType, *, reset: bool = False) -> None:
    """Close ``sock`` at once; with ``reset``, so that the peer sees an error instead of an end."""
    if reset:
        send_reset_on_close(sock)
    sock.close()


async def linger(stream: trio.SocketStream) -> None:
    """Let a client that is still sending read our last answer: end our side, then read and drop what comes.

    Without it the kernel answers the client's bytes with a reset, which makes it forget our answer unread
    (RFC 9112 §9.6). Bounded to five seconds and 64 MiB. The stream is left for the caller to close.
    """
    with trio.move_on_after(LINGER_SECONDS):
        try:
            await stream.send_eof()
            dropped = 0
            while dropped < LINGER_BYTES:
                data = await stream.receive_some(256 * 1024)
                if not data:
                    return
                dropped += len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
