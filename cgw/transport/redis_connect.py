"""One connection to a Redis or Valkey server: where it is, and how to greet it."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import hiredis
import trio
from attrs import field, frozen
from redis.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from cgw.errors import StoreUnavailable

NEED_DATA = object()
"""What a reader gives when no reply is whole yet."""

_UNAVAILABLE_CODES = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
    }
)
# Redis 6.2 puts the code of an error inside a script behind a text of its own.
_WRAPPED_CODE = re.compile(r"^ERR Error running script .*?-([A-Z]+) ")
_NOT_READY_CODES = ("LOADING", "BUSY", "MASTERDOWN")
_NOT_READY_PAUSE_SECONDS = 0.01


class ServerReadOnly(StoreUnavailable):
    """The server is a replica that takes no writes."""


def pack_command(command: tuple[bytes | str | int | float, ...]) -> bytes:
    """One command in Redis's protocol. Raises :exc:`TypeError` for arguments of other types."""
    # hiredis's own annotation speaks of a tuple of one.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def build_reply_error(text: str) -> Exception:
    """The exception for an error reply: :exc:`StoreUnavailable` when the server can't serve now."""
    code = text.partition(" ")[0]
    if code == "NOSCRIPT":
        return NoScriptError(text)
    wrapped = _WRAPPED_CODE.match(text) if code == "ERR" else None
    if wrapped:
        code = wrapped[1]
    if code in _UNAVAILABLE_CODES:
        kind = ServerReadOnly if code == "READONLY" else StoreUnavailable
        return kind(f"Redis can't serve now: {text}")
    return ResponseError(text)


@frozen
class RedisAddress:
    """Where a server is and who we are there. ``path`` is set for a unix socket, ``host`` and ``port`` otherwise."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def display_name(self) -> str:
        """``host:port`` or the socket's path: what people may read."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisAddress:
    """Parse ``redis://``, ``rediss://`` (TLS), ``unix://`` or bare ``host:port``, as redis-py does.

    ``redis[s]://[user[:password]@]host[:port][/database]``, ``unix://[user[:password]@]/path[?db=N]``. For TLS also
    the query options ``ssl_ca_certs``, ``ssl_cert_reqs`` (``none``), ``ssl_check_hostname``, ``ssl_certfile``,
    ``ssl_keyfile``. Raises :exc:`ValueError` with a sentence that never holds the password.
    """
    url = url.strip()
    if "://" not in url:
        if not url:
            raise ValueError("the Redis address is empty")
        url = f"redis://{url}"
    try:
        options: Mapping[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        database = int(options.get("db") or 0)
    except ValueError:
        # parse_url's own text could repeat what it was given.
        raise ValueError(
            "the Redis address must be redis://, rediss:// or unix:// (or host:port), with a numeric port and database"
        ) from None
    kind = options.get("connection_class")
    path = options.get("path") if kind is UnixDomainSocketConnection else None
    if kind is UnixDomainSocketConnection and not path:
        raise ValueError("the Redis address unix:// needs the path of a socket")
    return RedisAddress(
        host=str(options.get("host") or "localhost"),
        port=int(options.get("port") or 6379),
        path=path,
        username=options.get("username"),
        password=options.get("password"),
        database=database,
        tls=_build_tls_context(options) if kind is SSLConnection else None,
    )


def _build_tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(str(options["ssl_certfile"]), options.get("ssl_keyfile"))
    except OSError as error:
        raise ValueError(f"the certificate files of the Redis address can't be read: {error}") from error
    unverified = str(options.get("ssl_cert_reqs", "required")).lower() == "none"
    if unverified or options.get("ssl_check_hostname") is False:
        context.check_hostname = False
    if unverified:
        context.verify_mode = ssl.CERT_NONE
    return context


@frozen
class Connection:
    """A greeted connection: the stream, and the reader that holds what came of the next reply."""

    stream: trio.abc.Stream
    reader: hiredis.Reader


async def connect(address: RedisAddress, connect_timeout_seconds: float, ping_timeout_seconds: float) -> Connection:
    """Open a connection, authenticate, select the database, and see one PING answered in time.

    Waits, within ``connect_timeout_seconds``, for a server that is still loading. Raises
    :exc:`StoreUnavailable` with one sentence naming the server. Cancel-safe: leaves no socket behind.
    """
    stream: trio.abc.Stream | None = None
    try:
        with trio.fail_after(connect_timeout_seconds):
            stream = await _open_stream(address)
            connection = Connection(stream, _build_reader())
            await _greet(connection, address)
            await _wait_ready(connection, ping_timeout_seconds)
    except BaseException as error:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        reason = _describe_failure(error, connect_timeout_seconds)
        if reason is None:
            raise
        raise StoreUnavailable(f"Redis at {address.display_name} {reason}") from error
    return connection


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
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def ask(connection: Connection, *command: str | int) -> Any:
    """Send one command and read its one reply; an error reply is returned as an exception."""
    await connection.stream.send_all(pack_command(command))
    while (reply := connection.reader.gets()) is NEED_DATA or isinstance(reply, hiredis.PushNotification):
        if reply is NEED_DATA:
            data = await connection.stream.receive_some(4096)
            if not data:
                raise trio.BrokenResourceError("closed the connection")
            connection.reader.feed(bytes(data))
    return reply


async def _greet(connection: Connection, address: RedisAddress) -> None:
    credentials: tuple[str, ...] = ()
    if address.password is not None:
        credentials = ("AUTH", address.username or "default", address.password)
    reply = await ask(connection, "HELLO", 3, *credentials, "SETNAME", "cgw")
    if isinstance(reply, ResponseError) and str(reply).startswith(("NOPROTO", "ERR")):
        # A server (or a proxy before it) without RESP3: the older way.
        reply = b"OK"
        if address.password is not None:
            names = (address.username,) if address.username else ()
            reply = await ask(connection, "AUTH", *names, address.password)
    if not isinstance(reply, Exception) and address.database:
        reply = await ask(connection, "SELECT", address.database)
    if isinstance(reply, Exception):
        raise _Refused(_server_text(reply))


async def _wait_ready(connection: Connection, ping_timeout_seconds: float) -> None:
    """See a PING answered in time; wait while the server is still loading."""
    while True:
        asked_at = trio.current_time()
        reply = await ask(connection, "PING")
        if isinstance(reply, Exception):
            text = _server_text(reply)
            if not text.startswith(_NOT_READY_CODES):
                raise _Refused(text)
            await trio.sleep(_NOT_READY_PAUSE_SECONDS)
        elif trio.current_time() - asked_at > ping_timeout_seconds:
            raise _Refused(f"it took longer than {ping_timeout_seconds * 1000:.0f} ms to answer a PING")
        else:
            return


class _Refused(Exception):
    """The server's own words for not serving us."""


def _server_text(error: Exception) -> str:
    return str(error).removeprefix("Redis can't serve now: ")


def _describe_failure(error: BaseException, connect_timeout_seconds: float) -> str | None:
    """The end of a sentence that begins with the server's name; ``None`` for what is no failure of the server."""
    if isinstance(error, _Refused):
        return f"refused us: {error}"
    if isinstance(error, trio.TooSlowError):
        return f"did not answer within {connect_timeout_seconds:g} s"
    if isinstance(error, InvalidResponse):
        return "does not speak Redis's protocol"
    if isinstance(error, (OSError, trio.BrokenResourceError, ssl.CertificateError)):
        return f"can't be reached: {_root_reason(error)}"
    return None


def _root_reason(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, (OSError, ssl.SSLError)):
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        return os.strerror(error.errno)  # without the addresses that Trio adds
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "the connection broke"
