"""Loading the Lua scripts, and reading their answers. The header of each script is its reference."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from attrs import frozen

from cgw.limits.claims import Claim
from cgw.limits.states import LimitExceeded, LimitState
from cgw.redis.opening import LuaScript

# The layout of admit's answer: {admitted, now, threshold, then per limit: remaining, reset, more, wait}.
FIRST_LIMIT = 3
FIELDS_PER_LIMIT = 4
MORE_FIELD = 2
WAIT_FIELD = 3
PEEKED_PER_LIMIT = 3
"""The fields per limit of peek's answer, which begins with the time: remaining, reset, more."""


@frozen
class LimitScripts:
    """The scripts that a gateway runs."""

    admit: LuaScript
    settle: LuaScript
    renew: LuaScript
    peek: LuaScript

    def list_all(self) -> tuple[LuaScript, ...]:
        """Return all of them."""
        return (self.admit, self.settle, self.renew, self.peek)


def load_scripts() -> LimitScripts:
    """Load the scripts that a gateway runs from this package."""
    # In the order of the fields.
    return LimitScripts(*map(load_script, ("admit.lua", "settle.lua", "renew.lua", "peek.lua")))


def load_script(name: str) -> LuaScript:
    """Load one script: ``state.lua`` followed by its own file."""
    folder = files("cgw.limits") / "lua"
    return LuaScript.from_text("\n".join(folder.joinpath(part).read_text("utf-8") for part in ("state.lua", name)))


def read_states(claims: Sequence[Claim], answer: Sequence[int]) -> tuple[LimitState, ...]:
    """Return how the limits stand by an answer of ``admit``."""
    return tuple(
        build_state(claim, *answer[at : at + WAIT_FIELD])
        for claim, at in zip(claims, range(FIRST_LIMIT, len(answer), FIELDS_PER_LIMIT), strict=True)
    )


def build_state(claim: Claim, remaining: int, reset_ms: int, more_ms: int) -> LimitState:
    """Build one limit's state from the figures of ``admit`` or ``peek``."""
    if claim.kind == "lease":
        # A slot is held for as long as its request takes, which is unknown: no window, and no time to reset.
        return LimitState(claim.name, claim.limit, remaining, 0, 0, 0)
    return LimitState(claim.name, claim.limit, remaining, reset_ms, claim.period_ms, more_ms, claim.unit)


def build_exceeded(claims: Sequence[Claim], answer: Sequence[int]) -> LimitExceeded:
    """Build the error for a refusal by ``admit``; it is about the limit with the longest wait."""
    states = read_states(claims, answer)
    waits = answer[FIRST_LIMIT + WAIT_FIELD :: FIELDS_PER_LIMIT]
    # −1 means that waiting is pointless, which is longer than any time.
    worst = max(range(len(states)), key=lambda index: (waits[index] < 0, waits[index]))
    wait_ms = waits[worst] if waits[worst] >= 0 else None
    # answer[2] is set only if the quota refused, and is then the first refusal at that threshold (admit.lua).
    return LimitExceeded(states[worst], states, wait_ms, threshold=answer[2])
