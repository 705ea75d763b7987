"""Addresses of a store: one server, the nodes of a cluster, or Sentinels; and parsing them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

import attrs
from attrs import field, frozen
from redis.connection import SSLConnection, UnixDomainSocketConnection, parse_url


@frozen
class RedisAddress:
    """The address of a server and the login there: ``path`` is a unix socket, otherwise ``host`` and ``port`` count."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def display_name(self) -> str:
        """``host:port`` or the socket's path, without the login: for messages."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def at(self, host: str, port: int) -> RedisAddress:
        """Return the address with the same login and TLS, at another host and port."""
        return attrs.evolve(self, host=host, port=port, path=None)


@frozen
class ClusterAddress:
    """Some nodes of a cluster; they name the others."""

    nodes: tuple[RedisAddress, ...]


@frozen
class SentinelAddress:
    """The Sentinels that know the master of ``service``. ``master`` holds the login there, without host and port."""

    service: str
    sentinels: tuple[RedisAddress, ...]
    master: RedisAddress


StoreAddress = RedisAddress | ClusterAddress | SentinelAddress


def parse_store_url(url: str) -> StoreAddress:
    """Parse the address of a store: one server, as in :func:`parse_redis_url`, or several servers.

    ``redis+cluster://[user[:password]@]host[:port][,host[:port]…]``,
    ``redis+sentinel://[user[:password]@]host[:port][,host[:port]…]/service[/database]``; with ``rediss+…`` all
    connections are TLS. User and password are for the nodes and the master; the login of the Sentinels is in the
    query options ``sentinel_username`` and ``sentinel_password``. The query options for TLS are those of
    :func:`parse_redis_url`. Raises :exc:`ValueError` with a sentence that never contains a password.
    """
    url = url.strip()
    scheme, separator, rest = url.partition("://")
    transport, plus, kind = scheme.lower().partition("+")
    if not (separator and plus):
        return parse_redis_url(url)
    if transport not in {"redis", "rediss"} or kind not in {"cluster", "sentinel"}:
        raise ValueError(
            "the Redis address has an unknown scheme; those with + are redis[s]+cluster and redis[s]+sentinel"
        )
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    login, at, places = netloc.rpartition("@")
    options = parse_qsl(query, keep_blank_values=True)
    if kind == "cluster":
        base = parse_redis_url(_build_url(transport, login + at, path, options))
        return ClusterAddress(_parse_places(places, base))
    return _parse_sentinel(transport, login + at, places, path, options)


def _parse_sentinel(
    transport: str, login: str, places: str, path: str, options: list[tuple[str, str]]
) -> SentinelAddress:
    service, _, database = path.partition("/")
    if not service:
        raise ValueError("the Redis address redis+sentinel:// needs the name of the service: …/service[/database]")
    if not (database.isdecimal() or not database):
        raise ValueError("the Redis address redis+sentinel://…/service/database needs a numeric database")
    own = {name: value for name, value in options if name in {"sentinel_username", "sentinel_password"}}
    shared = [(name, value) for name, value in options if name not in own]
    master = parse_redis_url(_build_url(transport, login, database, shared))
    sentinel = attrs.evolve(
        master, username=own.get("sentinel_username"), password=own.get("sentinel_password"), database=0
    )
    return SentinelAddress(unquote(service), _parse_places(places, sentinel, default_port=26_379), master)


def _build_url(transport: str, login: str, path: str, options: list[tuple[str, str]]) -> str:
    return f"{transport}://{login}localhost/{path}?{urlencode(options)}"


def _parse_places(text: str, base: RedisAddress, default_port: int = 6379) -> tuple[RedisAddress, ...]:
    """Parse comma-separated ``host[:port]``; each address has the login and TLS of ``base``."""
    places = []
    for place in text.split(","):
        if not place.strip():
            raise ValueError("the Redis address must name one host or more, none of them empty: host[:port][,…]")
        address = parse_redis_url(f"redis://{place.strip()}")
        # Behind the bracket of an IPv6 address, a colon can only begin the port.
        has_port = place.rstrip().rpartition("]")[2].count(":") > 0
        places.append(base.at(address.host, address.port if has_port else default_port))
    return tuple(places)


def parse_redis_url(url: str) -> RedisAddress:
    """Parse ``redis://``, ``rediss://`` (TLS), ``unix://`` or bare ``host:port``, as redis-py does.

    ``redis[s]://[user[:password]@]host[:port][/database]``, ``unix://[user[:password]@]/path[?db=N]``. For TLS also
    the query options ``ssl_ca_certs``, ``ssl_cert_reqs`` (``none``), ``ssl_check_hostname``, ``ssl_certfile``,
    ``ssl_keyfile``. Raises :exc:`ValueError` with a sentence that never contains the password.
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
        # Not parse_url's own message: it may quote the URL, password included.
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
