"""The PROXY protocol, versions 1 and 2: how a TCP proxy tells the address of its client before the client's bytes.

Source: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
import struct

from attrs import frozen

from cgw.errors import Refusal

V1_PREFIX = b"PROXY "
V2_PREFIX = b"\r\n\r\n\x00\r\nQUIT\n"

MAX_V1_BYTES = 107
"""The longest header of version 1, CR LF included (§2.1)."""

MAX_V2_BYTES = 16 + 2048
"""The longest header of version 2 that is read: addresses take 216 bytes at most, extensions the rest (§2.2)."""

_V2_COMMAND_LOCAL, _V2_COMMAND_PROXY = 0x20, 0x21
_V2_IPV4, _V2_IPV6 = 0x10, 0x20
_ADDRESS_SIZES = {_V2_IPV4: 4, _V2_IPV6: 16}


@frozen
class ProxyHeader:
    """A parsed header: ``size`` bytes long; ``source`` is the client's address, ``None`` where the proxy tells none."""

    size: int
    source: str | None


def may_be_proxy_header(data: bytes) -> bool:
    """Return whether ``data`` is the beginning of a PROXY header, or could become one."""
    return any(data.startswith(prefix) or prefix.startswith(data) for prefix in (V1_PREFIX, V2_PREFIX))


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Return the header that ``data`` begins with, or ``None`` while it is incomplete.

    Raises :exc:`~cgw.errors.Refusal` 400 for anything malformed, as the specification demands: a receiver must not
    guess. Call it only for peers that are trusted to send the header.
    """
    if data.startswith(V2_PREFIX):
        return _parse_v2(data)
    if data.startswith(V1_PREFIX):
        return _parse_v1(data)
    if may_be_proxy_header(data):
        return None
    raise _malformed("neither version 1 nor 2")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise _malformed(f"longer than {MAX_V1_BYTES} bytes")
        return None
    words = data[:end].split(b" ")
    if len(words) >= 2 and words[1] == b"UNKNOWN":
        return ProxyHeader(end + 2, None)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise _malformed("the line must read PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT")
    try:
        source = ipaddress.ip_address(words[2].decode("ascii"))
    except ValueError:
        raise _malformed("the source is not an IP address") from None
    if source.version != int(words[1][3:]):
        raise _malformed("the source is of another protocol than the line says")
    return ProxyHeader(end + 2, str(source))


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    size = 16 + length
    if size > MAX_V2_BYTES:
        raise _malformed(f"longer than {MAX_V2_BYTES} bytes")
    if command not in (_V2_COMMAND_LOCAL, _V2_COMMAND_PROXY):
        raise _malformed("unknown version or command")
    if len(data) < size:
        return None
    address_bytes = _ADDRESS_SIZES.get(family & 0xF0)
    if command == _V2_COMMAND_LOCAL or address_bytes is None:
        return ProxyHeader(size, None)  # a health check of the proxy's own, or a family that has no IP address
    if length < 2 * address_bytes + 4:
        raise _malformed("too short for its addresses")
    return ProxyHeader(size, str(ipaddress.ip_address(data[16 : 16 + address_bytes])))


def _malformed(reason: str) -> Refusal:
    return Refusal(400, f"malformed PROXY protocol header: {reason}", must_close=True)
