"""All settings, declared once: name, kind, default and help; and the only place that reads the environment.

Names and defaults are the reference's where it has the setting. A variable that is set to nothing, or to blanks
alone, counts as unset. ``load_settings`` reports all problems at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import Attribute, fields, frozen

from cgw.config_fields import Variable, group, setting
from cgw.config_providers import AnthropicSettings, OpenAISettings
from cgw.config_values import (
    API_URL,
    BOOLEAN,
    CA_FILE,
    HOST,
    PATH,
    REDIS_ENDPOINT,
    SECRET,
    THRESHOLDS,
    VISIBLE_TEXT,
    WEBHOOK_URL,
    Secret,
    choice,
    duration,
    duration_ms,
    integer,
    size,
)
from cgw.errors import ConfigError
from cgw.model import MAX_IN_FLIGHT

__all__ = [
    "ActorSettings",
    "AnthropicSettings",
    "LimitSettings",
    "LogSettings",
    "OpenAISettings",
    "Secret",
    "ServerSettings",
    "SettingRow",
    "Settings",
    "StoreSettings",
    "UpstreamSettings",
    "describe_settings",
    "load_settings",
]

KIB = 1024
MIB = 1024 * KIB
MINUTE = 60.0
HOUR = 60 * MINUTE


def _default_data_dir() -> Path:
    import platformdirs  # here, since only `cgw serve` and `cgw usage` need it

    return platformdirs.user_state_path("cgw", appauthor=False)


@frozen
class ServerSettings:
    """The port that clients connect to, and what a client may take of it."""

    port: int = setting(
        "PORT", integer(least=0, most=65535), 9992, "The port to listen on; 0 takes any free one, and logs which."
    )
    host: str = setting("CODY_GATEWAY_HOST", HOST, "127.0.0.1", "The address to listen on; 0.0.0.0 or :: is all.")
    max_body_bytes: int = setting(
        "CODY_GATEWAY_MAX_BODY_BYTES",
        size(least=KIB, most=1024 * MIB),
        32 * MIB,
        "The largest request body that is read; larger ones get 413.",
    )
    max_head_bytes: int = setting(
        "CODY_GATEWAY_MAX_HEAD_BYTES",
        size(least=KIB, most=MIB),
        64 * KIB,
        "The largest request line and headers together; larger ones get 431.",
    )
    header_timeout_seconds: float = setting(
        "CODY_GATEWAY_HEADER_TIMEOUT",
        duration(most=HOUR),
        10.0,
        "How long a request's head may take from its first byte; then 408.",
    )
    body_timeout_seconds: float = setting(
        "CODY_GATEWAY_BODY_TIMEOUT", duration(most=HOUR), 75.0, "How long a request's body may take; then 408."
    )
    keep_alive_timeout_seconds: float = setting(
        "CODY_GATEWAY_KEEP_ALIVE_TIMEOUT",
        duration(),
        75.0,
        "How long a connection may be idle between requests before it is closed.",
    )
    drain_timeout_seconds: float = setting(
        "CODY_GATEWAY_DRAIN_TIMEOUT",
        duration(least=0),
        30.0,
        "How long open responses may go on after SIGTERM or SIGINT; then they are cut.",
    )
    client_stall_timeout_seconds: float = setting(
        "CODY_GATEWAY_CLIENT_STALL_TIMEOUT",
        duration(),
        60.0,
        "How long a client may take nothing of its response before it is dropped.",
    )
    diagnostics_secret: Secret | None = setting(
        "CODY_GATEWAY_DIAGNOSTICS_SECRET",
        SECRET,
        None,
        "When set, /-/healthz answers only to `Authorization: Bearer` with this secret.",
    )


@frozen
class UpstreamSettings:
    """Connections to providers, and how long each phase of a request to one may take; 504 when it takes longer."""

    ca_file: Path | None = setting(
        "CODY_GATEWAY_UPSTREAM_CA_FILE",
        CA_FILE,
        None,
        "A file of CA certificates (PEM) that are trusted besides the system's.",
    )
    connect_timeout_seconds: float = setting(
        "CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT",
        duration(most=HOUR),
        5.0,
        "How long connecting may take: name look-up, TCP and TLS.",
    )
    head_timeout_seconds: float = setting(
        "CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT",
        duration(most=HOUR),
        60.0,
        "How long the response's head may take once the request is sent.",
    )
    silence_timeout_seconds: float = setting(
        "CODY_GATEWAY_UPSTREAM_SILENCE_TIMEOUT",
        duration(most=HOUR),
        60.0,
        "How long the response's body may pause.",
    )
    relay_tick_seconds: float = setting(
        "CODY_GATEWAY_RELAY_TICK",
        duration(least=0, most=1),
        0.001,
        "Under load, the longest that an event of a stream may wait to be passed on with others; 0 is never.",
    )
    request_timeout_seconds: float = setting(
        "CODY_GATEWAY_REQUEST_TIMEOUT",
        duration(),
        10 * MINUTE,
        "How long a request may take in total, its streamed response included, unless X-Timeout-Ms says otherwise.",
    )
    max_timeout_seconds: float = setting(
        "CODY_GATEWAY_MAX_TIMEOUT", duration(), 10 * MINUTE, "The most that X-Timeout-Ms can ask for."
    )


@frozen
class ActorSettings:
    """Who may use the gateway."""

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
        "The short-term rate where an actor has none of its own: this share of its daily limit, at least 1.",
    )
    concurrency_interval_ms: int = setting(
        "CODY_GATEWAY_ACTOR_CONCURRENCY_LIMIT_INTERVAL",
        duration_ms(least=0.001, most=24 * HOUR),
        10_000,
        "The time that the short-term rate counts per.",
    )


@frozen
class LimitSettings:
    """How limits are held, whoever asks."""

    max_in_flight: int | None = setting(
        "CODY_GATEWAY_ACTOR_MAX_IN_FLIGHT",
        integer(least=1, most=MAX_IN_FLIGHT),
        None,
        "How many requests of one actor and feature may be under way at once, where the actor sets no bound itself.",
    )
    heartbeat_seconds: float = setting(
        "CODY_GATEWAY_IN_FLIGHT_HEARTBEAT",
        duration(least=0.1, most=HOUR),
        10.0,
        "How often requests under way are confirmed; those of a gateway that died stop counting after three.",
    )
    when_redis_down: str = setting(
        "CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN",
        choice("local", "open", "closed"),
        "local",
        "While Redis is away: local counts in this process, open lets all through, closed refuses all with 503.",
    )
    slack_webhook_url: Secret | None = setting(
        "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL",
        WEBHOOK_URL,
        None,
        "Where Slack is told of actors that have used up much of a quota; without it, the log is.",
    )
    notify_thresholds: tuple[int, ...] = setting(
        "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_THRESHOLDS",
        THRESHOLDS,
        (90, 95, 100),
        "At which percentages of a quota: product subscriptions and static actors, each once per interval; or off.",
    )
    dotcom_api_url: str = setting(
        "CODY_GATEWAY_DOTCOM_API_URL",
        API_URL,
        "https://sourcegraph.com/.api/graphql",
        "The GraphQL API of Sourcegraph.com; its host is what notices link to.",
    )


@frozen
class StoreSettings:
    """Where limits are counted and usage events are kept."""

    redis_endpoint: Secret | None = setting(
        "REDIS_ENDPOINT",
        REDIS_ENDPOINT,
        None,
        "The Redis or Valkey that counts limits: host:port or a URL (redis://, rediss://, unix://, redis+cluster://, "
        "redis+sentinel://).",
        default_text="an embedded server of cgw's own",
    )
    redis_timeout_seconds: float = setting(
        "CODY_GATEWAY_REDIS_TIMEOUT", duration(most=MINUTE), 0.1, "How long one call to Redis may take."
    )
    data_dir: Path = setting(
        "CODY_GATEWAY_DATA_DIR",
        PATH,
        None,
        "Where usage events and the embedded server's data are kept; made when it is missing.",
        factory=_default_data_dir,
        default_text="the user's state directory, as ~/.local/state/cgw",
    )


@frozen
class LogSettings:
    """What cgw says while it runs, on standard error."""

    level: str = setting(
        "CODY_GATEWAY_LOG_LEVEL", choice("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "The least severe lines to log."
    )
    format: str = setting(
        "CODY_GATEWAY_LOG_FORMAT",
        choice("auto", "text", "json"),
        "auto",
        "text for people, json for machines; auto is text on a terminal and json elsewhere.",
    )
    no_color: str | None = setting(
        "NO_COLOR", VISIBLE_TEXT, None, "Set to anything, no colours are used on a terminal (no-color.org)."
    )


@frozen
class Settings:
    """Everything that can be set. ``Settings()`` has all defaults; ``warnings`` is what the operator should hear of."""

    server: ServerSettings = group(ServerSettings)
    upstream: UpstreamSettings = group(UpstreamSettings)
    anthropic: AnthropicSettings = group(AnthropicSettings)
    openai: OpenAISettings = group(OpenAISettings)
    actors: ActorSettings = group(ActorSettings)
    limits: LimitSettings = group(LimitSettings)
    store: StoreSettings = group(StoreSettings)
    logs: LogSettings = group(LogSettings)
    warnings: tuple[str, ...] = ()


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings that ``environ`` describes.

    Raises :exc:`~cgw.errors.ConfigError` with every problem, each beginning with the variable's name. Unknown
    ``CODY_GATEWAY_*`` names are no problem, but a warning with the nearest known name.
    """
    problems: list[str] = []
    groups: dict[str, Any] = {}
    for group_name, settings_class in _groups():
        values: dict[str, Any] = {}
        for attribute, variable in _variables(settings_class):
            text = environ.get(variable.name, "").strip()
            if not text:
                continue
            try:
                values[attribute.name] = variable.kind.parse(text)
            except ValueError as problem:
                problems.append(f"{variable.name}: {problem}")
        groups[group_name] = settings_class(**values)
    if problems:
        raise ConfigError(problems)
    return Settings(**groups, warnings=tuple(_warn_of_unknown(environ)))


@frozen
class SettingRow:
    """One setting for people: ``value`` and ``default`` are as they would be written, secrets masked."""

    name: str
    value: str
    default: str
    help: str
    is_default: bool


def describe_settings(settings: Settings) -> list[SettingRow]:
    """One row for each setting, in the order of declaration. ``describe_settings(Settings())`` is the documentation."""
    rows = []
    for group_name, settings_class in _groups():
        values, defaults = getattr(settings, group_name), settings_class()
        for attribute, variable in _variables(settings_class):
            value, default = getattr(values, attribute.name), getattr(defaults, attribute.name)
            default_text = variable.default_text or _show(variable, default)
            value_text = default_text if value is None else _show(variable, value)
            rows.append(SettingRow(variable.name, value_text, default_text, variable.help, value == default))
    return rows


def _show(variable: Variable, value: object) -> str:
    return "(not set)" if value is None else variable.kind.show(value)


def _groups() -> Iterator[tuple[str, type[Any]]]:
    for attribute in fields(Settings):
        if "group" in attribute.metadata:
            yield attribute.name, attribute.metadata["group"]


def _variables(settings_class: type[Any]) -> Iterator[tuple[Attribute[Any], Variable]]:
    for attribute in fields(settings_class):
        yield attribute, attribute.metadata["variable"]


def _known_names() -> list[str]:
    return [variable.name for _, settings_class in _groups() for _, variable in _variables(settings_class)]


def _warn_of_unknown(environ: Mapping[str, str]) -> Iterator[str]:
    known = _known_names()
    for name in sorted(environ):
        if name.startswith("CODY_GATEWAY_") and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            yield f"{name} is not a setting of this version, and is ignored{hint}"
