"""The records that all packages share: actors, features, limits, usage and usage events.

Frozen and without I/O. Names follow the glossary in ``docs/design.md``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from attrs import field, frozen

from cgw.event_ids import build_event_id


class Feature(enum.StrEnum):
    """The unit that limits apply to; the value of the ``X-Sourcegraph-Feature`` header."""

    # In the reference's order (its §12), which `/v1/limits` and the messages of an actors file follow.
    CODE_COMPLETIONS = "code_completions"
    CHAT_COMPLETIONS = "chat_completions"
    EMBEDDINGS = "embeddings"


class LimitUnit(enum.StrEnum):
    """The unit of a quota."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    """Tokens in and out: an estimate is reserved, and the real usage is settled afterwards."""


ANY_MODEL = "*"
"""An entry of allowed models that means the gateway's whole list, if it is the only entry."""


@frozen
class RateLimit:
    """The limits of one actor for one feature.

    ``limit`` of ``unit`` per ``interval_ms`` (the quota), ``concurrent_requests`` requests per
    ``concurrent_interval_ms`` (the short-term rate), and ``max_in_flight`` requests at once (``None``: the gateway's
    default). ``allowed_models`` holds ``provider/model`` names, or is exactly ``("*",)``.
    """

    limit: int
    interval_ms: int
    allowed_models: tuple[str, ...]
    concurrent_requests: int
    concurrent_interval_ms: int
    unit: LimitUnit = LimitUnit.REQUESTS
    max_in_flight: int | None = None


MAX_IN_FLIGHT = 1_000_000
"""The largest bound on requests in flight: each one is an entry of a sorted set in Redis."""

MAX_TOKEN_MS = 2**51
"""The largest ``limit × interval_ms`` whose bucket stays exact in Redis's numbers (doubles, exact to 2**53)."""


def rate_limit_problems(
    limit: int,
    interval_ms: int,
    concurrent_requests: int,
    concurrent_interval_ms: int,
    max_in_flight: int | None = None,
) -> list[str]:
    """Return a sentence for each number of a rate limit that cannot be enforced; an empty list if all can.

    Buckets count in requests (or tokens) × milliseconds. A bucket holds up to twice its size (an overdraft) and is
    compared after one more claim; so ``limit × interval_ms`` must be at most :data:`MAX_TOKEN_MS`, a quarter of the
    largest exact number.
    """
    return [
        *_bucket_problems("limit", limit, "interval", interval_ms),
        *_bucket_problems(
            "concurrent_requests", concurrent_requests, "concurrent_requests_interval", concurrent_interval_ms
        ),
        *_in_flight_problems(max_in_flight),
    ]


def _in_flight_problems(max_in_flight: int | None) -> list[str]:
    if max_in_flight is None or 1 <= max_in_flight <= MAX_IN_FLIGHT:
        return []
    return [f"max_in_flight must be from 1 to {MAX_IN_FLIGHT}, not {max_in_flight}"]


def _bucket_problems(size_name: str, size: int, interval_name: str, interval_ms: int) -> list[str]:
    problems = []
    if size <= 0:
        problems.append(f"{size_name} must be at least 1, not {size}")
    if interval_ms <= 0:
        problems.append(f"{interval_name} must be at least 1 ms, not {interval_ms} ms")
    # Only for positive numbers: the interval is a divisor below.
    if not problems and size * interval_ms > MAX_TOKEN_MS:
        largest = MAX_TOKEN_MS // interval_ms
        problems.append(
            f"{size_name} {size} is too large to be counted exactly over {interval_name} {interval_ms} ms "
            + (f"(at most {largest})" if largest else "(the interval is too long for any limit)")
        )
    return problems


@frozen
class SourcePolicy:
    """The rules by which limits and usage alerts treat the actors of one source. The default is neutral.

    ``is_cut_off_at_one``: a limit of 1 means "no access"; otherwise 1 means 1. ``has_usage_alerts``: alerts are sent
    when a quota is used up to a threshold. ``admin_path`` is the path of an actor's page for Sourcegraph.com's
    administrators, with ``{id}`` where the percent-encoded actor id stands; ``None`` if there is no such page.
    """

    is_cut_off_at_one: bool = False
    has_usage_alerts: bool = False
    admin_path: str | None = None


NEUTRAL_POLICY = SourcePolicy()


@frozen
class Actor:
    """The owner of requests. ``id`` names the pool that limits count on; it is not a secret. The token is not kept.

    ``source`` is the name of the source that the actor is from, ``policy`` is that source's. ``is_stale``: the source
    could not be asked lately, so that this is what it said before.
    """

    id: str
    name: str
    source: str
    access_enabled: bool
    rate_limits: Mapping[Feature, RateLimit] = field(factory=dict)
    endpoint_access: Mapping[str, bool] = field(factory=dict)
    last_updated: datetime | None = None
    policy: SourcePolicy = NEUTRAL_POLICY
    is_stale: bool = False

    @property
    def display_name(self) -> str:
        """The name for people, or the id if no name is known."""
        return self.name.strip() or self.id


class UsageQuality(enum.StrEnum):
    """The reliability of a usage figure."""

    EXACT = "exact"
    """The provider's own final figures."""
    PARTIAL = "partial"
    """The response was incomplete, or could be read only in part: figures may be missing or too small."""
    ESTIMATED = "estimated"
    """The provider sent no figures."""


# A Struct, because each exchange makes one: 0.1 µs, a frozen attrs class takes 0.55.
class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens and characters of one completion, in and out; ``None`` where unknown.

    The completion's characters are those of its text, its thinking and its calls of tools. ``cache_read_token_count``
    and ``cache_write_token_count`` are the prompt's tokens that were read from, and written to, the provider's cache.
    ``prompt_quota_token_count`` is what the prompt counts on quotas in tokens, where that is another number than
    ``prompt_token_count``: each provider has a rule for its cache. ``reasoning_token_count`` is the part of
    ``completion_token_count`` that is the model's thinking, where the provider tells it.
    """

    prompt_token_count: int | None = None
    completion_token_count: int | None = None
    prompt_character_count: int | None = None
    completion_character_count: int | None = None
    quality: UsageQuality = UsageQuality.ESTIMATED
    cache_read_token_count: int | None = None
    cache_write_token_count: int | None = None
    prompt_quota_token_count: int | None = None
    reasoning_token_count: int | None = None


class BodyWindow(msgspec.Struct, frozen=True, gc=False):
    """The first and last bytes of a relayed response body, and its size.

    ``head`` and ``tail`` never overlap; together they are the whole body exactly if ``is_whole``. ``total_bytes``
    is the body's size without its transfer coding. ``is_complete`` is true if the upstream ended the body properly.
    """

    head: bytes
    tail: bytes
    total_bytes: int
    is_complete: bool

    @property
    def is_whole(self) -> bool:
        """True if nothing between ``head`` and ``tail`` was dropped."""
        return len(self.head) + len(self.tail) == self.total_bytes


class EventName(enum.StrEnum):
    """The kinds of usage event, named as in the events table."""

    # Names of the reference (§13.2), which queries of existing events tables rely on.
    COMPLETIONS_FINISHED = "CompletionsFinished"
    EMBEDDINGS_FINISHED = "EmbeddingsFinished"
    RATE_LIMITED = "RateLimited"
    REQUEST_BLOCKED = "RequestBlocked"
    UNAUTHORIZED = "Unauthorized"
    ACCESS_DENIED = "AccessDenied"


class EventOutcome(enum.StrEnum):
    """The end of an exchange as its usage event tells it."""

    COMPLETED = "completed"
    """The upstream's whole response came, whatever its status."""
    CLIENT_GONE = "client_gone"
    """The client left before that."""
    UPSTREAM_BROKEN = "upstream_broken"
    """The upstream could not be reached, or broke its response off."""
    TIMED_OUT = "timed_out"
    """The upstream was too slow."""
    REFUSED = "refused"
    """cgw answered instead, after the request was admitted: the upstream is overloaded, or limits cgw's rate."""
    SHUTDOWN = "shutdown"
    """cgw ended under it."""
    INTERNAL_ERROR = "internal_error"
    """A bug in cgw."""


# A Struct, because each exchange makes one: 0.3 µs less than an attrs class.
class UsageEvent(msgspec.Struct, frozen=True, gc=False):
    """One usage fact. Sinks deduplicate by ``id``, as an event may be shipped twice.

    ``metadata`` holds JSON values under the reference's keys (of a Struct, all that are not ``None``); ``created_at``
    is in UTC. Ids sort by time.
    """

    name: EventName
    source: str
    identifier: str
    metadata: Mapping[str, Any] | msgspec.Struct = msgspec.field(default_factory=dict)
    # Chosen when the event is made: one that is written or shipped twice keeps its id.
    id: str = msgspec.field(default_factory=build_event_id)
    created_at: datetime = msgspec.field(default_factory=partial(datetime.now, UTC))
