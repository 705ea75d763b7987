"""An HTTP server that collects shipped events, and answers as a test wants."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h11
import trio
from attrs import define, field, frozen


@frozen
class Received:
    """One request as it was received; ``events`` are its lines."""

    headers: dict[str, str]
    body: bytes
    events: list[dict[str, Any]]


@frozen
class Answer:
    """An answer: ``status`` 0 closes the connection, and no answer ever comes for -1."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


OK = Answer()


@define
class Collector:
    """What a server received. ``decide`` chooses the answer of each request; events of those with 2xx are taken."""

    port: int = 0
    decide: Callable[[Received], Answer] = lambda received: OK
    requests: list[Received] = field(factory=list)
    taken: list[dict[str, Any]] = field(factory=list)

    @property
    def url(self) -> str:
        """The URL that events are posted to."""
        return f"http://127.0.0.1:{self.port}/events"

    @property
    def ids(self) -> list[str]:
        """The ids of the events that were taken, duplicates included."""
        return [event["id"] for event in self.taken]

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                request = await self._receive(stream, connection)
                if request is None:
                    return
                self.requests.append(request)
                answer = self.decide(request)
                if answer.status == -1:
                    await trio.sleep_forever()
                if answer.status == 0:
                    return
                if 200 <= answer.status < 300:
                    self.taken += request.events
                head = h11.Response(
                    status_code=answer.status,
                    headers=[("content-length", str(len(answer.body))), *answer.headers],
                )
                data = connection.send(head) + connection.send(h11.Data(data=answer.body))
                await stream.send_all(data + connection.send(h11.EndOfMessage()))
                connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return
        finally:
            await trio.aclose_forcefully(stream)

    async def _receive(self, stream: trio.SocketStream, connection: h11.Connection) -> Received | None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                lines = gzip.decompress(body).splitlines()
                return Received(headers, body, [json.loads(line) for line in lines])
            else:
                return None


@asynccontextmanager
async def open_collector(port: int = 0) -> AsyncIterator[Collector]:
    """Serve a collector on loopback for the length of the block."""
    collector = Collector()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, collector._serve, port, host="127.0.0.1")
        listeners = await nursery.start(serve)
        collector.port = listeners[0].socket.getsockname()[1]
        yield collector
        nursery.cancel_scope.cancel()
