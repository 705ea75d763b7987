"""Settings of actors: which sources there are, and the short-term rate."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import BOOLEAN, HOUR, PATH, duration_ms, integer


@frozen
class ActorSettings:
    """The sources of actors, and the defaults of their limits."""

    allow_anonymous: bool = setting(
        "CODY_GATEWAY_ALLOW_ANONYMOUS",
        BOOLEAN,
        False,
        "Whether requests without a token are served.",
    )
    file: Path | None = setting(
        "CODY_GATEWAY_ACTORS_FILE",
        PATH,
        None,
        "A TOML file of actors and limits; `cgw token new` prints entries.",
    )
    concurrency_percentage: int = setting(
        "CODY_GATEWAY_ACTOR_CONCURRENCY_LIMIT_PERCENTAGE",
        integer(least=0, most=100),
        50,
        "The short-term rate of actors without one of their own: this share of the daily limit, at least 1.",
    )
    concurrency_interval_ms: int = setting(
        "CODY_GATEWAY_ACTOR_CONCURRENCY_LIMIT_INTERVAL",
        duration_ms(least=0.001, most=24 * HOUR),
        10_000,
        "The interval of the short-term rate.",
    )
