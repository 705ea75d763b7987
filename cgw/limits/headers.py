"""The header fields and refusals that inform clients about their limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from cgw.errors import Headers, Refusal
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
        return f'{text};qu="concurrent-requests"'
    unit = "" if state.unit is LimitUnit.REQUESTS else f';qu="{state.unit}"'
    return f"{text}{unit};w={_clip(_whole_seconds(state.window_ms))}"


def _build_limit(state: LimitState) -> str:
    text = f'"{state.name}";r={_clip(state.remaining)}'
    return text if state.name == "in_flight" else f"{text};t={_clip(_whole_seconds(state.more_ms))}"


def _clip(value: int) -> int:
    # An integer of a structured field has at most 15 digits (RFC 9651 §3.3.1); limits may have more.
    return min(value, _LARGEST_STRUCTURED_INTEGER)


def _whole_seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)  # rounded up: a client that comes back a moment too early is refused again


def _format_http_date(moment: datetime) -> str:
    """Format an IMF-fixdate, e.g. ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110 §5.6.7), rounded up to the second."""
    whole = moment.astimezone(UTC)
    if whole.microsecond:
        whole = whole.replace(microsecond=0) + timedelta(seconds=1)
    return format_datetime(whole, usegmt=True)
