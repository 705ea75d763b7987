"""The PROXY protocol: headers of both versions, cut anywhere, and everything malformed."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import Refusal
from cgw.wire.proxy_protocol import (
    MAX_V1_BYTES,
    V2_PREFIX,
    ProxyHeader,
    may_be_proxy_header,
    parse_proxy_header,
)

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def build_v2(source: ipaddress.IPv4Address | ipaddress.IPv6Address, *, command: int = 0x21, more: bytes = b"") -> bytes:
    family = 0x11 if source.version == 4 else 0x21
    body = source.packed + source.packed + struct.pack("!HH", 1, 2) + more
    return V2_PREFIX + struct.pack("!BBH", command, family, len(body)) + body


@given(addresses)
def test_version_1_tells_the_source(source: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """The source of a TCP4 or TCP6 line is the client's address, and the rest of the data is the request."""
    line = f"PROXY TCP{source.version} {source} {source} 56324 443\r\n".encode()
    assert parse_proxy_header(line + REQUEST) == ProxyHeader(len(line), str(source))


@given(addresses, st.binary(max_size=30))
def test_version_2_tells_the_source(source: ipaddress.IPv4Address | ipaddress.IPv6Address, more: bytes) -> None:
    """The source of a binary header is the client's address; extensions are skipped."""
    header = build_v2(source, more=more)
    assert parse_proxy_header(header + REQUEST) == ProxyHeader(len(header), str(source))


@given(addresses, st.booleans(), st.data())
def test_a_cut_header_is_incomplete(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address, is_binary: bool, data: st.DataObject
) -> None:
    """However a header is cut, the parser asks for more of it."""
    whole = build_v2(source) if is_binary else f"PROXY TCP{source.version} {source} {source} 1 2\r\n".encode()
    part = whole[: data.draw(st.integers(min_value=0, max_value=len(whole) - 1))]
    assert parse_proxy_header(part) is None
    assert may_be_proxy_header(part)


@pytest.mark.parametrize(
    "header",
    [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n", build_v2(ipaddress.ip_address("::1"), command=0x20)],
)
def test_a_header_without_an_address_tells_none(header: bytes) -> None:
    """A proxy's own health check, or a connection of an unknown kind, keeps the peer's address."""
    assert parse_proxy_header(header) == ProxyHeader(len(header), None)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
        b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY " + b"x" * MAX_V1_BYTES,
        V2_PREFIX + b"\x31\x11\x00\x0c" + bytes(12),
        V2_PREFIX + b"\x22\x11\x00\x0c" + bytes(12),
        V2_PREFIX + b"\x21\x11\x00\x04" + bytes(4),
        V2_PREFIX + b"\x21\x11\xff\xff",
        REQUEST,
    ],
)
def test_a_malformed_header_is_refused(header: bytes) -> None:
    """Nothing is guessed from a malformed header: 400, and the connection is closed."""
    with pytest.raises(Refusal) as caught:
        parse_proxy_header(header)
    assert (caught.value.status, caught.value.must_close) == (400, True)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    """No bytes make the parser fail in any other way than by a refusal."""
    for prefix in (b"", b"PROXY ", V2_PREFIX):
        try:
            header = parse_proxy_header(prefix + data)
        except Refusal:
            continue
        assert header is None or header.size <= len(prefix + data)
