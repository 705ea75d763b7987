"""Explaining failed system calls and handshakes in the system's words."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trio

from cgw.errors import explain_os_error
from tests.support.raw_server import open_raw_server
from tests.support.tls_peer import HOST, TlsAuthority


def test_path_is_not_part_of_the_reason(tmp_path: Path) -> None:
    """The reason of a failed open is the text of its errno."""
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "missing").open()
    assert explain_os_error(caught.value) == "No such file or directory"


async def test_reason_is_found_inside_trios_errors(free_port: int) -> None:
    """Trio wraps the error of each address in a group, which is the cause of an OSError without errno."""
    with pytest.raises(OSError, match="all attempts to connect") as caught:
        await trio.open_tcp_stream("127.0.0.1", free_port)
    assert caught.value.errno is None
    assert explain_os_error(caught.value) == "Connection refused"


async def test_reason_is_found_inside_httpxs_errors(free_port: int) -> None:
    """httpx and httpcore wrap Trio's error twice more, once as the context of an error without cause."""
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.get(f"http://127.0.0.1:{free_port}/")
    assert explain_os_error(caught.value) == "Connection refused"


@pytest.fixture
def free_port() -> int:
    """A port on 127.0.0.1 on which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port


async def test_untrusted_certificate_is_named() -> None:
    """The reason of a failed verification is OpenSSL's, behind a sentence for people."""
    server_context = TlsAuthority().build_server_context(ssl.TLSVersion.TLSv1_3)

    async def serve(stream: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await trio.SSLStream(stream, server_context, server_side=True).do_handshake()

    async with open_raw_server(serve) as port:
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", port), ssl.create_default_context(), server_hostname=HOST
        )
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
    assert explain_os_error(caught.value) == "the certificate is not valid: unable to get local issuer certificate"


def test_numbers_of_name_resolution_are_not_taken_for_errnos() -> None:
    """``getaddrinfo`` has error numbers of its own, and texts for them."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert explain_os_error(error) == "Name or service not known"


def test_context_of_an_os_error_is_not_its_reason() -> None:
    """An OSError that was raised while another error was handled is explained by itself."""
    error = OSError(errno.ENOSPC, "text of the caller")
    error.__context__ = KeyError("other")
    assert explain_os_error(error) == "No space left on device"


@pytest.mark.parametrize(("error", "reason"), [(ValueError("odd"), "odd"), (ValueError(), "ValueError")])
def test_other_errors_are_explained_by_their_text(error: Exception, reason: str) -> None:
    """An error without errno gives its text, or the name of its type."""
    assert explain_os_error(error) == reason
