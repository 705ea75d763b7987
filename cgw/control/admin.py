"""The admin port: Hypercorn serves the control app to operators, apart from users' requests.

Hypercorn is good at HTTP/1.1, HTTP/2 and WebSocket, but it shields its writes without a deadline, and an exception on
one connection ends the whole server. So the kernel bounds the writes here, and the server is started again.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from cgw.control.hypercorn_logging import HypercornLogger
from cgw.lifetime import open_background_task
from cgw.transport.asgi_host import AsgiApp
from cgw.transport.listeners import open_listeners

WRITE_SECONDS = 10.0
"""How long a client may take nothing of what it is sent; also the longest that one can delay the end of the service."""

RESTART_SECONDS = 0.2

BACKLOG = 100

logger = logging.getLogger("cgw.admin")


@asynccontextmanager
async def open_admin_server(app: AsgiApp, host: str, port: int) -> AsyncIterator[int]:
    """Serve ``app`` on ``host`` and ``port`` over HTTP/1.1 and HTTP/2 for the length of the block; yield the port.

    Guarantees: no failure of the server reaches the block. Requests that are under way at the end are cut. Raises
    :exc:`OSError` when the port is taken.
    """
    sockets = await _bind(host, port)
    try:
        async with open_background_task(partial(_serve_for_ever, app, sockets)):
            yield int(sockets[0].getsockname()[1])
    finally:
        for sock in sockets:
            sock.close()


async def _bind(host: str, port: int) -> list[socket.socket]:
    sockets = []
    for listener in await open_listeners(host, port, backlog=BACKLOG):
        # Accepted sockets inherit it. It holds for a window of zero as well, so that no shielded write is endless.
        listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_SECONDS * 1000))
        trio_socket = listener.socket
        sockets.append(
            socket.socket(trio_socket.family, trio_socket.type, trio_socket.proto, fileno=trio_socket.detach())
        )
    return sockets


async def _serve_for_ever(app: AsgiApp, sockets: Sequence[socket.socket]) -> None:
    while True:
        try:
            await serve(cast("Any", app), _build_config(sockets), mode="asgi")
        except* Exception:
            # The boundary between the admin port and the users' requests: a bug of Hypercorn's stays here.
            logger.exception("the admin server failed; starting it again")
        await trio.sleep(RESTART_SECONDS)


def _build_config(sockets: Sequence[socket.socket]) -> Config:
    config = Config()
    # Hypercorn closes what it is given: each start gets duplicates, so that the port stays bound in between.
    config.bind = [f"fd://{os.dup(sock.fileno())}" for sock in sockets]
    config.backlog = BACKLOG
    config.include_server_header = False
    config.logger_class = HypercornLogger
    config.errorlog = logging.getLogger("cgw.control")  # with its default Hypercorn writes to stderr itself
    return config
