"""The Lua of this room, and what its answers say. The files' own headers are their reference."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from attrs import frozen

from cgw.limits.claims import Claim
from cgw.limits.states import LimitExceeded, LimitState
from cgw.redis.opening import LuaScript

FIELDS_PER_LIMIT = 4
"""What ``admit`` says of each limit: remaining, reset, more, wait."""
FIRST_LIMIT = 3
"""Where that begins in its answer: after whether it admitted, the time, and a threshold."""
PEEKED_PER_LIMIT = 3


@frozen
class LimitScripts:
    """The Lua of this room."""

    admit: LuaScript
    settle: LuaScript
    renew: LuaScript
    peek: LuaScript


def load_scripts() -> LimitScripts:
    """The scripts as shipped in this package."""
    return LimitScripts(*map(load_script, ("admit.lua", "settle.lua", "renew.lua", "peek.lua")))


def load_script(name: str) -> LuaScript:
    """One script of this room: ``state.lua`` followed by its own file."""
    room = files("cgw.limits") / "lua"
    return LuaScript.from_text("\n".join(room.joinpath(part).read_text("utf-8") for part in ("state.lua", name)))


def read_states(claims: Sequence[Claim], answer: Sequence[int]) -> tuple[LimitState, ...]:
    """How the limits stand, from ``admit``'s answer."""
    return tuple(
        build_state(claim, *answer[at : at + 3])
        for claim, at in zip(claims, range(FIRST_LIMIT, len(answer), FIELDS_PER_LIMIT), strict=True)
    )


def build_state(claim: Claim, remaining: int, reset_ms: int, more_ms: int) -> LimitState:
    """One limit's state. A lease is held for as long as the request is under way: it has no window, nor an end."""
    if claim.kind == "lease":
        return LimitState(claim.name, claim.limit, remaining, 0, 0, 0)
    return LimitState(claim.name, claim.limit, remaining, reset_ms, claim.period_ms, more_ms, claim.unit)


def build_exceeded(claims: Sequence[Claim], answer: Sequence[int]) -> LimitExceeded:
    """The refusal in ``admit``'s answer: the limit to wait for longest speaks, −1 (for ever) before any time."""
    states = read_states(claims, answer)
    waits = answer[FIRST_LIMIT + 3 :: FIELDS_PER_LIMIT]
    worst = max(range(len(states)), key=lambda index: (waits[index] < 0, waits[index]))
    wait_ms = waits[worst] if waits[worst] >= 0 else None
    return LimitExceeded(states[worst], states, wait_ms, threshold=answer[2])
