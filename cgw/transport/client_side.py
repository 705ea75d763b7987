"""The client's side of one exchange, as a protocol that each kind of connection implements.

:mod:`cgw.transport.http1_client` implements it for HTTP/1.1, and :mod:`cgw.control.adapter` for ASGI; the exchange
depends on nothing else of a connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from attrs import frozen

from cgw.errors import Headers, Refusal
from cgw.wire.messages import RequestHead
from cgw.wire.trace_context import RequestTrace


@frozen
class ClientLimits:
    """Limits for what a client sends and how long it takes. Sizes are in bytes, times in seconds."""

    max_head_bytes: int = 64 * 1024
    max_body_bytes: int = 32 * 1024 * 1024
    max_upload_bytes: int = 512 * 1024 * 1024
    header_timeout_seconds: float = 10
    body_timeout_seconds: float = 75
    keep_alive_timeout_seconds: float = 75
    stall_timeout_seconds: float = 60


@frozen
class RefusedHead:
    """A request that was refused on its head, for the log.

    ``status`` is ``None`` where HTTP/2 ends the stream or the connection instead. ``method`` and ``path`` (without its
    query) are empty where the head is too malformed to have them. ``trace`` has the ids that the client was told.
    """

    status: int | None
    reason: str
    method: bytes
    path: bytes
    peer: str
    trace: RequestTrace


RenderRefusal = Callable[[Refusal, bytes, str | None], tuple[Headers, bytes]]
"""Returns header fields and body of a refusal, by the request's path and its id."""


def ignore_refused(refused: RefusedHead) -> None:
    """Do nothing: the default for those who log."""


class RawBody(Protocol):
    """A response's body that is written to the client's socket as it is, framing included, without its end.

    Data goes out by ``send``, or straight to ``sock``, which must be reported with ``note_sent``. The end, and the rest
    of a body with a content length, go through :meth:`ClientSide.finish`.
    """

    @property
    def sock(self) -> socket.socket:
        """The client's socket, non-blocking. It stays the connection's: do not close it."""
        ...

    async def send(self, data: bytes, body_bytes: int) -> None:
        """Send ``data`` as it is. ``body_bytes`` of payload have been sent then. Raises :exc:`ClientGone`."""
        ...

    def keep(self, data: bytes, body_bytes: int) -> None:
        """Keep ``data``, with ``body_bytes`` of payload, until the client's side is told to flush or to finish."""
        ...

    def note_sent(self, body_bytes: int, *, is_stalled: bool = False) -> None:
        """Note that ``body_bytes`` of payload have been sent in total; ``is_stalled``: the client stopped reading."""
        ...


class ClientSide(Protocol):
    """One request, and the means to respond to it.

    Calls come in this order: ``receive_body``, then either ``send_response``, or ``send_head``, any number of
    ``send_chunk``, and ``finish`` or ``break_off``. ``begin_raw_body`` may take the place of ``send_chunk``.
    ``wait_gone`` may run in a task of its own as soon as the body has been received. When a method that waits is
    cancelled, only ``break_off`` may follow; the connection is closed after the exchange.
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
        """True if ``send_head`` or ``send_response`` was called."""
        ...

    @property
    def is_broken_off(self) -> bool:
        """True if the response will be cut: ``break_off`` was called, or a method was cancelled half-way."""
        ...

    @property
    def bytes_sent(self) -> int:
        """Payload bytes of the response's body that have been sent."""
        ...

    async def receive_body(self) -> bytes:
        """Return the request's whole body.

        Raises :exc:`~cgw.errors.Refusal` 400, 408 or 413, and :exc:`~cgw.errors.ClientGone`.
        """
        ...

    async def receive_chunk(self) -> bytes | None:
        """Return the next bytes of the request's body as they come, ``None`` at its end; instead of ``receive_body``.

        The client is asked for no more than is taken, so that it is slowed down to the pace of the calls. Each call
        waits for at most the stall timeout. Raises :exc:`~cgw.errors.Refusal` 400, 408 or 413, and
        :exc:`~cgw.errors.ClientGone`. Cancel-safe: nothing is lost.
        """
        ...

    def close_after_response(self) -> None:
        """Close the connection after the response. To be called before the response begins."""
        ...

    async def send_response(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response; ``content-length`` is added. Raises :exc:`~cgw.errors.ClientGone`."""
        ...

    async def send_head(self, status: int, headers: Headers, *, is_stream: bool) -> None:
        """Begin a response, to which the request's ids are added.

        With ``is_stream`` its head is sent now; otherwise together with the first chunk.

        ``headers`` have a ``content-length`` where the length is known, and never a transfer coding.
        Raises :exc:`~cgw.errors.ClientGone`.
        """
        ...

    async def flush(self) -> None:
        """Send what was kept: a head, or the end of a raw body. Raises :exc:`~cgw.errors.ClientGone`."""
        ...

    async def send_chunk(self, data: bytes) -> None:
        """Send the next bytes of the body, at once. Raises :exc:`~cgw.errors.ClientGone`."""
        ...

    def begin_raw_body(self, content_length: int | None) -> RawBody | None:
        """Return the means to send the body as it is, or ``None`` where this connection needs its own framing.

        To be called after ``send_head`` and before any of the body, which has ``content_length`` bytes, or is chunked
        (``None``). ``send_chunk`` may continue a chunked body where a raw chunk has ended.
        """
        ...

    async def finish(self, last: bytes = b"") -> None:
        """Send ``last``, the last bytes of the body, and whatever marks the body as complete.

        Raises :exc:`~cgw.errors.ClientGone`.
        """
        ...

    def break_off(self) -> None:
        """Make the response visibly incomplete: the connection (in HTTP/2, the stream) will be cut."""
        ...

    def call_when_gone(self, on_gone: Callable[[], None] | None) -> None:
        """Have ``on_gone`` called once the client has left, at once if it has; ``None`` ends that."""
        ...

    async def wait_gone(self) -> None:
        """Return once the client has left; takes the place of :meth:`call_when_gone` meanwhile. Cancel-safe."""
        ...
