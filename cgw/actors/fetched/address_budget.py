"""A budget per client address, for what a caller whose token is unknown may cost."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

import trio

from cgw.actors.source import TooManyUnknownTokens

MAX_ADDRESSES = 20_000
"""Addresses that are remembered, some 200 bytes each; of more, the oldest are forgotten."""

_IPV6_PREFIX = 64
"""The part of an IPv6 address that one client has to itself: whoever has one address of it has all of them."""


class AddressBudget:
    """A token bucket per client address: ``per_minute`` units at once, which come back over a minute."""

    def __init__(self, per_minute: int) -> None:
        self._size = float(per_minute)
        self._per_second = per_minute / 60
        # What is spent, and when that was true; an address that has spent nothing is not there.
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str) -> None:
        """Spend one unit. Raises :exc:`~cgw.actors.source.TooManyUnknownTokens` if there is none."""
        key = find_network(client)
        spent = self._read(key)
        if spent > self._size - 1:
            raise TooManyUnknownTokens((spent - self._size + 1) / self._per_second)
        self._write(key, spent + 1)

    def give_back(self, client: str) -> None:
        """Give one unit back: the token turned out to be known."""
        key = find_network(client)
        spent = self._read(key) - 1
        if spent > 0:
            self._write(key, spent)
        else:
            self._spent.pop(key, None)

    def __len__(self) -> int:
        return len(self._spent)

    def _read(self, key: str) -> float:
        spent, at = self._spent.get(key, (0.0, 0.0))
        return max(0.0, spent - (trio.current_time() - at) * self._per_second)

    def _write(self, key: str, spent: float) -> None:
        self._spent[key] = spent, trio.current_time()
        self._spent.move_to_end(key)
        if len(self._spent) > MAX_ADDRESSES:
            self._spent.popitem(last=False)


def find_network(client: str) -> str:
    """Return what stands for ``client``: an IPv4 address itself, the /64 network of an IPv6 address."""
    if ":" not in client:
        return client
    try:
        address = ipaddress.IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 128 - _IPV6_PREFIX << 128 - _IPV6_PREFIX))
