"""A client on a bare socket, for tests about bytes: it sends any data, and reads answers strictly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio
from attrs import define, field, frozen


@frozen
class Answer:
    """A whole response. ``headers`` are in lower case; ``informational`` lists the statuses of 1xx before it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    informational: tuple[int, ...] = ()

    def json(self) -> Any:
        """Return the body, parsed as JSON."""
        return json.loads(self.body)


class AnswerCut(Exception):
    """The connection ended before the answer; ``status`` is ``None`` if the head was incomplete, too.

    ``is_reset`` is true for a TCP reset, false for an end.
    """

    def __init__(self, status: int | None, body: bytes, *, is_reset: bool) -> None:
        super().__init__(f"status {status}, {len(body)} bytes of body, {'reset' if is_reset else 'ended'}")
        self.status = status
        self.body = body
        self.is_reset = is_reset


@define
class RawClient:
    """One connection. Answers are read one after the other, by their framing."""

    stream: trio.SocketStream
    _buffer: bytes = field(default=b"", init=False)

    async def send(self, data: bytes) -> None:
        """Send ``data`` as it is."""
        await self.stream.send_all(data)

    async def read_answer(self) -> Answer:
        """Read the next answer. Raises :exc:`AnswerCut` when the connection ends or breaks before it is complete."""
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        if self._buffer:
            connection.receive_data(self._buffer)
        response: h11.Response | None = None
        informational: list[int] = []
        body = b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(bytes(await self.stream.receive_some(65536)))
                elif isinstance(event, h11.InformationalResponse):
                    informational.append(event.status_code)
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    raise AnswerCut(None, body, is_reset=False)
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            status = None if response is None else response.status_code
            is_reset = isinstance(error, trio.BrokenResourceError)
            raise AnswerCut(status, body, is_reset=is_reset) from None
        assert response is not None
        self._buffer = connection.trailing_data[0]
        headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
        return Answer(response.status_code, headers, body, tuple(informational))

    async def ask(self, data: bytes) -> Answer:
        """Send ``data``, a whole request, and read its answer."""
        await self.send(data)
        return await self.read_answer()

    async def read_end(self) -> bytes:
        """Read until the connection's end; a reset raises :exc:`trio.BrokenResourceError`."""
        rest, self._buffer = self._buffer, b""
        while data := await self.stream.receive_some(65536):
            rest += data
        return rest


@asynccontextmanager
async def open_client(port: int) -> AsyncIterator[RawClient]:
    """Connect to a port of this machine; closed at the end of the block."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        yield RawClient(stream)
    finally:
        stream.socket.close()


async def ask(port: int, data: bytes) -> Answer:
    """Send ``data`` and read the answer, on a connection of its own."""
    async with open_client(port) as client:
        return await client.ask(data)
