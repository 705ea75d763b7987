"""Opening a connection to a Redis or Valkey server: socket, TLS, login, database, and a PING in time."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import hiredis
import trio
from attrs import evolve, frozen
from redis.exceptions import InvalidResponse, ResponseError

from cgw.errors import StoreRefused, StoreUnavailable, explain_os_error
from cgw.redis.address import RedisAddress
from cgw.redis.replies import build_reply_error, get_server_text

NEED_DATA = object()
"""Returned by a reader while no reply is complete; ``None`` would be a null reply."""

ASK_ERRORS = (trio.TooSlowError, trio.BrokenResourceError, InvalidResponse)
"""What an :func:`ask` under a timeout can raise when the server does not answer, or not in Redis's protocol."""

_NOT_READY_CODES = ("LOADING", "BUSY", "MASTERDOWN")
# Refusals that only an operator can end: a wrong password, missing rights, a database that there is not, ...
_LASTING_CODES = ("WRONGPASS", "NOAUTH", "NOPERM", "DENIED", "ERR")
_TOO_MANY_CLIENTS = "ERR max number of clients"
_NOT_READY_PAUSE_SECONDS = 0.01


def pack_command(command: tuple[bytes | str | int | float, ...]) -> bytes:
    """Return one command in Redis's protocol (RESP). Raises :exc:`TypeError` for arguments of other types."""
    # hiredis's annotation says a tuple of one element; it takes any number.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


@frozen
class RedisConnection:
    """A connection after the handshake: the stream, and the reader that holds received bytes of the next replies.

    ``mode`` (``standalone``, ``cluster``, ``sentinel``) and ``role`` in replication (``master``, ``replica``) are as
    the server reports them in its reply to HELLO; both are empty for a server without RESP3.
    """

    stream: trio.abc.Stream
    reader: hiredis.Reader
    address: RedisAddress
    mode: str = ""
    role: str = ""


async def connect(
    address: RedisAddress, connect_timeout_seconds: float, ping_timeout_seconds: float
) -> RedisConnection:
    """Open a connection, authenticate, select the database, and wait for a PING that is answered in time.

    A server that is still loading its data is waited for, within ``connect_timeout_seconds``. A PING that takes
    longer than ``ping_timeout_seconds`` is a failure: commands would miss their deadline. Raises
    :exc:`StoreUnavailable` with one sentence that names the server, and :exc:`StoreRefused` where another attempt
    cannot succeed. Cancel-safe: leaves no socket behind.
    """
    stream: trio.abc.Stream | None = None
    try:
        with trio.fail_after(connect_timeout_seconds):
            stream = await _open_stream(address)
            connection = RedisConnection(stream, _build_reader(), address)
            greeting = await _greet(connection, address)
            await _wait_ready(connection, ping_timeout_seconds)
    except BaseException as error:  # also Cancelled: the socket is closed whatever happens
        if stream is not None:
            await trio.aclose_forcefully(stream)
        reason = _describe_failure(error, connect_timeout_seconds)
        if reason is None:
            raise
        kind = StoreRefused if _is_lasting(error) else StoreUnavailable
        raise kind(f"Redis at {address.display_name} {reason}") from error
    mode, role = (greeting.get(name, b"").decode("ascii", "replace") for name in (b"mode", b"role"))
    return evolve(connection, mode=mode, role=role)


def _build_reader() -> hiredis.Reader:
    return hiredis.Reader(protocolError=InvalidResponse, replyError=build_reply_error, notEnoughData=NEED_DATA)


async def _open_stream(address: RedisAddress) -> trio.abc.Stream:
    if address.path is not None:
        return await trio.open_unix_socket(address.path)
    tcp = await trio.open_tcp_stream(address.host, address.port)
    if address.tls is None:
        return tcp
    stream = trio.SSLStream(tcp, address.tls, server_hostname=address.host)
    try:
        await stream.do_handshake()
    except BaseException:  # also Cancelled: the caller has no stream to close yet
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def ask(connection: RedisConnection, *command: str | int) -> Any:
    """Send one command and return its reply; an error reply is returned as an exception.

    For connections that no :class:`~cgw.redis.link.Link` uses. Raises :exc:`trio.BrokenResourceError` when the
    connection breaks, and :exc:`redis.exceptions.InvalidResponse` for bytes that are not Redis's protocol. If it is
    cancelled the connection must be closed: the reply may still come.
    """
    await connection.stream.send_all(pack_command(command))
    # RESP3 servers may send push notifications at any time; they are not replies.
    while (reply := connection.reader.gets()) is NEED_DATA or isinstance(reply, hiredis.PushNotification):
        if reply is NEED_DATA:
            data = await connection.stream.receive_some(4096)
            if not data:
                raise trio.BrokenResourceError("closed the connection")
            connection.reader.feed(bytes(data))
    return reply


async def _greet(connection: RedisConnection, address: RedisAddress) -> Mapping[bytes, Any]:
    """Switch to RESP3 and log in; return the server's reply to HELLO, empty for a server without RESP3."""
    credentials: tuple[str, ...] = ()
    if address.password is not None:
        # HELLO takes a user always; a password alone is that of the user "default".
        credentials = ("AUTH", address.username or "default", address.password)
    # The name shows in CLIENT LIST, for operators.
    reply = await ask(connection, "HELLO", 3, *credentials, "SETNAME", "cgw")
    greeting = reply if isinstance(reply, dict) else {}
    if isinstance(reply, ResponseError) and str(reply).startswith(("NOPROTO", "ERR")):
        # A server (or a proxy in front of it) without RESP3: log in with AUTH, as before Redis 6.
        reply = b"OK"
        if address.password is not None:
            names = (address.username,) if address.username else ()
            reply = await ask(connection, "AUTH", *names, address.password)
    # Database 0 is selected already.
    if not isinstance(reply, Exception) and address.database:
        reply = await ask(connection, "SELECT", address.database)
    if isinstance(reply, Exception):
        raise _Refused(get_server_text(reply))
    return greeting


async def _wait_ready(connection: RedisConnection, ping_timeout_seconds: float) -> None:
    while True:
        asked_at = trio.current_time()
        reply = await ask(connection, "PING")
        if isinstance(reply, Exception):
            text = get_server_text(reply)
            if not text.startswith(_NOT_READY_CODES):
                raise _Refused(text)
            await trio.sleep(_NOT_READY_PAUSE_SECONDS)  # until the caller's timeout
        # Counted for this PING alone: loading may take as long as the timeout for connecting.
        elif trio.current_time() - asked_at > ping_timeout_seconds:
            raise _Refused(f"it took longer than {ping_timeout_seconds * 1000:.0f} ms to answer a PING")
        else:
            return


def describe_refusal(reply: object) -> str:
    """Return the end of a sentence that begins with the server's name: why ``reply`` can't be used."""
    if isinstance(reply, Exception):
        return f"refused us: {get_server_text(reply)}"
    return "sent a reply of an unexpected form"


class _Refused(Exception):
    """The server refused the connection; the message is the server's."""


def _is_lasting(error: BaseException) -> bool:
    """Return whether another attempt would fail in the same way, until an operator changes something."""
    if isinstance(error, _Refused):
        text = str(error)
        return text.startswith(_LASTING_CODES) and not text.startswith(_TOO_MANY_CLIENTS)
    # Trio wraps the errors of TLS.
    return isinstance(error, InvalidResponse) or isinstance(error.__cause__, ssl.SSLCertVerificationError)


def _describe_failure(error: BaseException, connect_timeout_seconds: float) -> str | None:
    """Return the end of a sentence that begins with the server's name; ``None`` if the failure is not the server's."""
    if isinstance(error, _Refused):
        return f"refused us: {error}"
    if isinstance(error, trio.TooSlowError):
        return f"did not answer within {connect_timeout_seconds:g} s"
    if isinstance(error, InvalidResponse):
        return "does not speak Redis's protocol"
    if isinstance(error, (OSError, trio.BrokenResourceError)):
        return f"can't be reached: {explain_os_error(error)}"
    return None
