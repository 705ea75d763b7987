"""The tour's HTTP client: one keep-alive connection on a bare socket, so that arrival times are exact."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import median

import h11
import trio
from attrs import frozen

from cgw.errors import CgwError
from cgw.wire.messages import ResponseHead, parse_base_url

_RECEIVE_BYTES = 64 * 2**10


class RequestFailed(CgwError):
    """The response to a request of the tour was not the expected 200 with a body."""


class TourClient:
    """One connection that carries one request at a time. Created by :func:`open_tour_client`."""

    def __init__(self, stream: trio.SocketStream, authority: bytes) -> None:
        self._stream = stream
        self._authority = authority
        self._h11 = h11.Connection(h11.CLIENT)

    async def send(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send a POST request. Receive its whole response before the next one."""
        fields = {"host": self._authority.decode("ascii"), "content-length": str(len(body)), **headers}
        request = h11.Request(method="POST", target=path, headers=list(fields.items()))
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        await self._stream.send_all(b"".join(self._h11.send(event) or b"" for event in events))

    async def receive_head(self) -> ResponseHead:
        """Return the response's head. Raises :exc:`RequestFailed` with the body's text unless the status is 200."""
        event = await self._next_event()
        if not isinstance(event, h11.Response):
            raise RequestFailed(f"the response begins with {type(event).__name__}, not with a head")
        if event.status_code != 200:
            body = b""
            while chunk := await self.receive_chunk():
                body += chunk
            text = body.decode("utf-8", "replace").strip()
            raise RequestFailed(f"the response has status {event.status_code}: {text}")
        return ResponseHead(event.status_code, tuple(event.headers))

    async def receive_chunk(self) -> bytes:
        """Return the body's next bytes as they arrive, or ``b""`` at its end: the connection is then ready for another
        request."""
        event = await self._next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        # An error response may end with the connection instead: then h11 refuses a next cycle.
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return b""

    async def _next_event(self) -> h11.Event:
        while True:
            event = self._h11.next_event()
            if isinstance(event, h11.Event):
                return event
            self._h11.receive_data(bytes(await self._stream.receive_some(_RECEIVE_BYTES)))


@asynccontextmanager
async def open_tour_client(url: str) -> AsyncIterator[TourClient]:
    """Connect to the origin of ``url``; close the connection when the block ends."""
    origin, _ = parse_base_url(url)
    stream = await trio.open_tcp_stream(origin.host, origin.port)
    async with stream:
        yield TourClient(stream, origin.authority)


@frozen
class TourRequest:
    """A POST request that can be repeated: base URL, path, headers (the API key among them) and body."""

    url: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@frozen
class Overhead:
    """Median times to the first byte of a response's body, in seconds: straight to the upstream, and through cgw."""

    direct_seconds: float
    through_seconds: float
    rounds: int

    @property
    def added_seconds(self) -> float:
        """The time that the gateway adds."""
        return self.through_seconds - self.direct_seconds


async def measure_overhead(
    through: TourRequest, direct: TourRequest, *, rounds: int, warm_up_rounds: int = 3
) -> Overhead:
    """Time both requests in alternation, each on a connection of its own.

    The first ``warm_up_rounds`` are not counted.
    """
    through_seconds, direct_seconds = [], []
    async with open_tour_client(through.url) as gateway, open_tour_client(direct.url) as upstream:
        # In alternation: a moment in which the machine is busy slows both about equally.
        for number in range(-warm_up_rounds, rounds):
            seconds = await _time_first_byte(upstream, direct), await _time_first_byte(gateway, through)
            if number >= 0:
                direct_seconds.append(seconds[0])
                through_seconds.append(seconds[1])
    return Overhead(median(direct_seconds), median(through_seconds), rounds)


async def _time_first_byte(client: TourClient, target: TourRequest) -> float:
    started = time.perf_counter()
    await client.send(target.path, target.headers, target.body)
    await client.receive_head()
    chunk = await client.receive_chunk()
    seconds = time.perf_counter() - started
    if not chunk:
        raise RequestFailed(f"the response from {target.url} has no body")
    while chunk:  # the connection can be reused only after the whole body
        chunk = await client.receive_chunk()
    return seconds
