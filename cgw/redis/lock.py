"""A lock that one of many processes holds, with a fencing token that tells its holders apart.

A lock that expires cannot keep its holder from going on: a process that was paused (by the kernel, by its host) wakes
up after the lock has passed to another, and does not know. So each holder has a token that is larger than all before.
Whoever works under the lock presents it with every write, and the scripts that write refuse a token that is smaller
than one that they have seen::

    free ──take──► held, extended every third of its expiry ──the block ends──► free
                     │ not extended in time, or seized by another owner
                     └──► lost: the block is cancelled
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Literal

import trio
from attrs import define, frozen
from redis.exceptions import ResponseError

from cgw.errors import CgwError, StoreUnavailable
from cgw.lifetime import open_background_task
from cgw.redis.lua import LuaScript, ScriptCall
from cgw.redis.store import Store

RELEASE_SECONDS = 2.0
"""The deadline of giving the lock back; without it, the lock expires by itself."""

_LONGEST_WAIT_AFTER_FAILURE_SECONDS = 1.0

logger = logging.getLogger("cgw.redis")

_Verb = Literal["take", "seize", "keep", "free"]


class LockLost(CgwError):
    """The lock expired, or another owner has taken it: what its holder wanted to do is another's job now."""


@frozen
class Held:
    """The lock is another owner's, for ``seconds_left`` at least unless it is freed; 0 if that is unknown."""

    seconds_left: float


@define(eq=False)
class Lease:
    """The time in which a lock is held. ``token`` is larger than that of every earlier holder."""

    token: int
    owner: str
    valid_until: float
    """When the lock expires unless it is extended, by Trio's clock: before it does by the server's, never later."""


class RedisLock:
    """The lock ``name``. ``expiry_seconds`` after its holder has gone silent, another owner may take it."""

    def __init__(self, store: Store, name: str, *, expiry_seconds: float) -> None:
        self.name = name
        self._store = store
        self._expiry_seconds = expiry_seconds
        self._keys = (f"cgw:{{lock:{name}}}:holder", f"cgw:{{lock:{name}}}:token")
        self._script = LuaScript.from_text((files("cgw.redis") / "scripts" / "lock.lua").read_text("utf-8"))

    @asynccontextmanager
    async def open_lease(self, *, is_seized: bool = False) -> AsyncIterator[Lease | Held]:
        """Try once to take the lock; hold it for the length of the block, or yield who else has it.

        ``is_seized``: take it from another owner, too. When the lock is lost, the block is cancelled, and
        :exc:`LockLost` raised. At the end it is given back, within :data:`RELEASE_SECONDS`, also when the block is
        cancelled. Raises :exc:`~cgw.errors.StoreUnavailable` when it cannot be taken now.
        """
        # A new owner for each lease: a process that lost the lock must not take its old lease for the new one.
        owner, asked_at = secrets.token_hex(12), trio.current_time()
        token, left_ms = await self._call("seize" if is_seized else "take", owner)
        if not token:
            yield Held(max(0, left_ms) / 1000)
            return
        lease = Lease(token, owner, asked_at + self._expiry_seconds)
        try:
            with trio.CancelScope() as lost_scope:
                async with open_background_task(partial(self._extend, lease, lost_scope)):
                    yield lease
        finally:
            # Shielded: the service is stopping, perhaps, and without this the next holder has to wait.
            with trio.move_on_after(RELEASE_SECONDS, shield=True):
                await self._free(lease)
        if lost_scope.cancelled_caught:
            raise LockLost(f"the lock {self.name} was lost: it expired, or another owner has taken it")

    async def _extend(self, lease: Lease, lost_scope: trio.CancelScope) -> None:
        """Extend ``lease`` until cancelled; cancel ``lost_scope`` when that is no longer possible."""
        pause_seconds = self._expiry_seconds / 3
        while (now := trio.current_time()) < lease.valid_until:
            await trio.sleep(min(pause_seconds, lease.valid_until - now))
            # Before the call, because the server counts from some time after it.
            asked_at = trio.current_time()
            try:
                token, _ = await self._call("keep", lease.owner)
            except StoreUnavailable as error:
                # Redis may be back before the lock expires; sooner than at the next regular turn.
                pause_seconds = min(self._expiry_seconds / 10, _LONGEST_WAIT_AFTER_FAILURE_SECONDS)
                logger.debug("the lock %s could not be extended: %s", self.name, error)
                continue
            if token != lease.token:
                break
            lease.valid_until, pause_seconds = asked_at + self._expiry_seconds, self._expiry_seconds / 3
        lost_scope.cancel()

    async def _free(self, lease: Lease) -> None:
        try:
            await self._call("free", lease.owner)
        except StoreUnavailable as error:
            logger.debug("the lock %s could not be given back, so it has to expire: %s", self.name, error)

    async def _call(self, verb: _Verb, owner: str) -> tuple[int, int]:
        expiry_ms = round(self._expiry_seconds * 1000)
        # If the reply is lost, nobody would know that the lock is taken.
        undo = ScriptCall(self._script, self._keys, ("free", owner, 0)) if verb in ("take", "seize") else None
        try:
            token, left_ms = await self._store.run_script(self._script, self._keys, (verb, owner, expiry_ms), undo=undo)
        except ResponseError as error:
            raise StoreUnavailable(f"the lock {self.name} can't be used: {error}") from error
        return token, left_ms
