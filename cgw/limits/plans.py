"""What requests of one actor, feature and provider claim, worked out once, and what is remembered of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import trio
from attrs import define, field

from cgw.limits.claims import Claim, ClaimGroup
from cgw.limits.scripts import FIELDS_PER_LIMIT, FIRST_LIMIT
from cgw.limits.states import LimitExceeded
from cgw.model import LimitUnit, RateLimit

LONGEST_DENIAL_MS = 250
"""For how long a refusal is repeated without asking Redis again."""


@define(eq=False)
class Plan:
    """The claims of one kind of request. ``groups`` is one, or in a cluster one for each slot.

    A refusal is kept for a moment, so that an actor that hammers costs Redis four calls a second at most. Times are
    Trio's clock.
    """

    rate_limit: RateLimit
    groups: Sequence[ClaimGroup]
    _refusal: tuple[float, int, LimitExceeded] | None = field(default=None, init=False)
    _answer: tuple[float, Sequence[int]] | None = field(default=None, init=False)

    def price(self, tokens: int) -> Sequence[ClaimGroup]:
        """The groups of a request that reserves so many tokens, where tokens count."""
        if self.rate_limit.unit is LimitUnit.REQUESTS:
            return self.groups
        return [group.price(tokens) for group in self.groups]

    def check_recent_refusal(self, tokens: int) -> None:
        """Raise the refusal of a moment ago again, if it holds for this request too."""
        if self._refusal is None:
            return
        refused_at, refused_tokens, exceeded = self._refusal
        elapsed_ms = (trio.current_time() - refused_at) * 1000
        if elapsed_ms >= min(LONGEST_DENIAL_MS, exceeded.retry_after_ms or LONGEST_DENIAL_MS):
            self._refusal = None
        elif tokens >= refused_tokens or self.rate_limit.unit is LimitUnit.REQUESTS:
            raise exceeded.after(int(elapsed_ms))

    def note_refusal(self, exceeded: LimitExceeded, tokens: int) -> None:
        """Remember a refusal, if only time can lift it: places in flight may come free at any moment."""
        if exceeded.cause in ("quota", "concurrency"):
            self._refusal = trio.current_time(), tokens, exceeded

    def forget_refusal(self) -> None:
        """Something was given back: ask again."""
        self._refusal = None

    def note_answer(self, answer: Sequence[int]) -> None:
        """Remember how the first group's limits stood."""
        self._answer = trio.current_time(), answer

    def recall_debts(self) -> Iterator[tuple[Claim, int]]:
        """What is owed to each bucket of the first group by now, as far as Redis last said, in tokens × ms."""
        if self._answer is None:
            return
        answered_at, answer = self._answer
        elapsed_ms = int((trio.current_time() - answered_at) * 1000)
        for claim, at in zip(self.groups[0].claims, range(FIRST_LIMIT, len(answer), FIELDS_PER_LIMIT), strict=True):
            reset_ms = answer[at + 1] - elapsed_ms
            if claim.kind == "bucket" and reset_ms > 0:
                yield claim, reset_ms * claim.limit
