"""Connecting to the master that Sentinels name; they are asked for each connection."""

from __future__ import annotations

from typing import Any

import trio

from cgw.errors import StoreRefused, StoreUnavailable
from cgw.redis.address import RedisAddress, SentinelAddress
from cgw.redis.handshake import ASK_ERRORS, RedisConnection, ask, connect, describe_refusal
from cgw.redis.replies import join_failures

_STEP_SECONDS = 0.4
"""The most that one Sentinel, or the master that it names, may take: a stopped one must not delay asking the next
Sentinel, or finding the new master."""


class MasterFinder:
    """Connects to the master of a service. The Sentinel that answered last is asked first at the next connection."""

    def __init__(self, address: SentinelAddress, timeout_seconds: float) -> None:
        self._address = address
        self._sentinels = list(address.sentinels)
        self._timeout_seconds = timeout_seconds
        self._step_seconds = max(_STEP_SECONDS, 2 * timeout_seconds)

    @property
    def display_name(self) -> str:
        """The service, for messages; the master's address changes."""
        return f"the master of {self._address.service} (by Sentinel)"

    async def connect(self, connect_timeout_seconds: float) -> RedisConnection:
        """Return a connection to the current master, which has reported that role itself.

        Raises :exc:`StoreUnavailable` with one sentence when no Sentinel answers or the master does not. Cancel-safe.
        """
        step_seconds = min(connect_timeout_seconds, self._step_seconds)
        errors: list[StoreUnavailable] = []
        # A copy, as the loop changes the order of the list.
        for sentinel in tuple(self._sentinels):
            try:
                address = await self._ask_sentinel(sentinel, step_seconds)
            except StoreUnavailable as error:
                errors.append(error)
                # Asked last at the next connection, so that it costs its timeout only once.
                self._sentinels.remove(sentinel)
                self._sentinels.append(sentinel)
            else:
                # If the master fails, no other Sentinel is asked: the supervisor retries as a whole.
                return await self._connect_master(address, step_seconds)
        raise join_failures("no Sentinel knows the master: ", errors)

    async def _ask_sentinel(self, sentinel: RedisAddress, step_seconds: float) -> RedisAddress:
        connection = await connect(sentinel, step_seconds, step_seconds)
        try:
            with trio.fail_after(step_seconds):
                reply = await ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
        except ASK_ERRORS as error:
            raise StoreUnavailable(f"the Sentinel at {sentinel.display_name} gave no answer") from error
        finally:
            await trio.aclose_forcefully(connection.stream)
        return self._read_master(sentinel, reply)

    def _read_master(self, sentinel: RedisAddress, reply: Any) -> RedisAddress:
        match reply:
            case [bytes(host), bytes(port)] if port.isdigit():
                return self._address.master.at(host.decode("utf-8", "replace"), int(port))
            case None:
                raise StoreRefused(f"the Sentinel at {sentinel.display_name} knows no service {self._address.service}")
        raise StoreUnavailable(f"the Sentinel at {sentinel.display_name} {describe_refusal(reply)}")

    async def _connect_master(self, address: RedisAddress, step_seconds: float) -> RedisConnection:
        connection = await connect(address, step_seconds, self._timeout_seconds)
        # During a failover a Sentinel may still name the old master, which is up and a replica by now, or a replica
        # that is not promoted yet. Sentinel's guidelines for clients ask to check the role for that reason.
        try:
            with trio.fail_after(step_seconds):
                role = connection.role or await _ask_role(connection)
        except BaseException as error:
            await trio.aclose_forcefully(connection.stream)
            if isinstance(error, ASK_ERRORS):
                raise StoreUnavailable(f"Redis at {address.display_name} gave no answer to ROLE") from error
            raise
        if role != "master":
            await trio.aclose_forcefully(connection.stream)
            raise StoreUnavailable(f"Redis at {address.display_name} is not the master (yet, or any more): {role}")
        return connection


async def _ask_role(connection: RedisConnection) -> str:
    """Ask a server without RESP3 for its role, which the others report in their reply to HELLO."""
    reply = await ask(connection, "ROLE")
    if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
        return reply[0].decode("ascii", "replace")
    return describe_refusal(reply)
