"""The header fields that inform clients about their limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cgw.errors import Headers
from cgw.limits.claims import Claim
from cgw.limits.scripts import FIELDS_PER_LIMIT, FIRST_LIMIT, MORE_FIELD, build_state
from cgw.limits.states import LimitState
from cgw.model import LimitUnit

_LARGEST_STRUCTURED_INTEGER = 10**15 - 1


def build_limit_headers(states: Sequence[LimitState]) -> Headers:
    """Build the rate-limit fields of a response to an admitted request: none without ``states``.

    ``x-ratelimit-*`` are about the quota. ``ratelimit-policy`` and ``ratelimit`` list the actor's limits as in
    draft-ietf-httpapi-ratelimit-headers-10: ``q`` requests (or the unit ``qu``) per ``w`` seconds; ``r`` remaining,
    and more of them in ``t`` seconds. The limits of a provider are left out: they are not the client's.
    """
    quota = next((state for state in states if state.name == "quota"), None)
    return build_fields(states, quota)


# The positions in admit's answer of what LimitHeaderTemplate shows, with the claims in the order of build_claims.
_QUOTA, _RATE, _SLOTS = range(FIRST_LIMIT, FIRST_LIMIT + 3 * FIELDS_PER_LIMIT, FIELDS_PER_LIMIT)
_QUOTA_MORE, _RATE_MORE = _QUOTA + MORE_FIELD, _RATE + MORE_FIELD


class LimitHeaderTemplate:
    """The rate-limit fields of admissions of the same claims: :func:`build_limit_headers`, built once but for numbers.

    For the claims of an actor's requests, which are a quota, a short-term rate, and slots if these are bounded.
    """

    __slots__ = ("_first", "_format", "_has_slots", "_policy")

    def __init__(self, claims: Sequence[Claim]) -> None:
        # Any figures will do: neither the limits nor the policies depend on them.
        states = [build_state(claim, claim.limit, 0, 0) for claim in claims]
        self._first, _, self._policy, _ = build_limit_headers(states)
        self._has_slots = len(claims) > 2 and claims[2].name == "in_flight"
        self._format = b'"quota";r=%d;t=%d, "concurrency";r=%d;t=%d' + (
            b', "in_flight";r=%d' if self._has_slots else b""
        )

    @staticmethod
    def is_possible(claims: Sequence[Claim]) -> bool:
        """Return whether these are an actor's claims, and no number has to be clipped (:func:`_clip`)."""
        return [claim.name for claim in claims[:2]] == ["quota", "concurrency"] and all(
            claim.limit <= _LARGEST_STRUCTURED_INTEGER for claim in claims
        )

    def fill(self, answer: Sequence[int]) -> Headers:
        """Build the fields from an answer of ``admit``."""
        remaining = answer[_QUOTA]
        # The times in whole seconds, rounded up as by _whole_seconds.
        numbers = remaining, -(-answer[_QUOTA_MORE] // 1000), answer[_RATE], -(-answer[_RATE_MORE] // 1000)
        if self._has_slots:
            numbers += (answer[_SLOTS],)  # type: ignore[assignment]
        return [
            self._first,
            (b"x-ratelimit-remaining", b"%d" % remaining),
            self._policy,
            (b"ratelimit", self._format % numbers),
        ]


def build_fields(states: Sequence[LimitState], shown: LimitState | None) -> Headers:
    """Build the same fields with ``x-ratelimit-*`` about the limit ``shown``."""
    fields: list[tuple[bytes, bytes]] = []
    if shown is not None:
        fields.append((b"x-ratelimit-limit", b"%d" % shown.limit))
        fields.append((b"x-ratelimit-remaining", b"%d" % shown.remaining))
    # A provider's limit is shared by all actors: how busy it is concerns no client.
    own = [state for state in states if state.name != "provider"]
    if own:
        policies, limits = map(_build_policy, own), map(_build_limit, own)
        fields.append((b"ratelimit-policy", ", ".join(policies).encode("ascii")))
        fields.append((b"ratelimit", ", ".join(limits).encode("ascii")))
    return fields


def _build_policy(state: LimitState) -> str:
    text = f'"{state.name}";q={_clip(state.limit)}'
    if state.name == "in_flight":
        # A quota unit that the draft defines. There is no `w`, because slots have no window.
        return f'{text};qu="concurrent-requests"'
    unit = "" if state.unit is LimitUnit.REQUESTS else f';qu="{state.unit}"'
    return f"{text}{unit};w={_clip(_whole_seconds(state.window_ms))}"


def _build_limit(state: LimitState) -> str:
    text = f'"{state.name}";r={_clip(state.remaining)}'
    # No `t` for slots: when one is freed is unknown.
    return text if state.name == "in_flight" else f"{text};t={_clip(_whole_seconds(state.more_ms))}"


def _clip(value: int) -> int:
    # An integer of a structured field has at most 15 digits (RFC 9651 §3.3.1); limits may have more.
    return min(value, _LARGEST_STRUCTURED_INTEGER)


def _whole_seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)  # rounded up: a client that comes back a moment too early is refused again
