"""Admitting and settling requests against the limits of their actor: one call to Redis each.

The counting happens in ``admit.lua`` and ``settle.lua``, atomically and by the server's clock; this module says
what is claimed, and under which keys.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import quote

from attrs import frozen
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.limits.states import LimitExceeded, LimitName, LimitState
from cgw.model import Actor, Feature, RateLimit
from cgw.transport.redis_links import Redis, Script, ScriptCall

RESERVATION_TTL_MS = 3_600_000
"""How long a reservation can be settled, in ms: longer than any exchange. What is never settled stays charged."""

CUT_OFF_SOURCES = frozenset({"dotcom-product-subscriptions", "dotcom-user"})
"""Sources whose abuse handling sets a limit of 1 to mean "cut off" (reference §5). Elsewhere 1 means 1."""

LimitKind = Literal["bucket", "window", "lease"]


@frozen
class Claim:
    """What one request asks of one limit: ``cost`` of ``limit`` per ``period_ms`` (of a lease: how long it is held)."""

    name: LimitName
    kind: LimitKind
    key: str
    limit: int
    period_ms: int
    cost: int = 1


@frozen
class Admission:
    """A request that was let through: what it reserved, to be settled once, and how its limits stand."""

    reservation_id: str
    keys: tuple[str, ...]
    claims: tuple[Claim, ...]
    states: tuple[LimitState, ...]


@frozen
class LimitScripts:
    """The Lua of this room."""

    admit: Script
    settle: Script
    peek: Script


def load_scripts() -> LimitScripts:
    """The scripts as shipped in this package. Each is ``state.lua`` followed by its own file."""
    room = files("cgw.limits")
    state = room.joinpath("state.lua").read_text("utf-8")

    def load(name: str) -> Script:
        return Script.from_text(f"{state}\n{room.joinpath(name).read_text('utf-8')}")

    return LimitScripts(load("admit.lua"), load("settle.lua"), load("peek.lua"))


def build_key_prefix(actor: Actor) -> str:
    """``cgw:{<source>:<actor id>}:``: one hash tag per actor, so that all limits of a call share a slot.

    Characters with a meaning in keys (``{``, ``}``, ``:``) and all unusual ones are percent-encoded.
    """
    return f"cgw:{{{quote(actor.source, safe='')}:{quote(actor.id, safe='')}}}:"


def build_claims(prefix: str, feature: Feature, rate_limit: RateLimit) -> tuple[Claim, ...]:
    """What one request of ``feature`` claims: a request of the quota and one of the short-term rate."""
    return (
        Claim("quota", "bucket", f"{prefix}{feature}:quota", rate_limit.limit, rate_limit.interval_ms),
        Claim(
            "concurrency",
            "bucket",
            f"{prefix}{feature}:rate",
            rate_limit.concurrent_requests,
            rate_limit.concurrent_interval_ms,
        ),
    )


class Limiter:
    """The limits of all actors, counted in one Redis that every replica shares."""

    def __init__(self, redis: Redis, *, scripts: LimitScripts | None = None) -> None:
        self._redis = redis
        self._scripts = scripts or load_scripts()

    async def admit(self, actor: Actor, feature: Feature, rate_limit: RateLimit) -> Admission:
        """Claim one request from the quota and the short-term rate of ``feature``, or from neither.

        Raises :exc:`LimitExceeded`, or :exc:`~cgw.errors.StoreUnavailable` when Redis gave no answer. Cancel-safe:
        a reservation whose answer nobody waits for any more is given back.
        """
        if rate_limit.limit <= 1 and actor.source in CUT_OFF_SOURCES:
            raise _build_cut_off(rate_limit)
        prefix = build_key_prefix(actor)
        return await self.admit_claims(f"{prefix}reservation:", build_claims(prefix, feature, rate_limit))

    async def admit_claims(self, record_prefix: str, claims: tuple[Claim, ...]) -> Admission:
        """Claim all of ``claims`` (their keys in one slot with ``record_prefix``), or nothing. As :meth:`admit`."""
        reservation_id = secrets.token_hex(12)
        keys = (record_prefix + reservation_id, *(claim.key for claim in claims))
        arguments: list[str | int] = [reservation_id, RESERVATION_TTL_MS]
        for claim in claims:
            arguments += (claim.kind, claim.limit, claim.period_ms, claim.cost)
        undo = self._build_settle(reservation_id, keys, claims, used=0)
        answer = await self._run(ScriptCall(self._scripts.admit, keys, arguments), undo)
        states = tuple(
            LimitState(claim.name, claim.limit, answer[at], answer[at + 1], claim.period_ms, answer[at + 2])
            for claim, at in zip(claims, range(2, len(answer), 4), strict=True)
        )
        if answer[0] != 1:
            raise _build_exceeded(states, answer[5::4])
        return Admission(reservation_id, keys, claims, states)

    async def settle(self, admission: Admission, *, is_charged: bool) -> None:
        """Charge what ``admission`` reserved, or give it back. Only answers with status 2xx are charged.

        The first call counts, further ones do nothing. Raises :exc:`~cgw.errors.StoreUnavailable`; the settlement
        is then sent once more as soon as Redis is back (best effort, kept in memory).
        """
        used = 1 if is_charged else 0
        call = self._build_settle(admission.reservation_id, admission.keys, admission.claims, used=used)
        try:
            await self._run(call)
        except StoreUnavailable:
            self._redis.send_later(call)
            raise

    async def peek(self, actor: Actor) -> Mapping[Feature, LimitState]:
        """How the quotas of ``actor`` stand, by feature, in the order code, chat, embeddings; consumes nothing.

        A feature without a limit is left out. Raises :exc:`~cgw.errors.StoreUnavailable`.
        """
        prefix = build_key_prefix(actor)
        claims = {
            feature: build_claims(prefix, feature, actor.rate_limits[feature])[0]
            for feature in Feature
            if feature in actor.rate_limits
        }
        if not claims:
            return {}
        arguments: list[str | int] = []
        for claim in claims.values():
            arguments += (claim.kind, claim.limit, claim.period_ms)
        keys = [claim.key for claim in claims.values()]
        answer = await self._run(ScriptCall(self._scripts.peek, keys, arguments))
        return {
            feature: LimitState(claim.name, claim.limit, answer[at], answer[at + 1], claim.period_ms, answer[at + 2])
            for (feature, claim), at in zip(claims.items(), range(1, len(answer), 3), strict=True)
        }

    def _build_settle(
        self, reservation_id: str, keys: tuple[str, ...], claims: Sequence[Claim], *, used: int
    ) -> ScriptCall:
        arguments: list[str | int] = [reservation_id]
        for claim in claims:
            arguments += (claim.kind, claim.limit, claim.period_ms, claim.cost, used * claim.cost)
        return ScriptCall(self._scripts.settle, keys, arguments)

    async def _run(self, call: ScriptCall, undo: ScriptCall | None = None) -> Any:
        try:
            return await self._redis.run_script(call.script, call.keys, call.args, undo=undo)
        except ResponseError as error:
            # Not an outage of the server, but of these limits: a key of another type under our name, say.
            raise StoreUnavailable(f"the store can't count this limit: {error}") from error


def _build_cut_off(rate_limit: RateLimit) -> LimitExceeded:
    state = LimitState("quota", rate_limit.limit, 0, rate_limit.interval_ms, rate_limit.interval_ms, 0)
    return LimitExceeded(state, [state], None, is_cut_off=True)


def _build_exceeded(states: Sequence[LimitState], waits: Sequence[int]) -> LimitExceeded:
    """The limit to wait for longest speaks for all: −1 (for ever) before any time."""
    worst = max(range(len(states)), key=lambda index: (waits[index] < 0, waits[index]))
    retry_after_ms = waits[worst] if waits[worst] >= 0 else None
    return LimitExceeded(states[worst], states, retry_after_ms)
