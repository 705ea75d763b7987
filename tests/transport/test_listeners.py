"""Listening sockets: addresses and families, shared ports, and sockets that another process passes."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
import trio

from cgw.transport.listeners import adopt_listeners, open_listeners


def has_ipv6() -> bool:
    """Return whether this machine has an IPv6 loopback address."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


def port_of(listener: trio.SocketListener) -> int:
    return int(listener.socket.getsockname()[1])


@contextmanager
def closing_all(listeners: list[trio.SocketListener]) -> Iterator[list[trio.SocketListener]]:
    """Close ``listeners`` at the end of the block."""
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()


@needs_ipv6
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_the_ipv6_wildcard_serves_both_families(address: str) -> None:
    """``::`` accepts connections to IPv4 and IPv6 addresses on one listener."""
    with closing_all(await open_listeners("::", 0)) as listeners:
        (listener,) = listeners
        async with await trio.open_tcp_stream(address, port_of(listener)):
            stream = await listener.accept()
            await stream.aclose()


@needs_ipv6
async def test_a_single_ipv6_address_serves_it_alone() -> None:
    """``::1`` does not listen on IPv4."""
    with closing_all(await open_listeners("::1", 0)) as (listener,), socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port_of(listener))) == errno.ECONNREFUSED


async def test_accepted_sockets_send_small_segments_at_once() -> None:
    """TCP_NODELAY is inherited from the listener."""
    with closing_all(await open_listeners("127.0.0.1", 0)) as (listener,):
        async with await trio.open_tcp_stream("127.0.0.1", port_of(listener)):
            stream = await listener.accept()
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await stream.aclose()


async def test_a_taken_port_is_an_os_error_that_leaves_nothing_open() -> None:
    """The second listener on a port is refused, unless both share it."""
    with closing_all(await open_listeners("127.0.0.1", 0)) as (listener,):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use"):
            await open_listeners("127.0.0.1", port_of(listener), reuse_port=True)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_shared_port_is_bound_twice() -> None:
    """With ``reuse_port`` a second process of the same user can listen before the first one closes."""
    with ExitStack() as stack:
        (first,) = stack.enter_context(closing_all(await open_listeners("127.0.0.1", 0, reuse_port=True)))
        (second,) = stack.enter_context(closing_all(await open_listeners("127.0.0.1", port_of(first), reuse_port=True)))
        first.socket.close()
        async with await trio.open_tcp_stream("127.0.0.1", port_of(second)):
            await (await second.accept()).aclose()


async def test_an_unknown_host_is_an_os_error() -> None:
    """A name that does not resolve raises, as a taken port does."""
    with pytest.raises(OSError, match=r".") as caught:
        await open_listeners("no-such-host.invalid", 0)
    assert isinstance(caught.value, OSError)


async def test_passed_sockets_are_adopted_and_closed_on_exec() -> None:
    """Listening sockets from consecutive descriptors are served, and children do not inherit them."""
    with socket.create_server(("127.0.0.1", 0)) as original:
        descriptor = os.dup(original.fileno())
        os.set_inheritable(descriptor, True)
        with closing_all(adopt_listeners(1, first=descriptor)) as (listener,):
            assert not os.get_inheritable(descriptor)
            async with await trio.open_tcp_stream("127.0.0.1", original.getsockname()[1]):
                await (await listener.accept()).aclose()


def open_unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX)


def open_tcp_socket() -> socket.socket:
    return socket.socket()


def open_datagram_socket() -> socket.socket:
    return socket.socket(type=socket.SOCK_DGRAM)


@pytest.mark.parametrize("open_wrong", [open_unix_socket, open_tcp_socket, open_datagram_socket])
async def test_passed_sockets_must_be_listening_tcp_sockets(open_wrong: Callable[[], socket.socket]) -> None:
    """Anything else is refused with the descriptor's number, and stays open."""
    with closing(open_wrong()) as wrong:
        with pytest.raises(OSError, match=f"descriptor {wrong.fileno()} is not a listening TCP socket"):
            adopt_listeners(1, first=wrong.fileno())
        os.fstat(wrong.fileno())


async def test_a_passed_descriptor_must_be_a_socket() -> None:
    """A file or a closed descriptor is named."""
    with tempfile.TemporaryFile() as file, pytest.raises(OSError, match="is not a socket"):
        adopt_listeners(1, first=file.fileno())
    with pytest.raises(OSError, match="descriptor 4000 is not a socket"):
        adopt_listeners(1, first=4000)
