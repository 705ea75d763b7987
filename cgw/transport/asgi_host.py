"""Running an ASGI app on the client side of cgw's own HTTP engines (ASGI 3.0, HTTP scope).

The app gets ``http.request`` messages with the request's body, and ``http.disconnect`` once the client has left; it is
then cancelled when it does not return on its own. Everything hostile (heads, framing, sizes, slow bodies, slow readers)
is the engine's to handle, before or beneath.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_to_bytes

import trio

from cgw.errors import ClientGone, Refusal
from cgw.transport.client_side import ClientSide, RenderRefusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TRACE_EXTENSION = "cgw.trace"
"""The key in a scope's extensions of the request's ids, which the answer gets from the client's side."""

LEAVE_SECONDS = 1.0
"""How long an app may go on after its client has left before it is cancelled."""

EAGER_BODY_BYTES = 64 * 1024
"""Bodies that are announced to be at most so large are read before the app runs: a connection whose request was not
read to its end cannot carry another one."""

logger = logging.getLogger("cgw.control")


async def run_asgi_app(app: AsgiApp, client: ClientSide, render_refusal: RenderRefusal) -> int | None:
    """Run ``app`` for one request; return the response's status, ``None`` if there is none as the client has left.

    ``render_refusal`` builds the header fields and the body for what the engine refuses (a body that is too large or
    too slow) and for a 500, by the request's path. An exception of the app is logged and ends its request alone.
    Cancel-safe.
    """
    request = _AsgiRequest(app, client)
    refusal = await request.run()
    if refusal is not None and not client.is_response_started:
        await _refuse(client, refusal, render_refusal)
        return refusal.status
    if refusal is not None:
        client.break_off()
    return request.status


async def _refuse(client: ClientSide, refusal: Refusal, render_refusal: RenderRefusal) -> None:
    if refusal.must_close:
        client.close_after_response()
    headers, body = render_refusal(refusal, client.head.path, client.head.trace.trace_id)
    with suppress(ClientGone):
        await client.send_response(refusal.status, [*headers, *refusal.headers], body)


class _AsgiRequest:
    """One request and its app."""

    _nursery: trio.Nursery

    def __init__(self, app: AsgiApp, client: ClientSide) -> None:
        self._app = app
        self._client = client
        self._body: bytes | None = None
        self._is_body_given = False
        self._start: dict[str, Any] | None = None
        self._is_complete = False
        self._gone = trio.Event()
        self._watch_scope = trio.CancelScope()  # of waiting for the client to leave
        self._app_scope = trio.CancelScope()  # cancelled when the client has left and the app does not return

    @property
    def status(self) -> int | None:
        """The status of the response that the app has begun, ``None`` before."""
        return self._start["status"] if self._start is not None and self._client.is_response_started else None

    async def run(self) -> Refusal | None:
        """Run the app to its end; return the refusal to answer where it did not answer itself."""
        refusal: Refusal | None = None
        async with trio.open_nursery() as request_nursery:
            self._nursery = request_nursery
            try:
                await self._run_app()
            except ClientGone:
                pass
            except Refusal as error:
                refusal = error
            except Exception:  # the boundary between one request and all others
                logger.exception("the control app failed at %s", self._client.head.path.decode("latin-1"))
                refusal = Refusal(500, "internal error")
            request_nursery.cancel_scope.cancel()
        return refusal

    async def _run_app(self) -> None:
        head = self._client.head
        announced = head.header(b"content-length") or b"0"
        is_small = announced.isdigit() and int(announced) <= EAGER_BODY_BYTES
        if is_small and head.header(b"transfer-encoding") is None and head.header(b"expect") is None:
            await self._take_body()
        else:
            self._start_watching()
        with self._app_scope:
            await self._app(build_scope(self._client), self._receive, self._send)
        if not self._is_complete and not self._gone.is_set():
            raise RuntimeError("the app returned without a complete response")

    async def _take_body(self) -> bytes:
        # While the body is read, reading is what notices that the client left; two cannot wait for one socket.
        self._watch_scope.cancel()
        self._body = body = await self._client.receive_body()
        self._start_watching()
        return body

    def _start_watching(self) -> None:
        self._watch_scope = trio.CancelScope()
        self._nursery.start_soon(self._watch_client, self._watch_scope)

    async def _watch_client(self, scope: trio.CancelScope) -> None:
        with scope:
            await trio.lowlevel.checkpoint_if_cancelled()  # the app may read already: then the socket is taken
            await self._client.wait_gone()
        if scope.cancelled_caught:
            return
        self._gone.set()
        await trio.sleep(LEAVE_SECONDS)
        self._app_scope.cancel()

    async def _receive(self) -> dict[str, Any]:
        if not self._is_body_given:
            body = await self._take_body() if self._body is None else self._body
            self._is_body_given = True
            await trio.lowlevel.checkpoint()
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._is_complete:
            await self._gone.wait()
        await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._gone.is_set():
            raise ClientGone
        if message["type"] == "http.response.start" and self._start is None:
            self._start = message
            await trio.lowlevel.checkpoint()
        elif message["type"] == "http.response.body" and self._start is not None and not self._is_complete:
            await self._send_body(self._start, message.get("body", b""), has_more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")

    async def _send_body(self, start: dict[str, Any], data: bytes, *, has_more: bool) -> None:
        client = self._client
        self._is_complete = not has_more
        if not client.is_response_started:
            fields = [(bytes(name).lower(), bytes(value)) for name, value in start.get("headers", ())]
            if not has_more:
                without_length = [field for field in fields if field[0] != b"content-length"]
                await client.send_response(start["status"], without_length, data)
                return
            await client.send_head(start["status"], fields, is_stream=True)
        if has_more:
            if data:
                await client.send_chunk(data)
        else:
            await client.finish(data)


def build_scope(client: ClientSide) -> Scope:
    """Return the ASGI scope of a request."""
    head = client.head
    path, _, query = head.target.partition(b"?")
    if path != head.path:
        path = head.path  # an absolute-form target loses its authority (RFC 9112 §3.2.2)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.http_version.decode("latin-1"),
        "method": head.method.decode("latin-1"),
        "scheme": "http",
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name, value) for name, value in head.headers],
        "client": (client.peer, 0),
        "server": None,
        "extensions": {TRACE_EXTENSION: head.trace},
    }
