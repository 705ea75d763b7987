"""The checks of a configuration, each against real files, sockets and servers."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing
import trustme

from cgw.actors.tokens import build_entry
from cgw.redis.embedded import open_embedded_redis
from cgw.service import local_checks
from cgw.service.check import CHECK_SECONDS, Check, list_checks, run_checks
from cgw.service.findings import Finding, Severity, merge
from cgw.service.local_checks import (
    check_actors,
    check_data_dir,
    check_ports,
    check_provider_settings,
    check_sources,
    check_tls,
    check_tokenizer,
)
from cgw.service.network_checks import check_data_dir_is_free, check_host, check_redis, list_targets
from cgw.service.settings import Settings, load_settings
from tests.support.raw_server import open_raw_server
from tests.support.redis_server import run_redis_server

CERT, KEY = "CODY_GATEWAY_TLS_CERT_FILE", "CODY_GATEWAY_TLS_KEY_FILE"
DATA_DIR, ACTORS = "CODY_GATEWAY_DATA_DIR", "CODY_GATEWAY_ACTORS_FILE"
URL, TOKEN = "CODY_GATEWAY_OPENAI_API_URL", "CODY_GATEWAY_OPENAI_ACCESS_TOKEN"


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which another socket listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def only(findings: list[Finding]) -> Finding:
    """Return the one finding there is."""
    (finding,) = findings
    return finding


# --- files ---------------------------------------------------------------------------------------------------------


async def test_the_actors_file_is_named_by_its_variable(tmp_path: Path) -> None:
    """Each problem in the file is a finding of ``CODY_GATEWAY_ACTORS_FILE``; a good file is none."""
    path = tmp_path / "actors.toml"
    settings = load_settings({ACTORS: str(path)})
    assert f"{ACTORS}: {path}: cannot be read: No such file" in str(only(await check_actors(settings)))
    path.write_text('[[actor]]\nid = "a b"\nname = 1\n')
    findings = await check_actors(settings)
    assert len(findings) >= 3
    assert all(str(finding).startswith(f"{ACTORS}: {path}: actor[0].") for finding in findings)
    path.write_text(build_entry("acme", "", "0" * 64))
    assert await check_actors(settings) == []


async def test_that_nobody_may_use_the_gateway_is_a_warning() -> None:
    """No actors file is what a first start looks like; anonymous access needs none."""
    finding = only(await check_actors(Settings()))
    assert finding.severity is Severity.WARNING
    assert "nobody may use the gateway" in finding.wrong
    assert await check_actors(load_settings({"CODY_GATEWAY_ALLOW_ANONYMOUS": "on"})) == []
    assert await check_actors(load_settings({"CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": "t"})) == []


@pytest.mark.parametrize(
    ("environ", "lines"),
    [
        ({}, []),
        ({"CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": "t"}, []),
        (
            {"CODY_GATEWAY_ENTERPRISE_PORTAL_URL": "http://portal.example", "SAMS_CLIENT_ID": "c"},
            [
                "SAMS_CLIENT_SECRET: is not set, and CODY_GATEWAY_ENTERPRISE_PORTAL_URL is: set it, or unset that one",
                "CODY_GATEWAY_ENTERPRISE_PORTAL_URL: must begin with https:// since tokens are sent there: correct it",
            ],
        ),
        (
            {
                "CODY_GATEWAY_ENTERPRISE_PORTAL_URL": "https://portal.example",
                "SAMS_CLIENT_ID": "c",
                "SAMS_CLIENT_SECRET": "s",
                "CODY_GATEWAY_DOTCOM_DEV_LICENSES_ONLY": "t",
            },
            [
                "CODY_GATEWAY_DOTCOM_INTERNAL_MODE: cannot be used with CODY_GATEWAY_ENTERPRISE_PORTAL_URL, since the "
                "portal does not tell the tags of licences: unset one of them"
            ],
        ),
    ],
    ids=["none", "dotcom", "portal", "internal mode"],
)
async def test_the_settings_of_sources_go_together(environ: dict[str, str], lines: list[str]) -> None:
    """What would keep the gateway from starting is found before."""
    assert [str(finding) for finding in await check_sources(load_settings(environ))] == lines


async def test_that_no_provider_has_a_key_is_a_warning() -> None:
    """Without any key there are no provider routes; with one there is nothing to say."""
    assert only(await check_provider_settings(Settings())).severity is Severity.WARNING
    assert await check_provider_settings(load_settings({TOKEN: "k"})) == []


async def test_both_tls_files_are_checked(tmp_path: Path) -> None:
    """One without the other, one that is missing, and two that do not belong together are each named."""
    cert, key, other = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "other.pem"
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    authority.issue_cert("localhost").private_key_pem.write_to_path(str(other))
    assert only(await check_tls(load_settings({CERT: str(cert)}))).variable == KEY
    assert only(await check_tls(load_settings({KEY: str(key)}))).variable == CERT
    missing = {CERT: str(tmp_path / "no.pem"), KEY: str(tmp_path / "nor.pem")}
    assert [finding.variable for finding in await check_tls(load_settings(missing))] == [CERT, KEY]
    finding = only(await check_tls(load_settings({CERT: str(cert), KEY: str(other)})))
    assert (finding.variable, finding.severity) == (f"{CERT}, {KEY}", Severity.ERROR)
    assert await check_tls(load_settings({CERT: str(cert), KEY: str(key)})) == []


async def test_the_end_of_a_certificate_is_seen(tmp_path: Path) -> None:
    """An expired certificate is a problem that stops no start, one that ends soon a warning, a fresh one neither."""
    authority = trustme.CA()
    now = datetime.now(UTC)
    found = []
    for days in (-1, 3, 60):
        issued = authority.issue_cert("localhost", not_before=now - timedelta(days=9), not_after=now + timedelta(days))
        environ = {CERT: str(tmp_path / "cert.pem"), KEY: str(tmp_path / "key.pem")}
        issued.cert_chain_pems[0].write_to_path(environ[CERT])
        issued.private_key_pem.write_to_path(environ[KEY])
        found.append([(finding.variable, finding.severity) for finding in await check_tls(load_settings(environ))])
    assert found == [[(CERT, Severity.OUTAGE)], [(CERT, Severity.WARNING)], []]


async def test_a_data_directory_is_checked_without_a_trace(tmp_path: Path) -> None:
    """What is missing is not created; a file in its place, or in that of the events, is named."""
    assert await check_data_dir(load_settings({DATA_DIR: str(tmp_path / "a" / "b")})) == []
    assert await check_data_dir(load_settings({DATA_DIR: str(tmp_path)})) == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "events").write_text("")
    for directory in (tmp_path, tmp_path / "events", tmp_path / "events" / "below"):
        finding = only(await check_data_dir(load_settings({DATA_DIR: str(directory)})))
        assert str(finding).startswith(f"{DATA_DIR}: {tmp_path}/events is not a directory: ")


async def test_a_data_directory_that_cannot_be_written_is_an_error() -> None:
    """A folder where no user may create files, root included."""
    finding = only(await check_data_dir(load_settings({DATA_DIR: "/proc/self/cgw"})))
    assert finding.severity is Severity.ERROR
    assert "/proc/self cannot be written" in finding.wrong


async def test_little_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a bound, here one that no disk has, the finding names what is free; it stops nothing."""
    monkeypatch.setattr(local_checks, "LOW_SPACE_BYTES", 2**80)
    finding = only(await check_data_dir(load_settings({DATA_DIR: str(tmp_path)})))
    assert finding.severity is Severity.WARNING
    assert " MiB are free in " in finding.wrong


# --- ports ---------------------------------------------------------------------------------------------------------


async def test_a_taken_port_is_found_on_both_ports(taken_port: int) -> None:
    """The variable of the port that is in use is named, that of the public or of the admin port."""
    for variable in ("PORT", "CODY_GATEWAY_ADMIN_PORT"):
        finding = only(await check_ports(load_settings({"PORT": "0", variable: str(taken_port)})))
        assert str(finding).startswith(f"{variable}: cannot listen on 127.0.0.1:{taken_port}: Address already in use: ")


async def test_the_two_ports_must_differ(taken_port: int) -> None:
    """One port for both is found, although each of them is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = str(server.getsockname()[1])
    environ = {"PORT": free, "CODY_GATEWAY_ADMIN_PORT": free}
    assert only(await check_ports(load_settings(environ))).variable == "CODY_GATEWAY_ADMIN_PORT"
    assert await check_ports(load_settings({"PORT": free})) == []


async def test_a_shared_port_keeps_its_connections() -> None:
    """Beside a gateway on a shared port, the check finds it usable and takes none of its connections."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(200)
        port = server.getsockname()[1]
        settings = load_settings({"PORT": str(port), "CODY_GATEWAY_REUSE_PORT": "on"})
        assert await check_ports(settings) == []
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(check_ports, settings)
            for _ in range(100):
                (await trio.open_tcp_stream("127.0.0.1", port)).socket.close()
        for _ in range(100):
            server.settimeout(5)
            server.accept()[0].close()
        assert only(await check_ports(load_settings({"PORT": str(port)}))).variable == "PORT"


async def test_an_address_of_another_machine_is_found() -> None:
    """The variable of the address is named, not that of the port."""
    finding = only(await check_ports(load_settings({"PORT": "0", "CODY_GATEWAY_HOST": "192.0.2.1"})))
    assert str(finding).startswith("CODY_GATEWAY_HOST: cannot listen on 192.0.2.1:0: ")


async def test_passed_sockets_are_left_alone(taken_port: int) -> None:
    """Under socket activation ``PORT`` is not used, so it may be taken."""
    environ = {"PORT": str(taken_port), "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    assert await check_ports(load_settings(environ)) == []


# --- Redis ---------------------------------------------------------------------------------------------------------


async def test_redis_is_asked(tmp_path: Path) -> None:
    """A server that answers is no finding; one that is away or refuses the password is an outage, without password."""
    with run_redis_server(tmp_path) as server:
        assert await check_redis(load_settings({"REDIS_ENDPOINT": server.url})) == []
        wrong = load_settings({"REDIS_ENDPOINT": server.url.replace("unix://", "unix://user:CANARY@")})
        refused = only(await check_redis(wrong))
    away = only(await check_redis(load_settings({"REDIS_ENDPOINT": "redis://:CANARY@127.0.0.1:1"})))
    for finding in (refused, away):
        assert (finding.variable, finding.severity) == ("REDIS_ENDPOINT", Severity.OUTAGE)
        assert "CANARY" not in str(finding)


async def test_an_embedded_store_of_another_process_is_found(tmp_path: Path) -> None:
    """A data directory whose embedded store runs belongs to another cgw; not so with a Redis of the operator's."""
    settings = load_settings({DATA_DIR: str(tmp_path)})
    assert await check_data_dir_is_free(settings) == []
    async with open_embedded_redis(tmp_path) as url:
        assert only(await check_data_dir_is_free(settings)).variable == DATA_DIR
        assert await check_data_dir_is_free(load_settings({DATA_DIR: str(tmp_path), "REDIS_ENDPOINT": url})) == []
    assert await check_redis(settings) == []


# --- hosts ---------------------------------------------------------------------------------------------------------


async def find_host_problem(environ: dict[str, str]) -> Finding:
    settings = load_settings({TOKEN: "CANARY", "CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT": "5s", **environ})
    (target,) = list_targets(settings)
    finding = only(await check_host(target, settings))
    assert (finding.variable, finding.severity) == (URL, Severity.OUTAGE)
    assert "CANARY" not in str(finding)
    return finding


async def test_a_name_that_does_not_resolve() -> None:
    """The finding says that it is the name."""

    class Resolver(trio.abc.HostnameResolver):
        """Knows no name, as a DNS server that is wrong."""

        async def getaddrinfo(self, *_: object, **__: object) -> NoReturn:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *_: object, **__: object) -> NoReturn:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())
    finding = await find_host_problem({URL: "https://api.example"})
    assert finding.wrong == "cannot resolve api.example: Name or service not known"


async def test_a_host_that_refuses_connections() -> None:
    """The finding says host, port and reason."""
    finding = await find_host_problem({URL: "https://127.0.0.1:1"})
    assert finding.wrong == "cannot connect to 127.0.0.1:1: Connection refused"


async def test_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    """A certificate of an unknown CA is a finding, which ends when the CA is named; no request is sent."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    received: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, context, server_side=True, https_compatible=True) as tls:
            received.append(bytes(await tls.receive_some(100)))

    async with open_raw_server(serve) as port:
        url = f"https://127.0.0.1:{port}"
        finding = await find_host_problem({URL: url})
        assert "TLS with 127.0.0.1 failed: the certificate is not valid" in finding.wrong
        assert "CODY_GATEWAY_UPSTREAM_CA_FILE" in finding.remedy
        ca_file = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        settings = load_settings({URL: url, TOKEN: "k", "CODY_GATEWAY_UPSTREAM_CA_FILE": str(ca_file)})
        assert await check_host(list_targets(settings)[0], settings) == []
    assert b"".join(received) == b""


async def test_a_host_that_accepts_and_is_silent() -> None:
    """A TLS handshake that gets no answer ends with the connect timeout."""

    async def serve(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with open_raw_server(serve) as port:
        environ = {URL: f"https://127.0.0.1:{port}", "CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT": "100ms"}
        assert (await find_host_problem(environ)).wrong == f"no connection to 127.0.0.1:{port} within 0.1 s"


async def test_only_hosts_that_are_used_are_checked() -> None:
    """A provider without a key is not connected to; a webhook is, and its path is shown nowhere."""
    assert list_targets(Settings()) == []
    variable = "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL"
    settings = load_settings({variable: "http://127.0.0.1:1/CANARY"})
    (target,) = list_targets(settings)
    assert target.variable == variable
    assert "CANARY" not in f"{target}{await check_host(target, settings)}"


# --- all together --------------------------------------------------------------------------------------------------


async def test_checks_run_side_by_side() -> None:
    """Two checks that wait for each other both end; what they find comes in the order of the list."""
    met = [trio.Event(), trio.Event()]

    async def meet(number: int) -> list[Finding]:
        met[number].set()
        await met[1 - number].wait()
        return [Finding(f"V{number}", "is wrong", "correct it")]

    checks = [Check("a", ("V0",), lambda: meet(0)), Check("b", ("V1",), lambda: meet(1))]
    with trio.fail_after(5):
        findings = await run_checks(checks)
    assert [str(finding) for finding in findings] == ["V0: is wrong: correct it", "V1: is wrong: correct it"]


async def test_each_check_has_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A check that hangs becomes a finding, and does not keep the others from being reported."""

    async def hang() -> NoReturn:
        await trio.sleep_forever()

    async def find() -> list[Finding]:
        return [Finding("B", "is wrong", "correct it")]

    started = trio.current_time()
    findings = await run_checks([Check("disk", ("A",), hang), Check("b", ("B",), find)])
    assert trio.current_time() - started == CHECK_SECONDS
    assert [finding.variable for finding in findings] == ["A", "B"]
    assert findings[0].wrong == f"the check of disk did not end within {CHECK_SECONDS:g} s"


async def test_checks_of_wrong_variables_are_left_out(taken_port: int) -> None:
    """While ``PORT`` is wrong, its default is not checked instead; with a running cgw, no port is."""
    settings = load_settings({"PORT": str(taken_port), "REDIS_ENDPOINT": "127.0.0.1:1"})
    variables = [finding.variable for finding in await run_checks(list_checks(settings))]
    assert {"PORT", "REDIS_ENDPOINT"} <= set(variables)
    variables = [finding.variable for finding in await run_checks(list_checks(settings), wrong={"PORT"})]
    assert "PORT" not in variables
    variables = [finding.variable for finding in await run_checks(list_checks(settings, is_running=True))]
    assert "PORT" not in variables


def test_a_problem_is_not_said_twice() -> None:
    """A start's own error is left out when a finding repeats it or is about its variable; warnings are no reason."""
    findings = [
        Finding("REDIS_ENDPOINT", "Redis is away", "start it", Severity.OUTAGE),
        Finding("PORT", "is taken", "set another"),
        Finding("CODY_GATEWAY_DATA_DIR", "has little space", "make room", Severity.WARNING),
    ]
    problems = ["Redis is away", "cannot listen; see PORT", "see CODY_GATEWAY_DATA_DIR", "CODY_GATEWAY_PORT is odd"]
    assert merge(problems, findings) == [
        "see CODY_GATEWAY_DATA_DIR",
        "CODY_GATEWAY_PORT is odd",
        "REDIS_ENDPOINT: Redis is away: start it",
        "PORT: is taken: set another",
    ]


async def test_a_vocabulary_that_cannot_be_used_is_found(tmp_path: Path) -> None:
    """With the file and what is wrong with it; without the setting nothing is."""
    assert await check_tokenizer(load_settings({})) == []
    path = tmp_path / "none.tiktoken"
    finding = only(await check_tokenizer(load_settings({"CODY_GATEWAY_TOKENIZER_FILE": str(path)})))
    assert f"CODY_GATEWAY_TOKENIZER_FILE: cannot read {path}: No such file" in str(finding)
