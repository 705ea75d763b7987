"""Settings of the event log and of shipping events."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import HOUR, KIB, MIB, NAMES, SECRET, WEBHOOK_URL, Kind, Secret, choice, duration, integer, size
from cgw.durations import quote_value

_DAY = 24 * HOUR


SINK_NAMES = ("bigquery", "http", "stdout")
"""The sinks there are, see :mod:`cgw.events.sinks.registry`."""


def _parse_sinks(text: str) -> tuple[str, ...]:
    names = NAMES.parse(text.lower())
    for name in names:
        if name not in SINK_NAMES:
            raise ValueError(f"must be some of {', '.join(SINK_NAMES)}, separated by commas, not {quote_value(name)}")
    return names


SINK_NAMES_KIND: Kind[tuple[str, ...]] = Kind(_parse_sinks, NAMES.show)


def _parse_when_full(text: str) -> str:
    # Two names of one policy: of the disk that is full it drops what cannot be written, of a full log the oldest.
    return "drop" if text.casefold() == "drop_oldest" else choice("drop", "refuse").parse(text)


WHEN_FULL: Kind[str] = Kind(_parse_when_full)


@frozen
class EventSettings:
    """Settings of how usage events are written and how long they are kept."""

    fsync: str = setting(
        "CODY_GATEWAY_EVENTS_FSYNC",
        choice("off", "interval", "always"),
        "off",
        "Protection from power cuts: off leaves it to the kernel, interval syncs every second, always before the "
        "end of each response. Events survive the death of the process in any case.",
    )
    when_full: str = setting(
        "CODY_GATEWAY_EVENTS_WHEN_FULL",
        WHEN_FULL,
        "drop",
        "While the disk takes no events: drop writes them to the log instead, refuse also answers new requests "
        "with 503. And when CODY_GATEWAY_EVENTS_MAX_BYTES is reached by events that a sink does not have yet: drop (or "
        "drop_oldest) deletes the oldest of them, refuse answers new requests with 503 until the sink has taken some.",
    )
    retention_seconds: float | None = setting(
        "CODY_GATEWAY_EVENTS_RETENTION",
        duration(least=HOUR, most=3660 * _DAY),
        None,
        "How long events are kept after they were written, and, where there are sinks, after all sinks have them. "
        "Without a sink these files are the only copy, hence the longer default.",
        default_text="7d with a sink, 90d without",
    )
    max_bytes: int = setting(
        "CODY_GATEWAY_EVENTS_MAX_BYTES",
        size(least=64 * MIB, most=2**50),
        1024 * MIB,
        "How much disk space events may take. Beyond it the oldest are deleted, those first that all sinks have; see "
        "CODY_GATEWAY_EVENTS_WHEN_FULL for those that they do not have.",
    )

    def get_retention(self, *, has_sinks: bool) -> float:
        """Return how many seconds events are kept."""
        if self.retention_seconds is not None:
            return self.retention_seconds
        # Without a sink, a monthly report of the last month must still find its first day.
        return (7 if has_sinks else 90) * _DAY


@frozen
class ShippingSettings:
    """Settings of where usage events are shipped to, and in which batches."""

    sinks: tuple[str, ...] = setting(
        "CODY_GATEWAY_EVENTS_SINKS",
        SINK_NAMES_KIND,
        (),
        "Where usage events are shipped to, separated by commas: bigquery, http, stdout. Without it: to BigQuery if "
        "CODY_GATEWAY_BIGQUERY_PROJECT_ID is set, and to CODY_GATEWAY_EVENTS_HTTP_URL if that is set.",
        default_text="those whose place is set",
    )
    batch_events: int = setting(
        "CODY_GATEWAY_EVENTS_BATCH_SIZE",
        integer(least=1, most=10_000),
        500,
        "The most events that are sent to a sink at once; for bigquery see CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_SIZE.",
    )
    batch_bytes: int = setting(
        "CODY_GATEWAY_EVENTS_BATCH_BYTES",
        size(least=64 * KIB, most=8 * MIB),
        MIB,
        "The most bytes of events that are sent to a sink at once, before compression.",
    )
    batch_age_seconds: float = setting(
        "CODY_GATEWAY_EVENTS_BATCH_AGE",
        duration(least=0.05, most=HOUR),
        1.0,
        "How long events wait for others to be sent with. On a machine that keeps no disk (Cloud Run), what has not "
        "been sent is lost when the machine goes.",
    )
    workers: int = setting(
        "CODY_GATEWAY_EVENTS_WORKERS",
        integer(least=1, most=64),
        4,
        "How many batches are sent to a sink at the same time; for bigquery see "
        "CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_WORKERS.",
    )
    drain_timeout_seconds: float = setting(
        "CODY_GATEWAY_EVENTS_DRAIN_TIMEOUT",
        duration(least=0.1, most=600.0),
        5.0,
        "How long the end of the process waits, after the last response, for events to be shipped. What is left is "
        "shipped by the next start.",
    )
    bigquery_buffer_size: int = setting(
        "CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_SIZE",
        integer(least=0, most=10_000),
        100,
        "The most events that are sent to BigQuery at once; 0 sends each alone.",
    )
    bigquery_buffer_workers: int = setting(
        "CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_WORKERS",
        integer(least=0, most=64),
        0,
        "How many batches are sent to BigQuery at the same time; 0 is a tenth of "
        "CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_SIZE, at least 1.",
    )


@frozen
class HttpSinkSettings:
    """Settings of the sink ``http``."""

    url: Secret | None = setting(
        "CODY_GATEWAY_EVENTS_HTTP_URL",
        WEBHOOK_URL,
        None,
        "Usage events are posted to this URL, as JSON lines. See CODY_GATEWAY_EVENTS_SINKS.",
    )
    secret: Secret | None = setting(
        "CODY_GATEWAY_EVENTS_HTTP_SECRET",
        SECRET,
        None,
        "The key that requests to CODY_GATEWAY_EVENTS_HTTP_URL are signed with (HMAC-SHA256).",
    )
    timeout_seconds: float = setting(
        "CODY_GATEWAY_EVENTS_HTTP_TIMEOUT",
        duration(least=0.1, most=300.0),
        30.0,
        "How long the receiver at CODY_GATEWAY_EVENTS_HTTP_URL may take to answer one request.",
    )
