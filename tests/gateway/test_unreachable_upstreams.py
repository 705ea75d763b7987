"""Unreachable upstreams, TLS included: 502 with the reason, an event, and no charge."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio
import trustme

from tests.support.fault_bench import OK, PATH, WHOLE, Bench, Upstream, check_502
from tests.support.gateway import open_gateway
from tests.support.raw_client import ask
from tests.support.raw_server import open_raw_server
from tests.support.requests import build_request
from tests.support.streams import ANTHROPIC


async def test_upstream_that_cannot_be_reached_is_502(tmp_path: Path) -> None:
    """A closed port, a name that does not exist, a server without TLS: 502 with the reason, an event, no charge."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"

    async def speak_plainly(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(WHOLE)

    async with open_raw_server(speak_plainly) as port:
        for name, url, words in [
            ("refused", closed, "Connection refused"),
            ("no such name", "http://nowhere.invalid", "cannot connect to nowhere.invalid:80: "),
            ("no TLS", f"https://127.0.0.1:{port}", "TLS with 127.0.0.1:"),
        ]:
            folder = tmp_path / name.replace(" ", "-")
            folder.mkdir()
            async with open_gateway(folder, url) as gateway:
                await check_502(Bench(gateway, Upstream()), name, words)
                assert gateway.gateway.pool.statistics().opened == 0


async def test_time_that_ends_while_connecting_is_504(tmp_path: Path) -> None:
    """The caller's time is over before a listener with a full queue has taken the connection: 504, and no charge."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        async with open_gateway(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}") as gateway:
            data = build_request(PATH).replace(b"host:", b"x-timeout-ms: 100\r\nhost:", 1)
            answer = await ask(gateway.port, data)
            assert (answer.status, answer.json()["error"]) == (504, "request to upstream provider anthropic timed out")
            await Bench(gateway, Upstream()).check("connecting", resolved=504, upstream=None)


@asynccontextmanager
async def open_tls_bench(
    tmp_path: Path, upstream: Upstream, *, name: str = "127.0.0.1", is_trusted: bool = True
) -> AsyncIterator[Bench]:
    """Run a gateway in front of an upstream with a certificate for ``name``, from a trusted CA or another one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority = trustme.CA()
    authority.issue_cert(name).configure_cert(context)

    async def serve(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        while await tls.receive_some(65536):
            upstream.requests += 1
            await tls.send_all(upstream.answer)
            if upstream.answer.startswith(OK + b"\r\n"):
                return

    ca_file = tmp_path / "ca.pem"
    (authority if is_trusted else trustme.CA()).cert_pem.write_to_path(str(ca_file))
    async with (
        open_raw_server(serve) as port,
        open_gateway(
            tmp_path, f"https://127.0.0.1:{port}", more={"CODY_GATEWAY_UPSTREAM_CA_FILE": str(ca_file)}
        ) as gateway,
    ):
        yield Bench(gateway, upstream)


async def test_tls_upstream_is_served_with_its_ca(tmp_path: Path) -> None:
    """CODY_GATEWAY_UPSTREAM_CA_FILE adds a trusted CA; streams pass, and connections are kept alive."""
    async with open_tls_bench(tmp_path, Upstream(answer=WHOLE)) as bench:
        for stream in (True, False, True):
            answer = await bench.ask(stream=stream)
            assert (answer.status, answer.body) == (200, ANTHROPIC)
        await bench.check("TLS", resolved=200, upstream=200, count=3)
        assert bench.gateway.gateway.pool.statistics().opened == 1


async def test_bad_certificate_is_502(tmp_path: Path) -> None:
    """A certificate from an untrusted CA, or of another host, is refused; no request is sent."""
    for name, is_trusted, words in (
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("elsewhere.test", True, "mismatch"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        upstream = Upstream(answer=WHOLE)
        async with open_tls_bench(folder, upstream, name=name, is_trusted=is_trusted) as bench:
            await check_502(bench, name, words)
        assert upstream.requests == 0


async def test_tls_end_without_close_notify_looks_broken(tmp_path: Path) -> None:
    """A body that ends with the connection is truncated unless TLS sent close_notify: a FIN can be forged."""
    unfinished = ANTHROPIC[: ANTHROPIC.index(b"event: message_stop")]
    async with open_tls_bench(tmp_path, Upstream(answer=OK + b"\r\n" + unfinished)) as bench:
        cut = await bench.ask_cut(build_request(PATH))
        assert (cut.status, cut.body) == (200, unfinished)
        assert (await bench.ask_cut(build_request(PATH, version="1.0"))).is_reset
        await bench.check("TLS", resolved=200, upstream=200, count=2)
