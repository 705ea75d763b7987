"""The ports of the service: the public one, bound or passed by systemd, and the admin port."""

from __future__ import annotations

import logging
import os
from contextlib import AsyncExitStack

import trio

from cgw.control.app import ControlApp
from cgw.errors import ConfigError
from cgw.service.findings import explain_listening
from cgw.service.settings import Settings
from cgw.transport.listeners import adopt_listeners, open_listeners

logger = logging.getLogger("cgw.service")


def build_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the base URL of a listening address, for clients on this machine."""
    if host in ("0.0.0.0", "", "::"):
        host = "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def is_activated(settings: Settings) -> bool:
    """Return whether systemd has passed listening sockets to this very process (sd_listen_fds(3))."""
    server = settings.server
    return server.passed_listeners > 0 and server.passed_to_pid == os.getpid()


async def open_public_port(stack: AsyncExitStack, settings: Settings) -> list[trio.SocketListener]:
    """Return the listeners of the public port, which ``stack`` closes."""
    server = settings.server
    if is_activated(settings):
        try:
            listeners = adopt_listeners(server.passed_listeners)
        except OSError as error:
            raise ConfigError(
                [f"LISTEN_FDS: cannot serve {server.passed_listeners} passed sockets: {error.strerror}"]
            ) from None
        logger.info("serving %d listening sockets that were passed (LISTEN_FDS)", len(listeners))
    else:
        if server.passed_listeners:
            logger.warning(
                "LISTEN_FDS is ignored: LISTEN_PID is %s, and this process is %d; a shell in between must `exec` cgw",
                server.passed_to_pid,
                os.getpid(),
            )
        listeners = await _bind_public_port(server.host, server.port, reuse_port=server.reuse_port)
    for listener in listeners:
        stack.callback(listener.socket.close)
    return listeners


async def _bind_public_port(host: str, port: int, *, reuse_port: bool) -> list[trio.SocketListener]:
    try:
        return await open_listeners(host, port, reuse_port=reuse_port)
    except OSError as error:
        raise ConfigError([str(explain_listening("PORT", "CODY_GATEWAY_HOST", host, port, error))]) from None


async def open_admin_port(stack: AsyncExitStack, settings: Settings, app: ControlApp) -> int | None:
    """Serve ``app`` on the admin port while ``stack`` is open; return the port, ``None`` where it is off."""
    host, port = settings.admin.host, settings.admin.port
    if port is None:
        return None
    from cgw.control.admin import open_admin_server  # imports Hypercorn's Trio worker

    try:
        return await stack.enter_async_context(open_admin_server(app.serve_admin, host, port))
    except OSError as error:
        finding = explain_listening("CODY_GATEWAY_ADMIN_PORT", "CODY_GATEWAY_ADMIN_HOST", host, port, error)
        raise ConfigError([str(finding)]) from None
