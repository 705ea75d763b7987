"""Addresses of clusters and Sentinels, and the replies that contain addresses."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.redis.address import ClusterAddress, RedisAddress, SentinelAddress, parse_store_url
from cgw.redis.command_keys import find_first_key
from cgw.redis.replies import Redirected, build_reply_error
from cgw.redis.slots import SlotRange, read_slot_ranges

SECRET = "s3cr3t-password"


def test_cluster_nodes_share_login_and_tls() -> None:
    """Each host of a cluster's address is a node, with the login and the TLS of the whole."""
    address = parse_store_url("rediss+cluster://user:p%40ss@a.example:7000,[::1]:7001,b.example")
    assert isinstance(address, ClusterAddress)
    assert [node.display_name for node in address.nodes] == ["a.example:7000", "[::1]:7001", "b.example:6379"]
    assert {(node.username, node.password, node.tls is not None) for node in address.nodes} == {("user", "p@ss", True)}


def test_sentinels_have_a_login_of_their_own() -> None:
    """User and password are the master's; those of the Sentinels are in the query. The repr shows neither."""
    address = parse_store_url(
        f"redis+sentinel://user:{SECRET}@a:26380,b/my%20service/2?sentinel_username=watch&sentinel_password={SECRET}2"
    )
    assert isinstance(address, SentinelAddress)
    assert (address.service, address.master.database, address.master.password) == ("my service", 2, SECRET)
    assert [one.display_name for one in address.sentinels] == ["a:26380", "b:26379"]
    assert {(one.username, one.password, one.database) for one in address.sentinels} == {("watch", f"{SECRET}2", 0)}
    assert SECRET not in repr(address)


def test_sentinels_without_login_are_not_given_the_masters() -> None:
    """The master's password is not sent to Sentinels."""
    address = parse_store_url(f"rediss+sentinel://:{SECRET}@a/service")
    assert isinstance(address, SentinelAddress)
    assert (address.sentinels[0].password, address.sentinels[0].tls is not None) == (None, True)


def test_one_server_is_as_before() -> None:
    """An address without + is that of one server."""
    address = parse_store_url("cache:6380")
    assert isinstance(address, RedisAddress)
    assert address.display_name == "cache:6380"


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        f"redis+cluster://:{SECRET}@",
        f"redis+cluster://:{SECRET}@a,,b",
        f"redis+cluster://:{SECRET}@a:port",
        f"redis+sentinel://:{SECRET}@a:1",
        f"redis+sentinel://:{SECRET}@a:1/service/database",
        f"redis+proxy://:{SECRET}@a:1",
        f"http+cluster://:{SECRET}@a:1",
    ],
)
def test_wrong_address_of_several_servers_is_refused_without_its_password(url: str) -> None:
    """An address of an unknown form raises ValueError, with a message that does not contain the password."""
    with pytest.raises(ValueError, match="Redis address") as refused:
        parse_store_url(url)
    assert SECRET not in str(refused.value)


@given(st.sampled_from(["redis+cluster://", "rediss+sentinel://", "redis+", "unix+sentinel://"]), st.text(max_size=60))
def test_any_text_is_a_store_or_a_value_error(scheme: str, text: str) -> None:
    """No text makes the parser raise anything but ValueError."""
    with suppress(ValueError):
        assert parse_store_url(scheme + text) is not None


@pytest.mark.parametrize(
    ("text", "place", "is_ask"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("127.0.0.1", 6381), False),
        ("MOVED 3999 :6381", ("", 6381), False),
        ("ASK 3999 node.example:6381", ("node.example", 6381), True),
        ("ASK 3999 2001:db8::1:6381", ("2001:db8::1", 6381), True),
    ],
)
def test_redirections_are_parsed(text: str, place: tuple[str, int], is_ask: bool) -> None:
    """MOVED and ASK are parsed into slot, host and port; to callers that can't follow they mean unavailable."""
    error = build_reply_error(text)
    assert isinstance(error, Redirected)
    assert isinstance(error, StoreUnavailable)
    assert (error.slot, (error.host, error.port), error.is_ask) == (3999, place, is_ask)


@pytest.mark.parametrize("text", ["MOVED", "ASK 1", "MOVED x a:1", "MOVED 16384 a:1", "MOVED 1 a:70000", "MOVED 1 a:"])
def test_invalid_redirections_are_plain_errors(text: str) -> None:
    """A redirection without a valid slot, host and port is an ordinary error reply."""
    assert type(build_reply_error(text)) is ResponseError


@pytest.mark.parametrize(
    ("host", "details", "read"),
    [
        (b"10.0.0.1", [b"id"], "10.0.0.1"),
        (b"node.example", [b"id", {b"ip": b"10.0.0.1"}], "node.example"),
        (b"", [b"id"], "asked.example"),
        (None, [b"id"], "asked.example"),
        (b"?", [b"id", {b"ip": b"10.0.0.1"}], "10.0.0.1"),
        (b"?", [b"id", [b"ip", b"10.0.0.1"]], "10.0.0.1"),
    ],
)
def test_slots_name_their_masters(host: bytes | None, details: list[Any], read: str) -> None:
    """A master is at the host in CLUSTER SLOTS; without one, at the node asked or the address in the details."""
    reply = [[0, 5460, [host, 7000, *details], [b"10.9.9.9", 7003, b"replica"]]]
    assert read_slot_ranges(reply, RedisAddress(host="asked.example")) == [SlotRange(0, 5460, read, 7000)]


_ANYTHING = st.recursive(
    st.none() | st.integers(-1, 20_000) | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=4), inner, max_size=2),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.integers(), st.integers(), _ANYTHING).map(list) | _ANYTHING, max_size=4))
def test_any_reply_is_a_table_of_slots(reply: list[Any]) -> None:
    """No reply makes the parser of CLUSTER SLOTS raise, and the ranges are within bounds."""
    for entry in read_slot_ranges(reply, RedisAddress()):
        assert 0 <= entry.first <= entry.last < 16_384
        assert entry.host
        assert 0 < entry.port < 65_536


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("GET name", "name"),
        ("PING", None),
        ("CONFIG GET port", None),
        ("EVALSHA 00 2 a b c", "a"),
        ("EVAL return 0 x", None),
        ("OBJECT ENCODING name", "name"),
        ("MEMORY USAGE name", "name"),
        ("BITOP AND target source", "target"),
        ("ZUNION 2 a b", "a"),
        ("XREAD COUNT 2 STREAMS s 0", "s"),
        ("MIGRATE host 1 name 0 10", "name"),
    ],
)
def test_first_key_of_commands(command: str, key: str | None) -> None:
    """The first key of a command is found wherever its syntax has it."""
    assert find_first_key(tuple(command.split())) == key
