"""TLS on the public port: whole exchanges, hang-ups, handshakes that fail, and new certificates."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import trio
import trustme

from cgw.errors import ConfigError
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from cgw.transport.server_tls import ServerTls
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, TOKEN, open_gateway
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import open_client
from tests.support.requests import build_body, build_request
from tests.support.tls_peer import HOST
from tests.support.waiting import wait_until

# The OpenAI SDK leaves the generators of an ended stream to the garbage collector, which warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

__all__ = ["quiet_log"]

PATH = "/anthropic/v1/messages"
PROBE = b"GET /-/readyz HTTP/1.1\r\nhost: x\r\n\r\n"


async def read_to_end(stream: trio.SSLStream[trio.SocketStream]) -> bytes:
    """Read up to close_notify; an end without it raises :exc:`trio.BrokenResourceError`."""
    data = b""
    while more := await stream.receive_some(65536):
        data += more
    return data


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream that answers at once."""
    scripts = {
        ANTHROPIC_MODEL: Script(answer="Good day to you.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY),
        OPENAI_MODEL: Script(answer="Good day to you.", tokens_per_second=math.inf, api_key=OPENAI_KEY),
    }
    async with open_scripted_upstream(scripts) as upstream:
        yield upstream


class Certificates:
    """An authority, and the files of a certificate that it has issued."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.cert_file, self.key_file = folder / "cert.pem", folder / "key.pem"
        self.issue()

    def issue(self) -> int:
        """Write a new certificate and its key; return the serial number."""
        issued = self.ca.issue_cert(HOST)
        self.key_file.write_bytes(issued.private_key_pem.bytes())
        self.cert_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        decoded = ssl._ssl._test_decode_cert(str(self.cert_file))  # type: ignore[attr-defined]
        return int(decoded["serialNumber"], 16)

    def build_client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Files of a certificate for this machine."""
    return Certificates(tmp_path)


@asynccontextmanager
async def open_tls_gateway(
    folder: Path, upstream: ScriptedUpstream, certificates: Certificates, more: Mapping[str, str] | None = None
) -> AsyncIterator[Service]:
    environ = {
        "CODY_GATEWAY_TLS_CERT_FILE": str(certificates.cert_file),
        "CODY_GATEWAY_TLS_KEY_FILE": str(certificates.key_file),
        **(more or {}),
    }
    async with open_gateway(folder, upstream.url, more=environ) as gateway:
        yield gateway


@asynccontextmanager
async def connect(gateway: Service, certificates: Certificates) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """Connect and agree on TLS; the socket is closed at the end, without close_notify."""
    context = certificates.build_client_context()
    stream = await trio.open_ssl_over_tcp_stream(HOST, gateway.port, ssl_context=context, https_compatible=True)
    try:
        await stream.do_handshake()
        yield stream
    finally:
        stream.transport_stream.socket.close()


async def read_serial(gateway: Service, certificates: Certificates) -> int:
    async with connect(gateway, certificates) as stream:
        return int(stream.getpeercert()["serialNumber"], 16)


async def test_exchanges_over_tls_are_those_over_tcp(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates
) -> None:
    """Streams, whole answers, control routes and large bodies on one kept connection."""
    async with (
        open_tls_gateway(tmp_path, upstream, certificates) as gateway,
        httpx.AsyncClient(verify=certificates.build_client_context()) as client,
    ):
        assert gateway.url.startswith("https://")
        assert (await client.get(f"{gateway.url}/-/readyz")).text == "readyz: ok"
        headers = {"authorization": f"Bearer {TOKEN}"}
        for is_stream in (True, False):
            body = build_body(PATH, stream=is_stream)
            answer = await client.post(gateway.url + PATH, json=body, headers=headers)
            assert answer.status_code == 200
            assert (b"message_stop" in answer.content) == is_stream
        large = build_body(PATH, messages=[{"role": "user", "content": "x" * 300_000}])
        assert (await client.post(gateway.url + PATH, json=large, headers=headers)).status_code == 200
        assert gateway.server.statistics().accepted == 1


async def test_sdks_work_over_tls(tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates) -> None:
    """Both SDKs stream over https."""
    context = certificates.build_client_context()
    messages: Any = [{"role": "user", "content": "Good day"}]
    async with (
        open_tls_gateway(tmp_path, upstream, certificates) as gateway,
        anthropic.AsyncAnthropic(
            base_url=f"{gateway.url}/anthropic",
            api_key=TOKEN,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=context),
        ) as anthropic_client,
        openai.AsyncOpenAI(
            base_url=f"{gateway.url}/openai/v1",
            api_key=TOKEN,
            http_client=openai.DefaultAsyncHttpxClient(verify=context),
        ) as openai_client,
    ):
        async with anthropic_client.messages.stream(
            model=ANTHROPIC_MODEL,
            max_tokens=50,
            messages=messages,
        ) as stream:
            assert await stream.get_final_text() == "Good day to you."
        chunks: Any = await openai_client.chat.completions.create(
            model=OPENAI_MODEL,
            messages=messages,
            stream=True,
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])
        assert text == "Good day to you."


@pytest.mark.parametrize("is_polite", [False, True], ids=["closed", "close_notify first"])
async def test_client_that_hangs_up_closes_the_upstream(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates, is_polite: bool
) -> None:
    """A client that leaves in mid-stream stops the upstream, with and without TLS's own end."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(answer="word " * 5000, tokens_per_second=50, api_key=ANTHROPIC_KEY)
    async with open_tls_gateway(tmp_path, upstream, certificates) as gateway:
        async with connect(gateway, certificates) as stream:
            await stream.send_all(build_request(PATH))
            data = b""
            while b"content_block_delta" not in data:
                data += await stream.receive_some(65536)
            if is_polite:
                await stream.aclose()
        await wait_until(lambda: upstream.open_connections == 0)
        await wait_until(lambda: gateway.server.connection_count == 0)


async def test_last_answer_ends_with_close_notify(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates
) -> None:
    """The end of a connection that cgw closes is announced: a body that ends with it is not taken for truncated."""
    async with open_tls_gateway(tmp_path, upstream, certificates) as gateway:
        context = certificates.build_client_context()
        stream = await trio.open_ssl_over_tcp_stream(HOST, gateway.port, ssl_context=context, https_compatible=False)
        await stream.send_all(build_request(PATH, version="1.0"))
        data = await read_to_end(stream)
        assert data.endswith(b'message_stop"}\n\n')
        stream.transport_stream.socket.close()


async def test_broken_stream_of_http_1_0_looks_broken(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates
) -> None:
    """An answer without a length that is cut off ends without close_notify."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(answer="word " * 5000, tokens_per_second=50, api_key=ANTHROPIC_KEY)
    async with open_tls_gateway(tmp_path, upstream, certificates) as gateway:
        context = certificates.build_client_context()
        stream = await trio.open_ssl_over_tcp_stream(HOST, gateway.port, ssl_context=context, https_compatible=False)
        await stream.send_all(build_request(PATH, version="1.0"))
        data = b""
        while b"content_block_delta" not in data:
            data += await stream.receive_some(65536)
        gateway.cut()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(stream)
        stream.transport_stream.socket.close()


GARBAGE = {
    "plain HTTP": PROBE,
    "zeros": bytes(1000),
    "a record of nonsense": b"\x16\x03\x01\x00\x10" + b"x" * 16,
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a huge record": b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_no_handshake_is_closed(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates, name: str
) -> None:
    """Anything but a hello of TLS ends its connection at once, with an alert at most."""
    async with open_tls_gateway(tmp_path, upstream, certificates) as gateway:
        async with open_client(gateway.port) as client:
            await client.send(GARBAGE[name])
            with trio.fail_after(5):
                try:
                    data = await client.read_end()
                except trio.BrokenResourceError:
                    data = b""
            assert data[:1] in (b"", b"\x15")
        await wait_until(lambda: gateway.server.connection_count == 0)


async def test_half_a_handshake_times_out(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates
) -> None:
    """A client that says nothing, or half of its hello, is closed after the timeout of a head."""
    more = {"CODY_GATEWAY_HEADER_TIMEOUT": "150ms"}
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates.build_client_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    async with open_tls_gateway(tmp_path, upstream, certificates, more) as gateway:
        for data in (b"", hello[:3], hello[:100], hello):
            async with open_client(gateway.port) as client:
                await client.send(data)
                with trio.fail_after(5):
                    await client.read_end()
        await wait_until(lambda: gateway.server.connection_count == 0)


async def test_reload_takes_a_new_certificate_and_keeps_the_old_one_on_failure(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates
) -> None:
    """New connections get the new certificate, open ones go on; broken files change nothing."""
    async with open_tls_gateway(tmp_path, upstream, certificates) as gateway:
        (reload,) = [reload for reload in gateway.reloads if "TLS" in reload.name]
        first = await read_serial(gateway, certificates)
        async with connect(gateway, certificates) as stream:
            second = certificates.issue()
            await reload.run()
            assert await read_serial(gateway, certificates) == second != first
            await stream.send_all(PROBE)
            assert bytes(await stream.receive_some(65536)).startswith(b"HTTP/1.1 200")
        for broken in (b"", b"nonsense", certificates.cert_file.read_bytes()):
            certificates.key_file.write_bytes(broken)
            with pytest.raises(ConfigError, match="CODY_GATEWAY_TLS_KEY_FILE"):
                await reload.run()
            assert await read_serial(gateway, certificates) == second


def test_key_with_a_password_is_refused_without_asking_for_it(certificates: Certificates) -> None:
    """OpenSSL would ask on the terminal, and a service would hang there."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(certificates.key_file.read_bytes(), None)
    certificates.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="cannot use"):
        ServerTls(certificates.cert_file, certificates.key_file, has_http2=False)


async def test_proxy_header_comes_before_tls(
    tmp_path: Path, upstream: ScriptedUpstream, certificates: Certificates
) -> None:
    """A TCP proxy in front sends its header in plain text, in one segment with the client's hello or not."""
    more = {"CODY_GATEWAY_TRUSTED_PROXIES": "127.0.0.1/32"}
    header = b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n"
    async with open_tls_gateway(tmp_path, upstream, certificates, more) as gateway:
        tcp = await trio.open_tcp_stream(HOST, gateway.port)
        await tcp.send_all(header)
        stream = trio.SSLStream(tcp, certificates.build_client_context(), server_hostname=HOST, https_compatible=True)
        await stream.send_all(PROBE)
        assert bytes(await stream.receive_some(65536)).startswith(b"HTTP/1.1 200")
        tcp.socket.close()
