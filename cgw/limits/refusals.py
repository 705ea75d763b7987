"""Refusals of requests over a limit: what clients are told, and what events say. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from cgw.errors import Refusal
from cgw.limits.headers import build_fields
from cgw.limits.states import LimitCause, LimitExceeded, LimitState
from cgw.model import Feature

LONGEST_WORTHWHILE_WAIT_MS = 60_000
"""Above this, clients are told not to retry by themselves: an SDK would hold its caller up for minutes."""

SHORTEST_PATIENT_WAIT_MS = 5_000
"""Sourcegraph instances retry silently, up to 20 times, while ``retry-after`` is at most 3 s; the rest is for clocks
that differ."""

PATIENT_SHARE = 100
"""The part of a quota that must be back, on the reference's routes: one request more than none would be gone at once,
and the caller refused again."""

# The texts of the reference's errors in events; its clients' dashboards group by them, so they hold no number or date.
_EVENT_TEXTS: dict[LimitCause, str] = {
    "quota": "rate limit exceeded",
    "concurrency": '"{feature}": concurrency limit exceeded',
    "in_flight": '"{feature}": limit of requests in flight exceeded',
    "provider": "limit of requests in flight to the provider exceeded",
    "free": "rate of requests that cost nothing exceeded",
}
_CUT_OFF_TEXT = "completions access has not been granted"


def describe_for_events(exceeded: LimitExceeded, feature: Feature) -> str:
    """Return the ``error`` of a ``RateLimited`` event: one stable text for each cause and feature."""
    return _CUT_OFF_TEXT if exceeded.is_cut_off else _EVENT_TEXTS[exceeded.cause].format(feature=feature.value)


def choose_wait_ms(exceeded: LimitExceeded, *, is_patient: bool) -> int | None:
    """Return after how many milliseconds the client may come back; ``None`` when waiting is pointless.

    ``is_patient`` is for clients that retry silently after a short wait. A quota refills all the time, so the exact
    wait of a large one is a second or two: these clients would spend each refilled request on their own retries. They
    wait until :data:`PATIENT_SHARE` percent of the quota is back.
    """
    wait_ms = exceeded.retry_after_ms
    if wait_ms is None or not is_patient:
        return wait_ms
    quota = next((state for state in exceeded.states if state.name == "quota"), None)
    # Also where another limit refuses for longer: the retry after that would meet the used-up quota.
    if quota is None or not (exceeded.cause == "quota" or quota.remaining == 0):
        return wait_ms
    return max(wait_ms, _time_share(quota), SHORTEST_PATIENT_WAIT_MS)


def _time_share(quota: LimitState) -> int:
    """Return the milliseconds until a share of ``quota`` is back."""
    share = max(1, -(-quota.limit // PATIENT_SHARE))
    # When all of it is back, less the time that the rest takes to refill.
    return quota.reset_ms - (quota.limit - share) * quota.window_ms // quota.limit


def build_limit_refusal(exceeded: LimitExceeded, feature: Feature, now: datetime, *, is_patient: bool) -> Refusal:
    """Build the response to a request over its limit: 429 with the limit, its size and when to retry.

    ``now`` is an aware time; for ``is_patient`` see :func:`choose_wait_ms`. ``retry-after`` is an HTTP date (as in the
    reference, RFC 9110 §10.2.3), rounded up; ``retry-after-ms`` has the exact time. An actor that is cut off gets the
    reference's 403.
    """
    # x-ratelimit-* are then about the limit that refused, and not always the quota.
    fields = list(build_fields(exceeded.states, exceeded.refused))
    if exceeded.is_cut_off:
        return Refusal(403, _CUT_OFF_TEXT, code="access_not_granted", headers=[*fields, (b"x-should-retry", b"false")])
    message = _describe(exceeded, feature)
    wait_ms = choose_wait_ms(exceeded, is_patient=is_patient)
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
    # The slots of a provider, and what costs nothing, are for all features.
    where = "" if exceeded.cause in ("provider", "free") else f' for "{feature}"'
    return f"you have exceeded the {exceeded.refused.description}{where}."


def _format_http_date(moment: datetime) -> str:
    """Format an IMF-fixdate, e.g. ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110 §5.6.7), rounded up to the second."""
    whole = moment.astimezone(UTC)
    # A date before the wait is over would lead to a second refusal.
    if whole.microsecond:
        whole = whole.replace(microsecond=0) + timedelta(seconds=1)
    return format_datetime(whole, usegmt=True)
