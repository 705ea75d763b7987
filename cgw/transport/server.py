"""The listener: accepts connections within bounds, and owns the nursery in which each of them is served."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio
from attrs import frozen

from cgw.errors import explain_os_error
from cgw.transport.client_address import AddressBound, TrustedProxies

ServeConnection = Callable[["AcceptedConnection"], Awaitable[None]]

RETRY_AFTER_SECONDS = 1

TURNING_AWAY_SECONDS = 1.0
"""How long a connection above a bound may take to read its answer."""

MAX_TURNING_AWAY = 64
"""How many connections above a bound may read their answer at once; more are closed without one."""

MAX_ACCEPTS_PER_PASS = 32
"""How many connections are accepted before other tasks get their turn."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 1.0

_PEER_FAULTS = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
"""Errors of accept(2) that concern the connection that was to be accepted; all others mean "not now"."""

_BODY = b'{"error":"too many connections, please retry"}\n'
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: %d\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (RETRY_AFTER_SECONDS, len(_BODY), _BODY)
)

logger = logging.getLogger("cgw.server")


@frozen(eq=False)
class AcceptedConnection:
    """A connection that was accepted: its non-blocking socket, and the peer's address."""

    sock: socket.socket
    peer: str


@frozen
class ServerStatistics:
    """Connections ``open`` now; ``accepted`` and, above a bound, ``turned_away`` since the start."""

    open: int
    accepted: int
    turned_away: int


class Server:
    """Accepts connections and serves each in a task of its own, until it drains.

    At most ``max_connections`` are open at once, and of one address as many as ``addresses`` allows. Proxies in
    ``trusted`` are exempt, as they stand for many; connections count the addresses that they tell. Above a bound a
    connection gets a 503 and is closed. ``drained`` is set once accepting has stopped and every connection has ended.
    """

    def __init__(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        max_connections: int = 100_000,
        addresses: AddressBound | None = None,
        trusted: TrustedProxies | None = None,
    ) -> None:
        self._listeners = list(listeners)
        self._max_connections = max_connections
        self._trusted = trusted or TrustedProxies()
        self._addresses = addresses or AddressBound(None)
        self._accepting_scope = trio.CancelScope()  # cancelled by the drain
        self._serving_scope = trio.CancelScope()  # cancelled at the end of the drain
        self._accepted = self._turned_away = self._turning_away = 0
        self.is_draining = False
        self.connection_count = 0
        self.drained = trio.Event()

    @property
    def port(self) -> int:
        """The bound port: the one that was asked for, or, for 0, the one that was free."""
        return int(self._listeners[0].socket.getsockname()[1])

    def statistics(self) -> ServerStatistics:
        """Return a snapshot of the counters."""
        return ServerStatistics(self.connection_count, self._accepted, self._turned_away)

    async def run(self, serve_connection: ServeConnection) -> None:
        """Serve until :meth:`stop_accepting` was called and all connections have ended, or until cancelled.

        ``serve_connection`` owns the socket that it is given, and closes it.
        """
        try:
            with self._serving_scope:
                async with trio.open_nursery() as nursery:
                    for listener in self._listeners:
                        nursery.start_soon(self._accept_for_ever, listener.socket, serve_connection, nursery)
        finally:
            self._close_listeners()
            self.drained.set()

    def stop_accepting(self) -> None:
        """Close the port. Open connections go on; their engine ends them when they are idle.

        What the kernel has accepted already is served: closing the port would reset it.
        """
        self.is_draining = True
        self._accepting_scope.cancel()

    def cut(self) -> None:
        """End the connections that are left, whatever they are doing."""
        self._serving_scope.cancel()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.socket.close()

    async def _accept_for_ever(
        self, listener: trio.socket.SocketType, serve_connection: ServeConnection, nursery: trio.Nursery
    ) -> None:
        with socket.socket(fileno=socket.dup(listener.fileno())) as duplicate:
            duplicate.setblocking(False)
            try:
                with self._accepting_scope:
                    await self._accept_until_cancelled(duplicate, serve_connection, nursery)
            finally:
                if self.is_draining:
                    self._accept_backlog(duplicate, serve_connection, nursery)
                listener.close()

    async def _accept_until_cancelled(
        self, listener: socket.socket, serve_connection: ServeConnection, nursery: trio.Nursery
    ) -> None:
        pause_seconds = 0.0
        in_a_row = 0
        # Trio's own accept() gives way to other tasks each time. When a pass of the loop takes 10 ms, that would be 100
        # connections per second, and clients would wait in the kernel's backlog, where no overload control sees them.
        while True:
            try:
                if in_a_row == MAX_ACCEPTS_PER_PASS:
                    in_a_row = 0
                    await trio.lowlevel.checkpoint()
                accepted, address = listener.accept()
            except BlockingIOError:
                in_a_row = 0
                await trio.lowlevel.wait_readable(listener)
                continue
            except OSError as error:
                if error.errno in _PEER_FAULTS:
                    in_a_row += 1
                    continue
                # Logged once, not for each try: a full table of descriptors may last for minutes.
                if not pause_seconds:
                    logger.error("connections cannot be accepted for now: %s", explain_os_error(error))
                pause_seconds = min(max(2 * pause_seconds, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                await trio.sleep(pause_seconds)
                continue
            if pause_seconds:
                logger.warning("connections are accepted again")
                pause_seconds = 0.0
            in_a_row += 1
            self._admit(accepted, address, serve_connection, nursery)

    def _accept_backlog(
        self, listener: socket.socket, serve_connection: ServeConnection, nursery: trio.Nursery
    ) -> None:
        """Take what the kernel has accepted so far: closing the listener would reset it."""
        while True:
            try:
                accepted, address = listener.accept()
            except OSError as error:
                if error.errno in _PEER_FAULTS:
                    continue
                return  # BlockingIOError: that was all
            self._admit(accepted, address, serve_connection, nursery)

    def _admit(
        self,
        sock: socket.socket,
        address: object,
        serve_connection: ServeConnection,
        nursery: trio.Nursery,
    ) -> None:
        peer = str(address[0]) if isinstance(address, tuple) and address else "unix"
        sock.setblocking(False)
        is_exempt = self._trusted.trusts(peer)
        if self.connection_count >= self._max_connections or not (is_exempt or self._addresses.acquire(peer)):
            self._turned_away += 1
            if self._turning_away < MAX_TURNING_AWAY:
                self._turning_away += 1
                nursery.start_soon(self._turn_away, sock)
            else:
                sock.close()
            return
        self._accepted += 1
        self.connection_count += 1
        connection = AcceptedConnection(sock, peer)
        nursery.start_soon(self._serve, connection, serve_connection, None if is_exempt else peer)

    async def _serve(
        self, connection: AcceptedConnection, serve_connection: ServeConnection, counted_address: str | None
    ) -> None:
        try:
            await serve_connection(connection)
        except* OSError as group:
            logger.warning("a connection ended with an error: %s", group.exceptions[0])
        except* Exception:
            # The boundary between one connection and all others: a bug that somebody has to look at.
            logger.exception("a connection failed")
        finally:
            self.connection_count -= 1
            if counted_address is not None:
                self._addresses.release(counted_address)
            connection.sock.close()

    async def _turn_away(self, sock: socket.socket) -> None:
        """Answer 503, and wait a moment for the client to read it: a reset would make it forget the answer unread."""
        try:
            with trio.move_on_after(TURNING_AWAY_SECONDS), sock:
                sock.send(_TOO_MANY)
                sock.shutdown(socket.SHUT_WR)
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    if not sock.recv(65_536):
                        return
        except OSError:
            return
        finally:
            self._turning_away -= 1
