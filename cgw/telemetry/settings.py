"""Settings of the log, of traces, and of error reports."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import (
    API_URL,
    BOOLEAN,
    CA_FILE,
    MASK,
    VISIBLE_TEXT,
    Kind,
    Secret,
    check_url,
    choice,
    duration,
)


def parse_pairs(text: str) -> dict[str, str]:
    """Return the pairs of ``name=value,name=value``, percent-decoded (as W3C Baggage, without properties).

    Raises :exc:`ValueError`, without repeating ``text``, for anything else.
    """
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (unquote(piece).strip() for piece in part.partition("="))
        if not (equals and re.fullmatch(r"[A-Za-z0-9._/-]{1,100}", name) and value.isprintable()):
            raise ValueError("must be pairs such as name=value, separated by commas and percent-encoded")
        pairs[name] = value
    return pairs


def _parse_pairs_secret(text: str) -> Secret:
    if not all(value.isascii() for value in parse_pairs(text).values()):
        raise ValueError("must have values of ASCII characters: they are header fields")
    return Secret(text)


PAIRS: Kind[tuple[tuple[str, str], ...]] = Kind(
    lambda text: tuple(parse_pairs(text).items()),
    lambda pairs: ",".join(f"{quote(name, safe='/')}={quote(value)}" for name, value in pairs),
)
PAIRS_SECRET: Kind[Secret] = Kind(_parse_pairs_secret, str, is_secret=True)

_ANY_TIMEOUT = duration(least=0.1, most=600.0)
OTEL_MILLISECONDS: Kind[float] = Kind(
    # OpenTelemetry's durations are in milliseconds (its SDK for Python reads seconds, against the specification).
    lambda text: _ANY_TIMEOUT.parse(f"{text}ms" if re.fullmatch("[0-9]{1,9}", text) else text),
    _ANY_TIMEOUT.show,
)


def _parse_dsn(text: str) -> Secret:
    parts = urlsplit(check_url(text, ("https", "http")))
    if not parts.username or not re.fullmatch(r"(/[^/]+)*/[0-9]+", parts.path):
        raise ValueError("must be a DSN as Sentry shows it: https://<key>@<host>/<project number>")
    return Secret(text, f"{parts.scheme}://{MASK}@{parts.hostname}{parts.path}")


SENTRY_DSN: Kind[Secret] = Kind(_parse_dsn, str, is_secret=True)


@frozen
class LogSettings:
    """The log, which goes to standard error."""

    level: str = setting(
        "CODY_GATEWAY_LOG_LEVEL",
        choice("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "The least severe lines to log.",
        other_names=("LOG_LEVEL", "SRC_LOG_LEVEL", "LITELLM_LOG"),
    )
    format: str = setting(
        "CODY_GATEWAY_LOG_FORMAT",
        choice("auto", "text", "json"),
        "auto",
        "text for people, json for machines; auto is text on a terminal and json elsewhere.",
        other_names=("LOG_FORMAT", "SRC_LOG_FORMAT"),
    )
    no_color: str | None = setting(
        "NO_COLOR", VISIBLE_TEXT, None, "Set to anything, no colours are used on a terminal (no-color.org)."
    )


@frozen
class OtlpSettings:
    """A collector that speaks OTLP over HTTP. Names and meaning are OpenTelemetry's."""

    endpoint: str | None = setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        API_URL,
        None,
        "The base URL of a collector, such as http://localhost:4318; /v1/traces and /v1/metrics are appended.",
    )
    traces_endpoint: str | None = setting(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", API_URL, None, "The whole URL for traces, instead of the base URL."
    )
    headers: Secret | None = setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        PAIRS_SECRET,
        None,
        "Header fields for the collector, often its key: name=value,name=value, percent-encoded.",
    )
    traces_headers: Secret | None = setting(
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS", PAIRS_SECRET, None, "Those for traces, instead."
    )
    protocol: str = setting(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        choice("http/protobuf"),
        "http/protobuf",
        "The form of OTLP; gRPC and JSON are not supported.",
    )
    timeout_seconds: float = setting(
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        OTEL_MILLISECONDS,
        10.0,
        "The time that sending one batch may take, retries included; a number without a unit is in milliseconds.",
    )
    compression: str = setting(
        "OTEL_EXPORTER_OTLP_COMPRESSION", choice("none", "gzip"), "none", "The compression of what is sent."
    )
    ca_file: Path | None = setting(
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        CA_FILE,
        None,
        "A file of certificates (PEM) to trust for the collector, instead of the system's.",
    )
    service_name: str = setting("OTEL_SERVICE_NAME", VISIBLE_TEXT, "cgw", "The name of this service in telemetry.")
    resource_attributes: tuple[tuple[str, str], ...] = setting(
        "OTEL_RESOURCE_ATTRIBUTES",
        PAIRS,
        (),
        "More attributes of this process: name=value,name=value, percent-encoded.",
    )


@frozen
class TraceSettings:
    """Traces: spans of exchanges, and of cgw's own calls."""

    policy: str = setting(
        "CODY_GATEWAY_TRACE_POLICY",
        choice("all", "selective", "none"),
        "all",
        "Which exchanges are traced, if a receiver is set: selective means those whose caller asks for it "
        "(X-Sourcegraph-Should-Trace, or a sampled traceparent).",
    )
    gcp_project_id: str | None = setting(
        "CODY_GATEWAY_OTEL_GCP_PROJECT_ID",
        VISIBLE_TEXT,
        None,
        "Send traces and metrics to this project of Google Cloud instead of a collector; needs the extra gcp.",
    )
    google_cloud_project: str | None = setting(
        "GOOGLE_CLOUD_PROJECT",
        VISIBLE_TEXT,
        None,
        "Google's own variable: the project for traces and metrics where neither the one above nor a collector is set.",
    )
    propagates: bool = setting(
        "CODY_GATEWAY_PROPAGATE_TRACES",
        BOOLEAN,
        False,
        "Send the exchange's trace context (traceparent) to providers.",
    )


@frozen
class SentrySettings:
    """Error reports to Sentry."""

    dsn: Secret | None = setting(
        "SENTRY_DSN", SENTRY_DSN, None, "The DSN of a Sentry project, which gets errors and 5xx responses."
    )
