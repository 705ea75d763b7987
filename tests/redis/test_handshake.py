"""Addresses, the handshake, and the errors for a server's refusals."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import NoScriptError, ResponseError

from cgw.errors import ConfigError, StoreUnavailable
from cgw.redis.address import parse_redis_url
from cgw.redis.opening import open_redis
from cgw.redis.replies import build_reply_error
from tests.support.raw_server import open_raw_server
from tests.support.redis_server import RedisServer, run_redis_server

SECRET = "s3cr3t-password"


@pytest.fixture
def locked_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with a password, and a user with the same one."""
    users = ("--user", "gateway", "on", f">{SECRET}", "~*", "+@all")
    with run_redis_server(tmp_path, "--requirepass", SECRET, *users) as server:
        yield server


@pytest.mark.parametrize(
    ("url", "name", "database", "has_tls"),
    [
        ("redis://cache.example:6380/3", "cache.example:6380", 3, False),
        ("redis://cache.example", "cache.example:6379", 0, False),
        ("cache.example:6390", "cache.example:6390", 0, False),
        ("cache.example", "cache.example:6379", 0, False),
        ("rediss://u:p@cache.example:6380", "cache.example:6380", 0, True),
        ("unix:///run/with%20space/redis.sock?db=2", "/run/with space/redis.sock", 2, False),
        ("redis://[::1]:6379", "[::1]:6379", 0, False),
    ],
)
def test_address_forms(url: str, name: str, database: int, has_tls: bool) -> None:
    """Every documented form of address is parsed into server, database and TLS."""
    address = parse_redis_url(url)
    assert (address.display_name, address.database, address.tls is not None) == (name, database, has_tls)


def test_credentials_are_decoded_and_never_shown() -> None:
    """User and password are percent-decoded, and the repr does not contain the password."""
    address = parse_redis_url("redis://gate%40way:s%3Acret@cache:1/0")
    assert (address.username, address.password) == ("gate@way", "s:cret")
    assert "s:cret" not in repr(address)


@pytest.mark.parametrize(
    "url", ["", "http://x", f"redis://:{SECRET}@host:port", f"redis://:{SECRET}@h:1/0?db=x", "unix://"]
)
def test_wrong_address_is_refused_without_its_password(url: str) -> None:
    """An invalid address raises ValueError, with a message that does not contain the password."""
    with pytest.raises(ValueError, match="Redis address") as refused:
        parse_redis_url(url)
    assert SECRET not in str(refused.value)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    """No text makes the parser raise anything but ValueError."""
    with suppress(ValueError):
        assert parse_redis_url(text).display_name


async def test_invalid_address_is_a_config_error() -> None:
    """open_redis raises ConfigError for an invalid address."""
    with pytest.raises(ConfigError, match="Redis address"):
        async with open_redis("http://nowhere"):
            raise AssertionError("opened")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("READONLY You can't write against a read only replica.", StoreUnavailable),
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable),
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailable),
        ("BUSY Redis is busy running a script.", StoreUnavailable),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailable),
        ("CLUSTERDOWN The cluster is down", StoreUnavailable),
        ("NOAUTH Authentication required.", StoreUnavailable),
        ("MISCONF Redis is configured to save RDB snapshots", StoreUnavailable),
        ("ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed", StoreUnavailable),
        ("OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script:1.", StoreUnavailable),
        ("ERR Error running script (call to f_1): @user_script:1: boom", ResponseError),
        ("WRONGPASS invalid username-password pair or user is disabled.", StoreUnavailable),
        ("NOPERM User default has no permissions to run the 'get' command", StoreUnavailable),
        ("ERR ACL failure in script: User u has no permissions to run the 'set' command script: 1", StoreUnavailable),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreUnavailable),
        ("NOSCRIPT No matching script.", NoScriptError),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", ResponseError),
        ("ERR unknown command", ResponseError),
    ],
)
def test_error_replies_have_their_kind(text: str, kind: type[Exception]) -> None:
    """Replies that mean "can't serve now" become StoreUnavailable; others stay errors of the command."""
    assert type(build_reply_error(text)) is kind or issubclass(type(build_reply_error(text)), kind)


def test_code_of_an_error_inside_a_script_stands_first() -> None:
    """The wrapped error of Redis 6.2 gets the text that later servers send."""
    text = "ERR Error running script (call to f_1): @user_script:1: -WRONGTYPE Operation against a key"
    assert str(build_reply_error(text)) == "WRONGTYPE Operation against a key"


async def _say_nothing(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_unreachable_server_is_one_sentence() -> None:
    """A refused connection is one sentence with host and port, without the password."""
    async with open_raw_server(_say_nothing) as port:
        pass
    with pytest.raises(StoreUnavailable) as raised:
        async with open_redis(f"redis://:{SECRET}@127.0.0.1:{port}"):
            raise AssertionError("opened")
    assert str(raised.value) == f"Redis at 127.0.0.1:{port} can't be reached: Connection refused"


async def test_silent_server_is_given_up_in_time() -> None:
    """A listener that accepts and sends nothing is given up after the connect timeout."""
    async with open_raw_server(_say_nothing) as port:
        started = trio.current_time()
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.05 s"):
            async with open_redis(f"127.0.0.1:{port}", connect_timeout_seconds=0.05):
                raise AssertionError("opened")
        assert trio.current_time() - started < 0.5


async def test_server_of_another_protocol() -> None:
    """A server that is not Redis is reported as such."""

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await trio.sleep_forever()

    async with open_raw_server(greet) as port:
        with pytest.raises(StoreUnavailable, match="does not speak Redis's protocol"):
            async with open_redis(f"127.0.0.1:{port}"):
                raise AssertionError("opened")


@pytest.mark.parametrize("user", ["", "gateway", "default"])
async def test_password_and_user_are_accepted(locked_server: RedisServer, user: str) -> None:
    """Logging in works with a password alone and with user and password."""
    async with open_redis(f"unix://{user}:{SECRET}@{locked_server.path}?db=1", timeout_seconds=5) as redis:
        who = await redis.commands.acl_whoami()
        assert who == (user or "default").encode()
        assert b"db=1" in await redis.execute_command("CLIENT INFO")


@pytest.mark.parametrize(("login", "reason"), [(":wrong-one@", "WRONGPASS"), ("", "NOAUTH")])
async def test_refused_login_is_one_sentence(locked_server: RedisServer, login: str, reason: str) -> None:
    """A wrong or missing password is one sentence with the server's reason, without the password."""
    with pytest.raises(StoreUnavailable, match=rf"refused us: {reason}") as raised:
        async with open_redis(f"unix://{login}{locked_server.path}"):
            raise AssertionError("opened")
    assert "wrong-one" not in str(raised.value)


async def test_server_without_resp3() -> None:
    """A server without HELLO is logged in to with AUTH."""
    answers = {b"HELLO": b"-ERR unknown command 'HELLO'\r\n", b"AUTH": b"+OK\r\n", b"PING": b"+PONG\r\n"}
    seen: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        async for data in stream:
            command = bytes(data).split(b"\r\n")[2]
            seen.append(command)
            await stream.send_all(answers.get(command, b"$5\r\nvalue\r\n"))

    async with open_raw_server(play) as port, open_redis(f"redis://:{SECRET}@127.0.0.1:{port}") as redis:
        assert await redis.commands.get("key") == b"value"
    assert seen == [b"HELLO", b"AUTH", b"PING", b"GET"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server without password."""
    with run_redis_server(tmp_path) as server:
        yield server


async def _tunnel(path: Path, context: ssl.SSLContext, raw: trio.SocketStream) -> None:
    """Terminate TLS in front of a server without it."""
    client = trio.SSLStream(raw, context, server_side=True)

    async def copy(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some(65536):
                await target.send_all(data)
        nursery.cancel_scope.cancel()

    try:
        await client.do_handshake()
    except trio.BrokenResourceError:
        return
    async with await trio.open_unix_socket(path) as behind, trio.open_nursery() as nursery:
        nursery.start_soon(copy, client, behind)
        nursery.start_soon(copy, behind, client)


async def test_tls(server: RedisServer, tmp_path: Path) -> None:
    """rediss:// accepts a certificate that can be verified, and refuses another."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    async with open_raw_server(partial(_tunnel, server.path, context)) as port:
        async with open_redis(f"rediss://127.0.0.1:{port}?ssl_ca_certs={trusted}", timeout_seconds=5) as redis:
            assert await redis.execute_command("PING") == b"PONG"
        with pytest.raises(StoreUnavailable, match="the certificate is not valid"):
            async with open_redis(f"rediss://127.0.0.1:{port}"):
                raise AssertionError("opened")
