"""The header fields and refusals that inform clients about their limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count

from cgw.errors import Headers, Refusal
from cgw.limits.claims import Claim
from cgw.limits.scripts import FIELDS_PER_LIMIT, FIRST_LIMIT, MORE_FIELD, build_state
from cgw.limits.states import LimitExceeded, LimitState
from cgw.model import Feature, LimitUnit

LONGEST_WORTHWHILE_WAIT_MS = 120_000
"""Above this, clients are told not to retry by themselves: an SDK would hold its caller up for minutes."""

_LARGEST_STRUCTURED_INTEGER = 10**15 - 1


def build_limit_headers(states: Sequence[LimitState]) -> Headers:
    """Build the rate-limit fields of a response to an admitted request: none without ``states``.

    ``x-ratelimit-*`` are about the quota. ``ratelimit-policy`` and ``ratelimit`` list the actor's limits as in
    draft-ietf-httpapi-ratelimit-headers-10: ``q`` requests (or the unit ``qu``) per ``w`` seconds; ``r`` remaining,
    and more of them in ``t`` seconds. The limits of a provider are left out: they are not the client's.
    """
    quota = next((state for state in states if state.name == "quota"), None)
    return _build_fields(states, quota)


class LimitHeaderTemplate:
    """The rate-limit fields of admissions of the same claims: :func:`build_limit_headers`, built once but for numbers.

    For an actor's claims, the quota first.
    """

    __slots__ = ("_first", "_format", "_numbers", "_policy")

    def __init__(self, claims: Sequence[Claim]) -> None:
        # Any figures will do: neither the limits nor the policies depend on them.
        states = [build_state(claim, claim.limit, 0, 0) for claim in claims]
        self._first, _, self._policy, _ = build_limit_headers(states)
        formats: list[bytes] = []
        # Positions in admit's answer, and whether the number there is a time.
        self._numbers: list[tuple[int, bool]] = []
        for at, state in zip(count(FIRST_LIMIT, FIELDS_PER_LIMIT), states, strict=False):
            if state.name == "provider":
                continue
            has_time = state.name != "in_flight"
            formats.append(b'"%b";r=%%d' % state.name.encode("ascii") + (b";t=%d" if has_time else b""))
            self._numbers.append((at, False))
            if has_time:
                self._numbers.append((at + MORE_FIELD, True))
        self._format = b", ".join(formats)

    @staticmethod
    def is_possible(claims: Sequence[Claim]) -> bool:
        """Return whether no number has to be clipped (:func:`_clip`) and the quota comes first."""
        return claims[0].name == "quota" and all(claim.limit <= _LARGEST_STRUCTURED_INTEGER for claim in claims)

    def fill(self, answer: Sequence[int]) -> Headers:
        """Build the fields from an answer of ``admit``."""
        numbers = [-(-answer[at] // 1000) if is_time else answer[at] for at, is_time in self._numbers]
        return [
            self._first,
            (b"x-ratelimit-remaining", b"%d" % numbers[0]),
            self._policy,
            (b"ratelimit", self._format % (*numbers,)),
        ]


def build_limit_refusal(exceeded: LimitExceeded, feature: Feature, now: datetime) -> Refusal:
    """Build the response to a request over its limit: 429 with the limit, its size and when to retry.

    ``now`` is an aware time. ``retry-after`` is an HTTP date (as in the reference, RFC 9110 §10.2.3), rounded up;
    ``retry-after-ms`` has the exact time. An actor that is cut off gets the reference's 403.
    """
    # x-ratelimit-* are then about the limit that refused, and not always the quota.
    fields = list(_build_fields(exceeded.states, exceeded.refused))
    if exceeded.is_cut_off:
        return Refusal(
            403,
            "completions access has not been granted",
            code="access_not_granted",
            headers=[*fields, (b"x-should-retry", b"false")],
        )
    message = _describe(exceeded, feature)
    wait_ms = exceeded.retry_after_ms
    if wait_ms is not None:
        retry_at = _format_http_date(now + timedelta(milliseconds=wait_ms))
        message += f" Retry after {retry_at}"
        fields += [(b"retry-after", retry_at.encode("ascii")), (b"retry-after-ms", b"%d" % wait_ms)]
    # The SDKs of Anthropic and OpenAI obey this field; without it they retry every 429 by themselves. They also prefer
    # `retry-after-ms` to `retry-after`.
    if wait_ms is None or wait_ms > LONGEST_WORTHWHILE_WAIT_MS:
        fields.append((b"x-should-retry", b"false"))
    return Refusal(429, message, code="rate_limit_exceeded", headers=fields)


def _describe(exceeded: LimitExceeded, feature: Feature) -> str:
    where = "" if exceeded.cause in ("quota", "provider") else f' for "{feature}"'
    return f"you have exceeded the {exceeded.refused.description}{where}."


def _build_fields(states: Sequence[LimitState], shown: LimitState | None) -> Headers:
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


def _format_http_date(moment: datetime) -> str:
    """Format an IMF-fixdate, e.g. ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110 §5.6.7), rounded up to the second."""
    whole = moment.astimezone(UTC)
    # Rounded up as in _whole_seconds: a date before the wait is over would lead to a second refusal.
    if whole.microsecond:
        whole = whole.replace(microsecond=0) + timedelta(seconds=1)
    return format_datetime(whole, usegmt=True)
