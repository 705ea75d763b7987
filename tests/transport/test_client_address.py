"""The client's address behind proxies, and the bound on connections per address."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.transport.client_address import AddressBound, TrustedProxies
from cgw.wire.messages import RequestHead

TRUSTED = TrustedProxies([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")])


def find(peer: str, *headers: tuple[bytes, bytes]) -> str:
    return TRUSTED.find_client(peer, RequestHead(b"GET", b"/", headers))


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.1", [(b"x-forwarded-for", b"203.0.113.9")], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [(b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("::ffff:10.0.0.1", [(b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"6.6.6.6, 203.0.113.9, 10.0.0.2")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"203.0.113.9:4711")], "203.0.113.9"),
        ("10.0.0.1", [(b"x-forwarded-for", b"[2001:db8::1]:4711")], "2001:db8::1"),
        ("10.0.0.1", [(b"x-forwarded-for", b"203.0.113.9, nonsense")], "10.0.0.1"),
        ("10.0.0.1", [(b"x-forwarded-for", b"nonsense, 10.0.0.7")], "10.0.0.7"),
        ("10.0.0.1", [(b"forwarded", b"for=203.0.113.9;proto=https, for=10.0.0.3")], "203.0.113.9"),
        ("10.0.0.1", [(b"forwarded", b'by=x;For="[2001:db8::1]:80"')], "2001:db8::1"),
        ("10.0.0.1", [(b"forwarded", b"for=203.0.113.9"), (b"x-forwarded-for", b"6.6.6.6")], "203.0.113.9"),
        ("10.0.0.1", [(b"forwarded", b"for=unknown")], "10.0.0.1"),
        ("unix", [(b"x-forwarded-for", b"203.0.113.9")], "unix"),
    ],
)
def test_a_trusted_proxy_tells_the_client(peer: str, headers: list[tuple[bytes, bytes]], client: str) -> None:
    """Only what trusted proxies have appended counts, read from the right up to the first untrusted address."""
    assert find(peer, *headers) == client


@given(st.binary(max_size=100), st.sampled_from([b"forwarded", b"x-forwarded-for"]))
def test_any_value_gives_an_address(value: bytes, name: bytes) -> None:
    """Whatever a field holds, the result is the peer or an IP address."""
    client = find("10.0.0.1", (name, value))
    ipaddress.ip_address(client)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=50))
def test_an_address_never_exceeds_its_bound(steps: list[tuple[str, bool]]) -> None:
    """However connections come and go, no address has more than its bound, and each gets up to it."""
    bound, held = AddressBound(2), {"a": 0, "b": 0}
    for address, is_arrival in steps:
        if is_arrival:
            assert bound.acquire(address) is (held[address] < 2)
            held[address] = min(2, held[address] + 1)
        elif held[address]:
            bound.release(address)
            held[address] -= 1


def test_without_a_bound_nothing_is_counted() -> None:
    """No bound: every connection is let through."""
    bound = AddressBound(None)
    assert all(bound.acquire("a") for _ in range(1000))
    bound.release("a")
