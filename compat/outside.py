"""A proxy that leads nowhere: clients find it in their environment, so that what they ask of the network is known.

The gateway is exempt (``NO_PROXY``). What arrives here was meant for another host; it is noted and refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import trio
from attrs import field, frozen

READ_SECONDS = 10.0
MAX_HOSTS = 100
_REFUSAL = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@frozen
class Outside:
    """The proxy's URL, and the hosts that were asked for through it."""

    url: str
    hosts: set[str] = field(factory=set)

    def environ(self) -> Mapping[str, str]:
        """Return the variables that send all but the loopback through the proxy."""
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        exempt = "127.0.0.1,localhost"
        return {**dict.fromkeys(names, self.url), "NO_PROXY": exempt, "no_proxy": exempt}

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Note and refuse one request."""
        async with stream:
            try:
                with trio.move_on_after(READ_SECONDS):
                    line = bytes(await stream.receive_some(4096)).split(b"\r\n")[0].decode("latin-1").split()
                    if len(line) == 3 and len(self.hosts) < MAX_HOSTS:
                        target = line[1] if "://" in line[1] else f"//{line[1]}"
                        self.hosts.add(urlsplit(target).hostname or line[1])
                    await stream.send_all(_REFUSAL)
            except trio.BrokenResourceError:
                pass  # it did not wait for the refusal


@asynccontextmanager
async def open_outside() -> AsyncIterator[Outside]:
    """Serve the proxy while the block runs."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    outside = Outside(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, outside.serve, listeners))
        try:
            yield outside
        finally:
            nursery.cancel_scope.cancel()
