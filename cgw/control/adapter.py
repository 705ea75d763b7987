"""The client's side of an exchange that arrived on a connection of Hypercorn's.

It always reads what the client sends, so that one stream of an HTTP/2 connection cannot hold up the others.
"""

from __future__ import annotations

from contextlib import suppress

import trio
from hypercorn.utils import UnexpectedMessageError

from cgw.control.hypercorn_engine import CONNECTION_KEY, HandedConnection, Receive, Scope, Send
from cgw.errors import ClientGone, Headers, Refusal
from cgw.transport.client_side import ClientLimits
from cgw.wire.messages import RequestHead

BREAK_OFF_SECONDS = 1.0


class AsgiClient:
    """One ASGI request as a :class:`~cgw.transport.client_side.ClientSide`. ``pump`` must run beside the exchange."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: ClientLimits) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self._body = bytearray()
        self._is_too_large = False
        self._body_ended = trio.Event()
        self._gone = trio.Event()
        self.head = build_request_head(scope)
        self.peer = str(scope["client"][0]) if scope.get("client") else "unknown"
        self.bytes_sent = 0
        self.is_response_started = False
        self.is_broken_off = False
        self.is_response_complete = False
        self._is_finishing = False

    @property
    def connection(self) -> HandedConnection:
        """The connection that the request came on."""
        connection: HandedConnection = self._scope["state"][CONNECTION_KEY]
        return connection

    async def pump(self) -> None:
        """Take every message that the server has, until the client leaves; runs in a task of its own."""
        async with trio.open_nursery() as pump_nursery:
            pump_nursery.start_soon(self._watch_connection)
            while (message := await self._receive())["type"] == "http.request":
                self._take(message.get("body", b""))
                if not message.get("more_body", False):
                    self._body_ended.set()
            if not self._is_finishing:
                # Hypercorn also says "disconnect" to an app whose response is complete, before its send returns.
                self._leave()
            pump_nursery.cancel_scope.cancel()

    def _take(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._limits.max_body_bytes:
            self._is_too_large = True
            self._body.clear()
            self._body_ended.set()
        if not self._is_too_large:
            self._body += data

    async def _watch_connection(self) -> None:
        await self.connection.gone.wait()
        self._leave()

    def _leave(self) -> None:
        self._gone.set()
        self._body_ended.set()

    async def receive_body(self) -> bytes:
        """See :meth:`~cgw.transport.client_side.ClientSide.receive_body`."""
        announced = self.head.header(b"content-length") or b"0"
        if announced.isdigit() and int(announced) > self._limits.max_body_bytes:
            self._is_too_large = True
        with trio.move_on_after(self._limits.body_timeout_seconds) as body_scope:
            if not self._is_too_large:
                await self._body_ended.wait()
        if body_scope.cancelled_caught:
            seconds = self._limits.body_timeout_seconds
            raise Refusal(408, f"the request body did not arrive within {seconds:g} seconds", must_close=True)
        if self._is_too_large:
            maximum = self._limits.max_body_bytes
            raise Refusal(413, f"the request body is larger than the {maximum} bytes that are allowed")
        if self._gone.is_set():
            raise ClientGone
        body, self._body = bytes(self._body), bytearray()
        return body

    def close_after_response(self) -> None:
        """Nothing: Hypercorn itself closes an HTTP/1.1 connection whose request it has not read to the end."""

    async def send_response(self, status: int, headers: Headers, body: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_response`."""
        await self.send_head(status, [*headers, (b"content-length", b"%d" % len(body))], is_stream=False)
        await self.finish(body)

    async def send_head(self, status: int, headers: Headers, *, is_stream: bool) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_head`."""
        self.is_response_started = True
        # Hypercorn writes a date of its own.
        fields = [field for field in headers if field[0] != b"date"]
        await self._send_message({"type": "http.response.start", "status": status, "headers": fields})

    async def send_chunk(self, data: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_chunk`."""
        await self._send_message({"type": "http.response.body", "body": data, "more_body": True})
        self.bytes_sent += len(data)

    def begin_raw_body(self, content_length: int | None) -> None:
        """Return ``None``: Hypercorn frames all bodies itself."""

    async def finish(self, last: bytes = b"") -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.finish`."""
        self._is_finishing = True
        await self._send_message({"type": "http.response.body", "body": last, "more_body": False})
        self.is_response_complete = True
        self.bytes_sent += len(last)

    async def _send_message(self, message: dict[str, object]) -> None:
        # After a disconnect Hypercorn drops messages without a word: ask before, not after.
        if self._gone.is_set():
            raise ClientGone
        with trio.move_on_after(self._limits.stall_timeout_seconds) as stall_scope:
            try:
                await self._send(message)
            except UnexpectedMessageError:
                raise ClientGone from None
        if stall_scope.cancelled_caught:
            self.break_off()
            raise ClientGone

    def break_off(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.break_off`."""
        self.is_broken_off = True

    async def cut(self) -> None:
        """Do what :meth:`break_off` asked for."""
        with trio.move_on_after(BREAK_OFF_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.connection.break_off(self._scope)

    async def wait_gone(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.wait_gone`."""
        await self._gone.wait()


def build_request_head(scope: Scope) -> RequestHead:
    """An ASGI HTTP scope as a request head."""
    target = bytes(scope.get("raw_path") or scope["path"].encode("utf-8"))
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    headers = tuple((bytes(name).lower(), bytes(value)) for name, value in scope["headers"])
    return RequestHead(scope["method"].encode("ascii"), target, headers, scope["http_version"].encode("ascii"))
