"""The client's side of one exchange, whichever engine carries it.

The HTTP/1.1 engine (:mod:`cgw.transport.http1_connection`) and the ASGI adapter (:mod:`cgw.control.adapter`)
implement it; the exchange knows nothing else of either.
"""

from __future__ import annotations

import socket
from typing import Protocol

from attrs import frozen

from cgw.errors import Headers
from cgw.wire.messages import RequestHead


@frozen
class ClientLimits:
    """What a client may send and how long it may take: sizes in bytes, times in seconds."""

    max_head_bytes: int = 64 * 1024
    max_body_bytes: int = 32 * 1024 * 1024
    header_timeout_seconds: float = 10
    body_timeout_seconds: float = 75
    keep_alive_timeout_seconds: float = 75
    stall_timeout_seconds: float = 60


class ClientSide(Protocol):
    """One request, and the way back to whoever sent it.

    The order of calls is: ``receive_body``, then either ``send_response``, or ``send_head``, any number of
    ``send_chunk``, and ``finish`` or ``break_off``. ``wait_gone`` runs beside them, in a task of its own, from the
    moment that the body is there. Every method that waits is cancel-safe in the sense that the exchange may be
    given up; the connection is closed then.
    """

    @property
    def head(self) -> RequestHead:
        """The request's head."""
        ...

    @property
    def peer(self) -> str:
        """The client's address, for logs."""
        ...

    @property
    def is_response_started(self) -> bool:
        """Whether ``send_head`` or ``send_response`` was called."""
        ...

    @property
    def bytes_sent(self) -> int:
        """Bytes of the response's body sent so far."""
        ...

    async def receive_body(self) -> bytes:
        """The whole body.

        Raises :exc:`~cgw.errors.Refusal` 400, 408 or 413, and :exc:`~cgw.errors.ClientGone`.
        """
        ...

    def close_after_response(self) -> None:
        """Do not go on with this connection after the response; to be called before it begins."""
        ...

    async def send_response(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response; ``content-length`` is added. Raises :exc:`~cgw.errors.ClientGone`."""
        ...

    async def send_head(self, status: int, headers: Headers, *, is_stream: bool) -> None:
        """Begin a response. ``is_stream`` asks that the head be sent now rather than with the first chunk.

        ``headers`` name the body's length where it is known, and nothing of transfer codings.
        Raises :exc:`~cgw.errors.ClientGone`.
        """
        ...

    async def send_chunk(self, data: bytes) -> None:
        """Send the next bytes of the body, at once. Raises :exc:`~cgw.errors.ClientGone`."""
        ...

    def pass_raw(self, content_length: int | None) -> socket.socket | None:
        """The socket, for who writes the body to it as it is, framing included; ``None`` where that can't be done.

        To be called once the head has begun, and before any of the body. ``content_length`` is the body's, or
        ``None`` for a chunked one. From then on bytes of the body go to ``send_raw`` or straight to the socket, and
        ``finish`` gets the rest of a counted body.
        """
        ...

    async def send_raw(self, data: bytes, body_bytes: int) -> None:
        """Send ``data`` as it is, which brings the body to ``body_bytes``. Raises :exc:`~cgw.errors.ClientGone`."""
        ...

    def raw_passed(self, body_bytes: int, *, is_stalled: bool = False) -> None:
        """Note what was written to the socket: ``body_bytes`` of the body are out, or the client took no more."""
        ...

    async def finish(self, last: bytes = b"") -> None:
        """Send ``last``, and what tells the client that the body is complete.

        Raises :exc:`~cgw.errors.ClientGone`.
        """
        ...

    def break_off(self) -> None:
        """Make it visible that the body is not complete: the connection (in HTTP/2 the stream) is cut."""
        ...

    async def wait_gone(self) -> None:
        """Return once the client has left. A client that only closed its sending side has left, too."""
        ...
