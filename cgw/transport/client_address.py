"""The client's address: the peer's, or the one that a trusted proxy in front tells."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from cgw.wire.messages import RequestHead

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOPS = 32
"""How many addresses of one ``X-Forwarded-For`` are looked at, from the nearest proxy on."""

_FORWARDED_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*"?([^";,]*)"?', re.IGNORECASE)


class TrustedProxies:
    """The networks whose word on the client's address is taken."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks: Sequence[Network] = tuple(networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Return whether ``address`` is a trusted proxy's. Anything but an IP address is not."""
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)  # on a socket that serves IPv4 and IPv6
        return any((mapped or parsed) in network for network in self._networks)

    def find_client(self, peer: str, head: RequestHead) -> str:
        """Return the client's address of a request that came from ``peer``.

        ``Forwarded`` (RFC 7239) counts before ``X-Forwarded-For``. Both are read from the right: each proxy appends
        the address that it saw, so everything to the left of the first untrusted address may be the client's invention.
        """
        if not self._networks or not self.trusts(peer):
            return peer
        client = peer
        for address in _list_hops(head):
            if address is None:
                break
            client = address
            if not self.trusts(address):
                break
        return client


def _list_hops(head: RequestHead) -> list[str | None]:
    """Return the addresses that proxies have told, the nearest first; ``None`` for what is not an IP address."""
    forwarded = [value for name, value in head.headers if name == b"forwarded"]
    if forwarded:
        elements = b",".join(forwarded).decode("latin-1").split(",")[-MAX_HOPS:]
        hops = [match[1] if (match := _FORWARDED_FOR.search(element)) else "" for element in elements]
    else:
        listed = [value for name, value in head.headers if name == b"x-forwarded-for"]
        hops = b",".join(listed).decode("latin-1").split(",")[-MAX_HOPS:] if listed else []
    return [_clean_address(hop) for hop in reversed(hops)]


def _clean_address(text: str) -> str | None:
    """Return the IP address in ``text``, which may have a port or brackets."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


class AddressBound:
    """Counts connections per address, against one bound for each; ``None`` is no bound."""

    def __init__(self, maximum: int | None) -> None:
        self._maximum = maximum
        self._counts: Counter[str] = Counter()

    def acquire(self, address: str) -> bool:
        """Count one more of ``address`` and return true, or return false when its bound is reached."""
        if self._maximum is None:
            return True
        if self._counts[address] >= self._maximum:
            return False
        self._counts[address] += 1
        return True

    def release(self, address: str) -> None:
        """Count one fewer of ``address``."""
        if self._maximum is None:
            return
        self._counts[address] -= 1
        if self._counts[address] <= 0:
            del self._counts[address]  # what is not counted takes no memory
