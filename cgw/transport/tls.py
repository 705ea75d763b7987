"""TLS over memory BIOs, of both sides: the ciphertext is moved by us, so that it works without waiting, too.

::

    socket ── recv ──> _incoming (BIO) ──> _tls ──> decrypted data
    socket <── send ── _outgoing (BIO) <── _tls <── data to encrypt

``ssl.SSLSocket`` and :class:`trio.SSLStream` are not used: with them decrypted data may stay in the TLS object, where
the relay's epoll cannot see it. Here every read empties the TLS object, so the socket alone says whether there is
more.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import trio

from cgw.transport.arrival import CONTROL_BYTES
from cgw.transport.sockets import Scratch, Transport

MAX_UNSENT_BYTES = 64 * 1024
"""The most of TLS's own answers that is kept for a peer that does not read: it can ask for any number of them."""


class TlsTransport(Transport):
    """One side of a TLS connection: a client's with ``server_hostname``, otherwise a server's.

    ``received`` is what was read of the socket before. ``do_handshake`` must be called first.

    A peer that ends the stream without close_notify raises :exc:`ssl.SSLEOFError` (an :exc:`OSError`) from reading: the
    data may have been truncated by an attacker (RFC 8446 §6.1).
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        server_hostname: str | None,
        scratch: Scratch,
        received: bytes = b"",
    ) -> None:
        super().__init__(sock)
        self._scratch = scratch
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        is_server = server_hostname is None
        if received:
            self._incoming.write(received)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, is_server, server_hostname)
        self._unsent = b""  # ciphertext of TLS's own messages that the kernel did not take; goes before anything else
        self._is_ended = False
        self._is_sending = False

    async def do_handshake(self) -> None:
        """Agree on keys and verify the peer. Raises :exc:`OSError`; :exc:`ssl.SSLError` is one."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_raw(self._outgoing.read())
                await self._receive_raw()
            except ssl.SSLError:
                self._answer()  # the alert that tells the peer why (RFC 8446 §6.2)
                raise
            else:
                # The last message is ours: the peer cannot begin before it has arrived.
                await self._send_raw(self._outgoing.read())
                return

    @property
    def protocol(self) -> str | None:
        """The protocol that was agreed on by ALPN (RFC 7301), if any: ``h2``, ``http/1.1``."""
        return self._tls.selected_alpn_protocol()

    async def _receive_raw(self) -> None:
        while True:
            try:
                self._take_raw(self._scratch.raw)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
            else:
                return

    def _take_raw(self, raw: bytearray) -> None:
        size, self.ancillary, _, _ = self.sock.recvmsg_into((raw,), CONTROL_BYTES)
        if size:
            self._incoming.write(memoryview(raw)[:size])
        else:
            # From now on reading raises SSLEOFError, unless a close_notify came before.
            self._incoming.write_eof()

    def open_reading(self, scratch: Scratch) -> Callable[[int], bytes]:
        """See :meth:`Transport.open_reading`."""

        def receive(_: int) -> bytes:
            size = self._receive(scratch.plain, scratch.raw)
            return bytes(memoryview(scratch.plain)[:size])

        return receive

    def receive_nowait(self, buffer: bytearray) -> int:
        """See :meth:`Transport.receive_nowait`."""
        return self._receive(buffer, self._scratch.raw)

    def _receive(self, buffer: bytearray, raw: bytearray) -> int:
        """Read the socket once through ``raw``, and decrypt all that this completes into ``buffer``.

        It cannot overflow (see ``BUFFER_BYTES``), so the TLS object is empty afterwards, and epoll on the socket is
        enough to learn that there is more.
        """
        view = memoryview(buffer)
        total = self._decrypt(view)  # what came together with the end of the handshake
        if not total and not self._is_ended:
            self._take_raw(raw)
            total = self._decrypt(view)
            self._answer()
            if not total and not self._is_ended:
                # A session ticket, a key update, or a part of a record. For the caller, nothing was available.
                raise BlockingIOError("only messages of TLS itself were received")
        return total

    def _decrypt(self, view: memoryview) -> int:
        """Decrypt into ``view`` until nothing is left; return how many bytes. An end or error may follow the data."""
        total = 0
        while total < len(view):
            try:
                size = cast("int", self._tls.read(len(view) - total, view[total:]))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                if not total:
                    raise
                # Return the data first. OpenSSL raises the error again at the next read.
                self._keep_readable()
                break
            if not size:  # close_notify
                self._is_ended = True
                if total:
                    self._keep_readable()
                break
            total += size
        return total

    def _keep_readable(self) -> None:
        """Make epoll report the socket as readable from now on, so that the end behind the data is noticed.

        That end is in the TLS object, which epoll cannot see, and the peer may keep the socket itself open and send
        nothing more.
        """
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)

    def _answer(self) -> None:
        """Send TLS's own messages, such as the answer to a key update; keep what the kernel does not take.

        An error is ignored: data that was received must not be lost because sending fails, and the next read reports
        a broken connection anyway.
        """
        if self._outgoing.pending or self._unsent:
            self._unsent += self._outgoing.read()
            # Not into the middle of a record that another task is sending, which sends this next.
            if not self._is_sending:
                with suppress(OSError):
                    self._unsent = self._unsent[self.sock.send(self._unsent) :]
            if len(self._unsent) > MAX_UNSENT_BYTES:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the peer asks for answers of TLS and reads none")

    def end_sending(self) -> None:
        """See :meth:`Transport.end_sending`; close_notify goes first, if the kernel takes it (RFC 8446 §6.1)."""
        with suppress(ssl.SSLError):  # also "want read": the peer's own close_notify is not waited for
            self._tls.unwrap()
        with suppress(BlockingIOError):
            self.sock.send(self._unsent + self._outgoing.read())
        super().end_sending()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See :meth:`Transport.send_all`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        self._is_sending = True
        try:
            while view:
                view = view[self._tls.write(view) :]
                # Records are numbered: what _answer could not send has to go out before newer ones.
                unsent, self._unsent = self._unsent + self._outgoing.read(), b""
                await self._send_raw(unsent)
        finally:
            self._is_sending = False
