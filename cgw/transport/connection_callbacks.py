"""The layers above a client's connection, as the connection calls them, and what all connections share."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import field, frozen

from cgw.errors import Refusal
from cgw.transport.body_budget import BodyBudget
from cgw.transport.client_address import AddressBound, TrustedProxies
from cgw.transport.client_side import ClientLimits, ClientSide, RefusedHead, RenderRefusal, ignore_refused
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.hangup_watch import HangupWatch
from cgw.transport.pace import Pace
from cgw.transport.serving_scope import ServingScope
from cgw.transport.sockets import BUFFER_BYTES, Scratch, Transport
from cgw.wire.messages import RequestHead

ServeHttp2 = Callable[[Transport, bytes, str], Awaitable[None]]


def _let_in(head: RequestHead) -> Refusal | None:
    return None


class Drainable(Protocol):
    """A connection, as whoever ends them all knows it."""

    def drain(self) -> None:
        """Serve no further request, and end soon. Never waits."""
        ...


@frozen
class ConnectionCallbacks:
    """Functions that a connection calls, and what all connections of a process share.

    ``handle`` serves one request in the scope that it is given, as :class:`ServingScope` says; ``check_load`` returns a
    refusal for a request that is not to be served now, and ``encode_shed`` the same as a whole response (``None``: each
    is rendered for itself); ``render_refusal`` returns header fields and body for a request that was refused before it
    was served, by its path where that is known (``b""`` otherwise) and its id, and ``note_refused`` logs it if its head
    was refused; ``is_draining`` says whether connections have to close, and is asked once by each, as later on it gets
    :meth:`Drainable.drain`; ``serve_http2`` serves the rest of a connection that begins with HTTP/2's preface
    (``None``: it is refused), given the transport, the data that was read, and the client's address.
    ``budget`` bounds the memory of request bodies. ``trusted`` proxies may tell the client's address, and ``addresses``
    bounds the connections of each that a PROXY header tells. ``tls_context`` returns the context to terminate TLS
    with, or ``None`` where the port is plain.
    """

    limits: ClientLimits
    handle: Callable[[ClientSide, ServingScope], Awaitable[None]]
    render_refusal: RenderRefusal
    is_draining: Callable[[], bool]
    hangups: HangupWatch
    deadlines: DeadlineKeeper
    check_load: Callable[[RequestHead], Refusal | None] = _let_in
    encode_shed: Callable[[RequestHead], bytes] | None = None
    serve_http2: ServeHttp2 | None = None
    budget: BodyBudget = field(factory=lambda: BodyBudget(512 * 1024 * 1024))
    trusted: TrustedProxies = field(factory=TrustedProxies)
    addresses: AddressBound = field(factory=lambda: AddressBound(None))
    tls_context: Callable[[], ssl.SSLContext | None] = lambda: None
    note_refused: Callable[[RefusedHead], None] = ignore_refused
    pace: Pace = field(factory=Pace)
    buffer: bytearray = field(factory=lambda: bytearray(BUFFER_BYTES), repr=False)
    """Scratch for reading; no data stays in it across an ``await``."""
    scratch: Scratch = field(factory=Scratch, repr=False)
    connections: set[Drainable] = field(factory=set, repr=False)
    """Those that are open."""
