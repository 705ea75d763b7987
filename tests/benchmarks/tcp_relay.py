"""A program for tests of the suite: forwards TCP connections from a port to an upstream.

tcp_relay.py PORT UPSTREAM_HOST UPSTREAM_PORT
"""

from __future__ import annotations

import sys

import trio


async def pump(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    scope.cancel()


async def main() -> None:
    port, host, upstream_port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    async def serve(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream(host, upstream_port) as upstream, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, upstream, nursery.cancel_scope)
            nursery.start_soon(pump, upstream, client, nursery.cancel_scope)

    await trio.serve_tcp(serve, port, host="127.0.0.1")


if __name__ == "__main__":
    trio.run(main)
