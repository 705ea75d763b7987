"""All settings of the gateway, composed from the packages that they configure.

Names and defaults are the reference's where it has the setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, frozen

from cgw.actors.settings import ActorSettings, DotcomSettings, PortalSettings, SamsSettings
from cgw.config.declare import group, named_groups, setting
from cgw.config.environment import ExaminedSettings, examine_environment, find_unknown_variables
from cgw.config.kinds import PATH
from cgw.errors import ConfigError
from cgw.events.settings import EventSettings, HttpSinkSettings, ShippingSettings
from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.flagging.settings import FlaggingSettings
from cgw.limits.settings import LimitSettings
from cgw.providers.embeddings.settings import EmbeddingsSettings
from cgw.providers.provider import ProviderSettings
from cgw.providers.registry import FAMILIES, PROVIDERS, RESERVED_NAMES
from cgw.redis.settings import RedisSettings
from cgw.service.reference_settings import REFERENCE_SETTINGS
from cgw.telemetry.metrics_settings import MetricsPushSettings
from cgw.telemetry.settings import LogSettings, OtlpSettings, SentrySettings, TraceSettings
from cgw.transport.settings import AdminSettings, OverloadSettings, ServerSettings, TlsSettings, UpstreamSettings


def _default_data_dir() -> Path:
    import platformdirs  # imported here, because only commands that use the directory need it

    return platformdirs.user_state_path("cgw", appauthor=False)


@frozen
class DataSettings:
    """The directory of cgw's files."""

    directory: Path = setting(
        "CODY_GATEWAY_DATA_DIR",
        PATH,
        None,
        "Where usage events and the embedded server's data are kept; created when it is missing.",
        factory=_default_data_dir,
        default_text="the user's state directory, as ~/.local/state/cgw",
    )


@frozen
class Settings:
    """Everything that can be set; ``Settings()`` has all defaults. ``warnings`` are for the operator to read."""

    server: ServerSettings = group(ServerSettings)
    overload: OverloadSettings = group(OverloadSettings)
    tls: TlsSettings = group(TlsSettings)
    admin: AdminSettings = group(AdminSettings)
    upstream: UpstreamSettings = group(UpstreamSettings)
    providers: Mapping[str, ProviderSettings] = named_groups(
        {provider.name: provider.settings_class for provider in PROVIDERS},
        templates=[family.settings_class for family in FAMILIES],
        reserved_names=RESERVED_NAMES,
    )
    embeddings: EmbeddingsSettings = group(EmbeddingsSettings)
    actors: ActorSettings = group(ActorSettings)
    dotcom: DotcomSettings = group(DotcomSettings)
    portal: PortalSettings = group(PortalSettings)
    sams: SamsSettings = group(SamsSettings)
    limits: LimitSettings = group(LimitSettings)
    flagging: FlaggingSettings = group(FlaggingSettings)
    redis: RedisSettings = group(RedisSettings)
    data: DataSettings = group(DataSettings)
    events: EventSettings = group(EventSettings)
    shipping: ShippingSettings = group(ShippingSettings)
    http_sink: HttpSinkSettings = group(HttpSinkSettings)
    bigquery: BigQuerySettings = group(BigQuerySettings)
    logs: LogSettings = group(LogSettings)
    traces: TraceSettings = group(TraceSettings)
    otlp: OtlpSettings = group(OtlpSettings)
    metrics: MetricsPushSettings = group(MetricsPushSettings)
    sentry: SentrySettings = group(SentrySettings)
    warnings: tuple[str, ...] = ()


def examine_settings(environ: Mapping[str, str]) -> ExaminedSettings[Settings]:
    """Return the settings that ``environ`` describes, with their warnings, and the problems of wrong variables.

    Unknown ``CODY_GATEWAY_*`` names, and what other tools call a setting, are ignored, with a warning each.
    """
    reading = examine_environment(Settings, environ)
    warnings = find_unknown_variables(Settings, environ, REFERENCE_SETTINGS)
    return evolve(reading, settings=evolve(reading.settings, warnings=tuple(warnings)))


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings that ``environ`` describes; see :func:`examine_settings`.

    Raises :exc:`~cgw.errors.ConfigError` with every problem, each beginning with the variable's name, and with the
    warnings.
    """
    reading = examine_settings(environ)
    if reading.problems:
        raise ConfigError(list(reading.problems.values()), reading.settings.warnings)
    return reading.settings
