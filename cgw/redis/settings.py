"""Settings of Redis: its address, and the deadline of a call."""

from __future__ import annotations

import re

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import MASK, MINUTE, Kind, Secret, check_url, duration

_HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_STORE_PLACE = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_STORE_PATHS = {"cluster": re.compile(r"(?:/[0-9]*)?"), "sentinel": re.compile(r"/[A-Za-z0-9._%~-]+(?:/[0-9]*)?")}
_REDIS_FORMS = (
    "must be host:port, redis://host:port/db, rediss://host:port/db, unix:///path/to/socket, "
    "redis+cluster://host:port,host:port or redis+sentinel://host:port,host:port/service (rediss+… for TLS)"
)


def _parse_redis_endpoint(text: str) -> Secret:
    if _HOST_AND_PORT.fullmatch(text):
        # `:6379` means this host, as in Go's notation of addresses.
        text = f"redis://localhost{text}" if text.startswith(":") else f"redis://{text}"
    scheme = text.partition("://")[0].lower()
    try:
        if "+" in scheme:
            # urlsplit() would refuse several hosts, so they are checked one by one.
            _check_store_places(scheme, text)
        else:
            check_url(text, ("redis", "rediss", "unix"))
    except ValueError:
        raise ValueError(_REDIS_FORMS) from None
    return Secret(text, _mask_redis_url(text))


def _check_store_places(scheme: str, text: str) -> None:
    """Raise :exc:`ValueError` unless ``text`` is a URL of a cluster's nodes, or of Sentinels with a service."""
    transport, _, kind = scheme.partition("+")
    rest = text.partition("://")[2].partition("?")[0]
    netloc, slash, path = rest.partition("/")
    places = [_STORE_PLACE.fullmatch(place) for place in netloc.rpartition("@")[2].split(",")]
    is_valid = (
        transport in {"redis", "rediss"}
        and kind in _STORE_PATHS
        and _STORE_PATHS[kind].fullmatch(slash + path) is not None
        and all(place is not None and 0 < int(place[1] or 1) < 65_536 for place in places)
    )
    if not is_valid or not text.isprintable() or " " in text:
        raise ValueError("not host[:port][,...]")


def _mask_redis_url(text: str) -> str:
    """Return ``text`` without password and query (redis-py takes the password from ``?password=…``, too)."""
    shown, question, _ = text.partition("?")
    scheme, _, rest = shown.partition("://")
    netloc, slash, path = rest.partition("/")
    if "@" in netloc:
        # At the last @, as in parse_store_url. The user is shown, the password is not.
        login, _, places = netloc.rpartition("@")
        netloc = f"{login.partition(':')[0]}:{MASK}@{places}"
    return f"{scheme}://{netloc}{slash}{path}" + (f"?{MASK}" if question else "")


REDIS_ENDPOINT: Kind[Secret] = Kind(_parse_redis_endpoint, str, is_secret=True)
"""``host:port`` (as in the reference) or a URL of one server, a cluster or Sentinels; printed without password."""


@frozen
class RedisSettings:
    """Settings of the store that counts limits."""

    endpoint: Secret | None = setting(
        "REDIS_ENDPOINT",
        REDIS_ENDPOINT,
        None,
        "The Redis or Valkey that counts limits: host:port or a URL (redis://, rediss://, unix://, redis+cluster://, "
        "redis+sentinel://).",
        default_text="an embedded server of cgw's own",
        other_names=(
            "CODY_GATEWAY_REDIS_ENDPOINT",
            "CODY_GATEWAY_REDIS_URL",
            "REDIS_URL",
            "REDIS_HOST",
            "REDIS_STORE_ENDPOINT",
        ),
    )
    timeout_seconds: float = setting(
        "CODY_GATEWAY_REDIS_TIMEOUT", duration(most=MINUTE), 0.1, "How long one call to Redis may take."
    )
