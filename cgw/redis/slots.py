"""Parsing the reply to CLUSTER SLOTS: the nodes of a cluster and the slots that they serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from cgw.redis.address import RedisAddress

SLOTS = 16_384
COMMAND = ("CLUSTER", "SLOTS")
"""Supported by Redis 6.2 to 8 and Valkey 7.2 to 9. Its successor CLUSTER SHARDS came with Redis 7."""


@frozen
class SlotRange:
    """Slots ``first`` to ``last`` are served by the master at ``host`` and ``port``."""

    first: int
    last: int
    host: str
    port: int


def read_slot_ranges(reply: Any, asked: RedisAddress) -> list[SlotRange]:
    """Return the ranges in a reply to CLUSTER SLOTS. Entries without a valid address or of unknown form are skipped.

    A master without a host is at the host of ``asked``, the node that sent the reply.
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
    if not host:  # nil: the node does not know by which address its clients reach it
        return get_host(asked)
    name = host.decode("utf-8", "replace") if isinstance(host, bytes) else ""
    if name != "?":
        return name
    # "?": the node is to announce a host name (cluster-preferred-endpoint-type) and has none. The details, after the
    # node's id, hold its address: a map in RESP3, a flat list in RESP2.
    extra = details[1] if len(details) > 1 else ()
    known = extra if isinstance(extra, Mapping) else dict(zip(extra[::2], extra[1::2], strict=False))
    address = known.get(b"ip", b"")
    return address.decode("utf-8", "replace") if isinstance(address, bytes) else ""


def get_host(asked: RedisAddress) -> str:
    """Return the host of the node that was asked; the node behind a unix socket is on this host."""
    return asked.host if asked.path is None else "127.0.0.1"
