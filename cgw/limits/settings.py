"""Settings of limits and of usage alerts."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import HOUR, THRESHOLDS, WEBHOOK_URL, Secret, choice, duration, integer
from cgw.model import MAX_IN_FLIGHT


@frozen
class LimitSettings:
    """The settings of the limiter, and of usage alerts."""

    max_in_flight: int | None = setting(
        "CODY_GATEWAY_ACTOR_MAX_IN_FLIGHT",
        integer(least=1, most=MAX_IN_FLIGHT),
        None,
        "How many requests of one actor and feature may be in flight at once, where the actor has no bound of its own.",
    )
    heartbeat_seconds: float = setting(
        "CODY_GATEWAY_IN_FLIGHT_HEARTBEAT",
        duration(least=0.1, most=HOUR),
        10.0,
        "How often requests in flight are confirmed; those of a crashed gateway stop counting after three of these.",
    )
    when_redis_down: str = setting(
        "CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN",
        choice("local", "open", "closed"),
        "local",
        "While Redis is away: local counts in this process, open admits all requests, closed refuses all with 503.",
    )
    free_per_minute: int = setting(
        "CODY_GATEWAY_FREE_REQUESTS_PER_MINUTE",
        integer(least=1, most=1_000_000),
        600,
        "How many requests that cost nothing upstream (lists of models, counted tokens) an actor may make per minute.",
    )
    slack_webhook_url: Secret | None = setting(
        "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL",
        WEBHOOK_URL,
        None,
        "The Slack webhook that usage alerts are posted to; without it, they are written to the log.",
        other_names=("SLACK_WEBHOOK_URL",),
    )
    notify_thresholds: tuple[int, ...] = setting(
        "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_THRESHOLDS",
        THRESHOLDS,
        (90, 95, 100),
        "The percentages of a quota to alert at (static actors, product subscriptions), once per interval; or off.",
    )
