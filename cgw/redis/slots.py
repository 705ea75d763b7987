"""Which node of a cluster has which slot: reading the reply to CLUSTER SLOTS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from cgw.redis.address import RedisAddress

SLOTS = 16_384
COMMAND = ("CLUSTER", "SLOTS")
"""Known to all of Redis 6.2 to 8 and Valkey 7.2 to 9; CLUSTER SHARDS, its successor, is not."""


@frozen
class SlotRange:
    """Slots ``first`` to ``last`` are served by the master at ``host`` and ``port``."""

    first: int
    last: int
    host: str
    port: int


def read_slot_ranges(reply: Any, asked: RedisAddress) -> list[SlotRange]:
    """The ranges in a reply to CLUSTER SLOTS; what a node says of no place or in no known form is left out.

    A master without a host is at the one that was asked.
    """
    ranges = []
    for entry in reply if isinstance(reply, list) else ():
        match entry:
            case [int(first), int(last), [host, int(port), *details], *_] if 0 <= first <= last < SLOTS:
                name = _read_host(host, details, asked)
                if name and 0 < port < 65_536:
                    ranges.append(SlotRange(first, last, name, port))
    return ranges


def _read_host(host: Any, details: Sequence[Any], asked: RedisAddress) -> str:
    if not host:  # nil: the preferred endpoint is not known
        return get_host(asked)
    name = host.decode("utf-8", "replace") if isinstance(host, bytes) else ""
    if name != "?":
        return name
    # The host name that the node should announce is missing; its address is among the details.
    extra = details[1] if len(details) > 1 else ()
    known = extra if isinstance(extra, Mapping) else dict(zip(extra[::2], extra[1::2], strict=False))
    address = known.get(b"ip", b"")
    return address.decode("utf-8", "replace") if isinstance(address, bytes) else ""


def get_host(asked: RedisAddress) -> str:
    """The host that was asked; a unix socket is on ours."""
    return asked.host if asked.path is None else "127.0.0.1"
