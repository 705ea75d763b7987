"""The limits' Lua on a real server, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import redis
from attrs import frozen

from cgw.limits.claims import Claim, LimitKind
from cgw.limits.scripts import load_scripts
from cgw.redis.opening import LuaScript

START_MS = 1_800_000_000_000
CLOCK = "test:clock"
RECORD = "{t}:record:"
ALERT = "{t}:notice"


@frozen
class Limit:
    """One limit as the scripts take it."""

    key: str
    kind: str
    limit: int
    period: int


@frozen
class Answer:
    """The answer of ``admit`` for one limit, in ms."""

    remaining: int
    reset: int
    more: int
    wait: int


class LimitStore:
    """The shipped scripts, with two replacements: the clock is a key, and keys outlive pauses of a slow machine."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        scripts = load_scripts()
        shipped = (scripts.admit, scripts.settle, scripts.renew, scripts.peek)
        self._admit, self._settle, self._renew, self._peek = (
            client.register_script(with_test_clock(script)) for script in shipped
        )
        self.reset()

    def reset(self) -> None:
        """Empty the server, and set the clock to the start."""
        self.client.flushall()
        self.set_clock(START_MS)

    def set_clock(self, milliseconds: int) -> None:
        self.now = milliseconds
        self.client.delete(CLOCK)
        self.client.rpush(CLOCK, milliseconds // 1000, milliseconds % 1000 * 1000 + 999)

    def dump(self) -> dict[bytes, bytes | None]:
        """Return all keys with their values."""
        return {key: self.client.dump(key) for key in self.client.scan_iter()}

    def admit(self, rid: str, claims: Sequence[tuple[Limit, int]]) -> tuple[bool, list[Answer]]:
        return self.admit_with_alerts(rid, claims, "")[1:]

    def admit_with_alerts(
        self, rid: str, claims: Sequence[tuple[Limit, int]], thresholds: str
    ) -> tuple[int, bool, list[Answer]]:
        keys = [RECORD + rid, *(limit.key for limit, _ in claims), *([ALERT] if thresholds else [])]
        args: list[Any] = [rid, 3_600_000, thresholds]
        for limit, cost in claims:
            args += [limit.kind, limit.limit, limit.period, cost]
        reply = self._admit(keys, args)
        assert len(reply) == 3 + 4 * len(claims)
        return reply[2], reply[0] == 1, [Answer(*reply[at : at + 4]) for at in range(3, len(reply), 4)]

    def settle(self, rid: str, claims: Sequence[tuple[Limit, int, int]]) -> bool:
        return self.settle_with_alerts(rid, claims, "")[1]

    def settle_with_alerts(
        self, rid: str, claims: Sequence[tuple[Limit, int, int]], thresholds: str, mark_ms: int = 0
    ) -> tuple[int, bool]:
        keys = [RECORD + rid, *(limit.key for limit, _, _ in claims), *([ALERT] if thresholds else [])]
        args: list[Any] = [rid, mark_ms, thresholds]
        for limit, reserved, used in claims:
            args += [limit.kind, limit.limit, limit.period, reserved, used]
        is_settled, threshold = self._settle(keys, args)
        return threshold, is_settled == 1

    def renew(self, limit: Limit, rids: Sequence[str]) -> int:
        """Renew leases, and take those again that were lost; returns the number of the lost."""
        lost = self._renew([limit.key], [limit.period, "keep", *rids])
        if lost:
            assert self._renew([limit.key], [limit.period, "take", *lost]) == []
        return len(lost)

    def keep(self, limit: Limit, rids: Sequence[str]) -> list[bytes]:
        kept: list[bytes] = self._renew([limit.key], [limit.period, "keep", *rids])
        return kept

    def queue(self, pipeline: Any, rid: str, limit: Limit, *, reserved: int, used: int) -> None:
        """Add an admission and its settlement to a pipeline."""
        keys = [RECORD + rid, limit.key]
        claim: list[Any] = [limit.kind, limit.limit, limit.period, reserved]
        self._admit(keys, [rid, 3_600_000, "", *claim], client=pipeline)
        self._settle(keys, [rid, 0, "", *claim, used], client=pipeline)

    def peek(self, limits: Sequence[Limit]) -> list[tuple[int, int, int]]:
        args = [part for limit in limits for part in (limit.kind, limit.limit, limit.period)]
        reply = self._peek([limit.key for limit in limits], args)
        return [tuple(reply[at : at + 3]) for at in range(1, len(reply), 3)]


def with_test_clock(script: LuaScript) -> str:
    for old, new in (
        ("call('TIME')", f"call('LRANGE', '{CLOCK}', 0, 1)"),
        ("SLACK_MS = 1000", "SLACK_MS = 3600000"),
    ):
        assert script.text.count(old) == 1
        script = LuaScript.from_text(script.text.replace(old, new))
    return script.text


def as_claim(limit: Limit, cost: int) -> Claim:
    """Convert a limit and a cost to cgw's own type."""
    return Claim("quota", cast(LimitKind, limit.kind), limit.key, limit.limit, limit.period, cost)
