"""Where a store is: the addresses of one server, of a cluster's nodes, or of the Sentinels that know the master."""

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

    def at(self, host: str, port: int) -> RedisAddress:
        """The same login and TLS at another place, as a cluster or a Sentinel names it."""
        return attrs.evolve(self, host=host, port=port, path=None)


@frozen
class ClusterAddress:
    """Some nodes of a cluster, to ask for the others."""

    nodes: tuple[RedisAddress, ...]


@frozen
class SentinelAddress:
    """The Sentinels to ask for the master of ``service``. ``master`` is the login there; its place is not yet known."""

    service: str
    sentinels: tuple[RedisAddress, ...]
    master: RedisAddress


StoreAddress = RedisAddress | ClusterAddress | SentinelAddress


def parse_store_url(url: str) -> StoreAddress:
    """Parse the address of a store: as :func:`parse_redis_url`, or one of several servers.

    ``redis+cluster://[user[:password]@]host[:port][,host[:port]…]``,
    ``redis+sentinel://[user[:password]@]host[:port][,host[:port]…]/service[/database]``; with ``rediss+…`` all
    connections are TLS. User and password are those of the nodes and of the master; Sentinels with a login of
    their own take it from the query options ``sentinel_username`` and ``sentinel_password``. The query options for
    TLS are those of :func:`parse_redis_url`. Raises :exc:`ValueError` with a sentence that never holds a password.
    """
    url = url.strip()
    scheme, separator, rest = url.partition("://")
    transport, plus, kind = scheme.lower().partition("+")
    if not (separator and plus):
        return parse_redis_url(url)
    if transport not in {"redis", "rediss"} or kind not in {"cluster", "sentinel"}:
        raise ValueError(
            "the Redis address has an unknown scheme; known with + are redis[s]+cluster, redis[s]+sentinel"
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
    """The comma-separated ``host[:port]`` of ``text``, each with the login and TLS of ``base``."""
    places = []
    for place in text.split(","):
        if not place.strip():
            raise ValueError("the Redis address must name at least one host, and no empty one: host[:port][,…]")
        address = parse_redis_url(f"redis://{place.strip()}")
        has_port = place.rstrip().rpartition("]")[2].count(":") > 0
        places.append(base.at(address.host, address.port if has_port else default_port))
    return tuple(places)


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
