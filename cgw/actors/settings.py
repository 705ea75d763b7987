"""Settings of actors: their sources, and the short-term rate. Names and defaults are the reference's."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import (
    API_URL,
    BOOLEAN,
    HOUR,
    MINUTE,
    PATH,
    SECRET,
    VISIBLE_TEXT,
    Secret,
    duration,
    duration_ms,
    integer,
)

DAY = 24 * HOUR


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
    sync_interval_seconds: float = setting(
        "CODY_GATEWAY_SOURCES_SYNC_INTERVAL",
        duration(least=1, most=DAY),
        2 * MINUTE,
        "How often one replica lists all tokens at the sources, so that revoked ones stop working.",
    )
    cache_ttl_seconds: float = setting(
        "CODY_GATEWAY_SOURCES_CACHE_TTL",
        duration(least=1, most=30 * DAY),
        DAY,
        "How long Redis keeps a fetched actor; for so long known actors are served while their source is down.",
    )
    unknown_tokens_per_address: int = setting(
        "CODY_GATEWAY_UNKNOWN_TOKENS_PER_ADDRESS",
        integer(least=1, most=1_000_000),
        300,
        "How many tokens of one client address, in a minute, are asked about and turn out unknown; then it gets 429.",
    )


@frozen
class DotcomSettings:
    """Sourcegraph.com: its users, product subscriptions where no Enterprise Portal is set, and attribution."""

    access_token: Secret | None = setting(
        "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN",
        SECRET,
        None,
        "The service account's access token for Sourcegraph.com; without it, its users and attribution are off.",
    )
    api_url: str = setting(
        "CODY_GATEWAY_DOTCOM_API_URL",
        API_URL,
        "https://sourcegraph.com/.api/graphql",
        "The GraphQL API of Sourcegraph.com; usage alerts link to its host.",
    )
    client_id: str | None = setting(
        "CODY_GATEWAY_DOTCOM_CLIENT_ID",
        VISIBLE_TEXT,
        None,
        "Sent to Sourcegraph.com as X-Sourcegraph-Client-ID, where its firewall asks for one.",
    )
    cooldown_seconds: float = setting(
        "CODY_GATEWAY_DOTCOM_ACTOR_COOLDOWN_INTERVAL",
        duration(least=0, most=DAY),
        5 * MINUTE,
        "The time after a refresh of a Sourcegraph.com user in which the same user is not fetched again.",
    )
    internal_mode: bool = setting(
        "CODY_GATEWAY_DOTCOM_INTERNAL_MODE",
        BOOLEAN,
        False,
        "Serve only product subscriptions with an active licence tagged dev or internal "
        "(older name: CODY_GATEWAY_DOTCOM_DEV_LICENSES_ONLY).",
        alias="CODY_GATEWAY_DOTCOM_DEV_LICENSES_ONLY",
    )
    environment: str = setting(
        "CODY_GATEWAY_ENVIRONMENT",
        VISIBLE_TEXT,
        "dev",
        "The name of this deployment, as dev or prod; sent to Sourcegraph.com in User-Agent.",
    )
    attribution: bool = setting(
        "CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH",
        BOOLEAN,
        False,
        "Whether POST /v1/attribution searches for the repositories of a snippet on Sourcegraph.com.",
    )


@frozen
class PortalSettings:
    """The Enterprise Portal, from which product subscriptions are fetched where it is set."""

    url: str | None = setting(
        "CODY_GATEWAY_ENTERPRISE_PORTAL_URL",
        API_URL,
        None,
        "The base URL of the Enterprise Portal; it needs SAMS_CLIENT_ID and SAMS_CLIENT_SECRET.",
    )


@frozen
class SamsSettings:
    """Sourcegraph Accounts (SAMS): the OAuth client that cgw is there."""

    url: str = setting(
        "SAMS_URL",
        API_URL,
        "https://accounts.sourcegraph.com",
        "The base URL of Sourcegraph Accounts, where access tokens are obtained, and those for /maintenance checked.",
    )
    api_url: str | None = setting(
        "SAMS_API_URL",
        API_URL,
        None,
        "The base URL of its API, if that is not SAMS_URL.",
    )
    client_id: str | None = setting("SAMS_CLIENT_ID", VISIBLE_TEXT, None, "The id of cgw's OAuth client.")
    client_secret: Secret | None = setting("SAMS_CLIENT_SECRET", SECRET, None, "The secret of cgw's OAuth client.")
