"""The records of one source's actors in Redis, which all replicas share.

Keys share one hash tag per source, so that each call is one script in one slot::

    cgw:{actors:<source>}:token:<SHA-256 of the token>   → {"v": …, "at": ms, "id": …}, or a mark: {"v": …, "at": ms}
    cgw:{actors:<source>}:actor:<id>                     → the actor, as its source last told it
    cgw:{actors:<source>}:index                          → sorted set: when each token was written (synced sources)
    cgw:{actors:<source>}:fence                          → the greatest fencing token that has written

A mark stands for a token that a sync has removed, or that its source has denied. It lives as long as records do, so
that what some replica remembers of the token is not used again when the source is down.

So the limits of an actor are the same for all its tokens, however it was fetched last (the reference's §2.5).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.resources import files
from typing import Any

import msgspec
from attrs import frozen
from redis.exceptions import ResponseError

from cgw.actors.fetched.fetched_actor import FetchedActor, UnixMs
from cgw.actors.source import FenceLost
from cgw.errors import StoreUnavailable
from cgw.redis.lua import LuaScript
from cgw.redis.opening import Store

FORMAT = 1
"""The version of the records: those of another one are read as missing, and replaced."""

REMOVED_MS = 60 * 1000
"""How long a removed token is denied without asking the source, which is asked only after that."""

REMOVED_PER_CALL = 500
"""Tokens that one call looks at, so that Redis serves others in between."""

_FENCED = b"fenced"


class _TokenRecord(msgspec.Struct, frozen=True):
    v: int
    at: UnixMs
    id: str = ""


class _ActorRecord(msgspec.Struct, frozen=True):
    v: int
    actor: FetchedActor


_TOKEN_DECODER = msgspec.json.Decoder(_TokenRecord)
_ACTOR_DECODER = msgspec.json.Decoder(_ActorRecord)


@frozen
class KeptActor:
    """An actor to keep, with the hashes of its tokens. Without ``actor``, its tokens' records stay as they are.

    That is for a token whose actor could not be read: it is listed, so it is not removed.
    """

    actor: FetchedActor | None
    token_hashes: Sequence[str]


@frozen
class FoundActor:
    """A token's actor as Redis has it; ``checked_at_ms`` is when the token was last found valid (Unix time)."""

    actor: FetchedActor
    checked_at_ms: int


class TokenRemoved(Exception):
    """The token has a mark. ``is_recent``: within :data:`REMOVED_MS` a sync found that it is no longer listed."""

    def __init__(self, *, is_recent: bool) -> None:
        super().__init__()
        self.is_recent = is_recent


class RedisRecords:
    """The records of one source. All methods raise :exc:`~cgw.errors.StoreUnavailable`, and make one call."""

    def __init__(self, store: Store, source: str, *, ttl_seconds: float, is_indexed: bool) -> None:
        self._store = store
        prefix = f"cgw:{{actors:{source}}}:"
        self._token_prefix, self._actor_prefix = f"{prefix}token:", f"{prefix}actor:"
        self._fence_key, self._index_key = f"{prefix}fence", f"{prefix}index"
        self._ttl_ms = max(1, round(ttl_seconds * 1000))
        self._is_indexed = is_indexed
        self._find, self._keep = _load("find_actor"), _load("keep_actors")
        self._begin, self._remove = _load("begin_sync"), _load("remove_unseen")

    async def find(self, token_hash: str) -> FoundActor | None:
        """Return the actor of a token; ``None`` if there is no record, or none that can be read.

        Raises :exc:`TokenRemoved` for a token with a mark.
        """
        keys = [self._token_prefix + token_hash]
        try:
            token, actor = await self._store.run_script(self._find, keys, [self._actor_prefix])
        except ResponseError as error:
            raise StoreUnavailable(f"Redis cannot look for an actor: {error}") from None
        record = _decode_token(token)
        if record is None:
            return None
        if not record.id:
            raise TokenRemoved(is_recent=abs(time.time() * 1000 - record.at) < REMOVED_MS)
        found = _decode_actor(actor)
        return None if found is None or found.id != record.id else FoundActor(found, record.at)

    async def keep(self, kept: Sequence[KeptActor], *, fence: int = 0) -> Sequence[FetchedActor | None]:
        """Write actors and their tokens; return the earlier records of these actors, ``None`` where there was none.

        Raises :exc:`~cgw.actors.source.FenceLost`, with nothing written, if a newer ``fence`` has been here.
        """
        arguments: list[str | int | bytes] = [fence, self._ttl_ms, int(self._is_indexed)]
        arguments += (self._token_prefix, self._actor_prefix)
        for entry in kept:
            actor = entry.actor
            hashes = "".join(entry.token_hashes)
            if actor is None:
                arguments += ("", "", "", hashes)
                continue
            token_record = _TokenRecord(FORMAT, actor.fetched_at_ms, actor.id)
            arguments += (
                actor.id,
                msgspec.json.encode(_ActorRecord(FORMAT, actor)),
                msgspec.json.encode(token_record),
                hashes,
            )
        answer = await self._run(self._keep, [self._fence_key, self._index_key], arguments)
        return [_decode_actor(record) for record in answer]

    async def forget(self, token_hash: str) -> None:
        """Replace the record of a token, if there is one, by a mark."""
        mark = msgspec.json.encode(_TokenRecord(FORMAT, 0))
        await self._store.execute_command("SET", self._token_prefix + token_hash, mark, "XX", "PX", self._ttl_ms)

    async def begin_sync(self, fence: int) -> int:
        """Raise the fence; return the server's time in µs. Raises :exc:`~cgw.actors.source.FenceLost`."""
        answer = await self._run(self._begin, [self._fence_key], [fence])
        return int(answer)

    async def count_tokens(self) -> int:
        """Return how many tokens have been written lately, by syncs or fetches."""
        return int(await self._store.execute_command("ZCARD", self._index_key))

    async def remove_unseen(self, fence: int, began_us: int) -> int:
        """Remove the tokens that were not written since ``began_us``; return their number.

        Several calls. Raises :exc:`~cgw.actors.source.FenceLost`.
        """
        mark = msgspec.json.encode(_TokenRecord(FORMAT, began_us // 1000))
        arguments: Sequence[str | int | bytes] = [
            fence,
            began_us,
            self._token_prefix,
            mark,
            self._ttl_ms,
            REMOVED_PER_CALL,
        ]
        total = 0
        while True:
            looked_at, removed = await self._run(self._remove, [self._fence_key, self._index_key], arguments)
            total += int(removed)
            if looked_at < REMOVED_PER_CALL:
                return total

    async def scan_actors(self) -> AsyncGenerator[Sequence[FetchedActor], None]:
        """Yield the actors that are kept, page by page, each with a call; some may come twice. For operators."""
        async with aclosing(self._store.scan(f"{self._actor_prefix}*")) as pages:
            async for keys in pages:
                if keys:
                    # All of one source's keys share a slot. A key of another type is None here, as a missing one.
                    records = await self._store.execute_command("MGET", *keys)
                    yield [actor for record in records if (actor := _decode_actor(record)) is not None]

    async def _run(self, script: LuaScript, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        try:
            answer = await self._store.run_script(script, keys, arguments)
        except ResponseError as error:
            # An index or a fence of another type: someone else's key. Nothing of the error is a token.
            raise StoreUnavailable(f"Redis cannot keep actors: {error}") from None
        if answer == _FENCED:
            raise FenceLost("another replica syncs the actors by now: nothing more was written")
        return answer


def _decode_token(data: bytes | None) -> _TokenRecord | None:
    try:
        record = _TOKEN_DECODER.decode(data or b"")
    except (msgspec.DecodeError, ValueError):
        return None
    return record if record.v == FORMAT else None


def _decode_actor(data: bytes | None) -> FetchedActor | None:
    try:
        record = _ACTOR_DECODER.decode(data or b"")
    except (msgspec.DecodeError, ValueError):
        return None
    return record.actor if record.v == FORMAT else None


def _load(name: str) -> LuaScript:
    return LuaScript.from_text(files(__package__).joinpath(f"lua/{name}.lua").read_text("utf-8"))
