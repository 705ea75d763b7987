"""The metrics of cgw's parts, by the field of the ``statistics()`` snapshot that each is read from.

Those of exchanges are in :mod:`cgw.telemetry.metrics_exchanges`. ``docs/metrics.md`` is generated from both.
"""

from __future__ import annotations

from collections.abc import Mapping

from cgw.telemetry.metrics import Metric, MetricKind, counter, gauge

Fields = Mapping[str, Metric]

BUILD_INFO = gauge("cgw_build_info", "1, with the version of cgw as label.", "version")
PHASE = gauge("cgw_phase", "1 for the present phase of the service, 0 for the others.", "phase")
HEALTH = gauge("cgw_healthy", "1 while requests are served, as /-/healthz says without asking Redis.")
COLLAPSED = counter(
    "cgw_metrics_collapsed",
    'Label sets that were counted under "other", because the metric had too many already.',
    "metric",
)
LOOP_LAG = Metric(
    "cgw_loop_lag_seconds",
    MetricKind.HISTOGRAM,
    "How late the event loop runs a task that is due, sampled four times a second.",
    unit="s",
    bounds=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)

SERVER: Fields = {
    "open": gauge("cgw_connections", "Connections of clients that are open now."),
    "accepted": counter("cgw_connections_accepted", "Connections of clients that were accepted."),
    "turned_away": counter("cgw_connections_turned_away", "Connections of clients that got 503 above a bound."),
}
ENGINE: Fields = {
    "in_flight": gauge("cgw_exchanges_in_flight", "Exchanges under way now."),
    "shed": counter("cgw_requests_shed", "Requests that were refused because of overload, or above the bound."),
    "http2_connections": gauge("cgw_http2_connections", "Connections of clients that speak HTTP/2 now."),
    "buffered_bytes": gauge("cgw_request_body_buffered_bytes", "Memory that large request bodies take now.", unit="By"),
}
SHEDDING = gauge("cgw_shedding", "1 while the process counts as overloaded and refuses requests.")
RELAY: Fields = {
    "streams": gauge("cgw_relay_streams", "Bodies that the fast path of the relay forwards now."),
    "passes": counter("cgw_relay_passes", "Passes of the relay's loop."),
    "events": counter("cgw_relay_events", "Reads from upstreams that the relay forwarded."),
    "ticks": counter("cgw_relay_ticks", "Passes that waited for a tick, so that events share a wake-up."),
    "registrations": counter("cgw_relay_registrations", "Sockets that were registered with epoll."),
    "is_coalescing": gauge("cgw_relay_coalescing", "1 while the relay wakes up once per tick and not per event."),
    "busy_seconds": counter("cgw_relay_busy_seconds", "Time that the relay's thread spent on passes.", unit="s"),
}
POOL: Fields = {
    "opened": counter("cgw_upstream_connections_opened", "Connections to upstreams that were opened."),
    "reused": counter("cgw_upstream_connections_reused", "Requests that were sent on a kept connection."),
    "retried": counter("cgw_upstream_retries", "Requests sent again because a kept connection had ended."),
    "idle": gauge("cgw_upstream_connections_idle", "Connections to upstreams that are kept for reuse now."),
    "busy": gauge("cgw_upstream_connections_busy", "Connections to upstreams whose response is being read now."),
}
MODEL_UNAVAILABLE = gauge(
    "cgw_model_unavailable", "1 for each model that is refused because its upstream fails all the time.", "model"
)
LIMITER: Fields = {
    "is_redis_away": gauge("cgw_limits_redis_away", "1 while limits are counted without Redis, or requests refused."),
    "backlog": gauge("cgw_limits_backlog", "Settlements and charges that wait in memory for Redis."),
    "dropped": counter("cgw_limits_backlog_dropped", "Settlements and charges that found the backlog full."),
    "admitted": counter("cgw_limits_admitted", "Requests that were admitted by their limits."),
    "admitted_locally": counter("cgw_limits_admitted_locally", "Those of them that were admitted without Redis."),
}
LIMITS_REFUSED = counter("cgw_limits_refused", "Requests that a limit refused, by the limit's name.", "cause")
ALERTS: Fields = {
    "sent": counter("cgw_usage_alerts_sent", "Usage alerts that were delivered, to Slack or to the log."),
    "failed": counter("cgw_usage_alerts_failed", "Usage alerts that could not be delivered."),
    "dropped": counter("cgw_usage_alerts_dropped", "Usage alerts that found the queue full, or the service ending."),
    "waiting": gauge("cgw_usage_alerts_waiting", "Usage alerts in the queue now."),
}
REDIS: Fields = {
    "links": gauge("cgw_redis_links", "Redis servers that there is to be a link to, one each."),
    "links_up": gauge("cgw_redis_links_up", "Links to Redis servers that work now."),
    "reconnects": counter("cgw_redis_reconnects", "Times that a link to Redis was connected again."),
    "calls": counter("cgw_redis_calls", "Commands that were sent to Redis."),
    "timeouts": counter("cgw_redis_timeouts", "Callers whose deadline passed before Redis answered."),
    "cancelled": counter("cgw_redis_cancelled", "Callers that were cancelled while they waited for Redis."),
    "failed_fast": counter("cgw_redis_failed_fast", "Calls that were refused because no link was up."),
    "waiting_calls": gauge("cgw_redis_waiting_calls", "Commands in flight to Redis now."),
    "kept_calls": gauge("cgw_redis_kept_calls", "Script calls that wait for a Redis that is unavailable now."),
    "redirections": counter("cgw_redis_redirections", "MOVED and ASK replies that were followed."),
    "retries": counter("cgw_redis_retries", "TRYAGAIN replies after which a call was sent again."),
}
EVENT_LOG: Fields = {
    "recorded": counter("cgw_events_recorded", "Usage events that were written to the event log."),
    "waiting": gauge("cgw_events_waiting", "Usage events in memory because the disk is slow."),
    "dropped": counter("cgw_events_dropped", "Usage events that could not be written and went to the log instead."),
    "blank": counter("cgw_events_blank", "Usage events without an identifier, which are discarded."),
    "deleted_segments": counter(
        "cgw_events_segments_deleted", "Event segments that were deleted before all sinks had them, for want of room."
    ),
}
BUFFER_SIZE = gauge(
    "cody_gateway_buffered_logger_buffer_size",
    "The reference's name of cgw_events_waiting.",
    otel_name="cody-gateway.buffered_logger_buffer_size",
)
EVENTS_ACCEPTING = gauge("cgw_events_accepting", "0 while requests are refused because events cannot be written.")
EVENTS_FAILING = gauge("cgw_events_degraded", "1 while events are not written to the disk as they should be.")
EVENTS_DISK = gauge("cgw_events_disk_bytes", "The size of all event segments of the data directory.", unit="By")
EVENTS_DISK_LIMIT = gauge(
    "cgw_events_disk_limit_bytes", "CODY_GATEWAY_EVENTS_MAX_BYTES, beyond which the oldest are deleted.", unit="By"
)
EVENTS_SEGMENTS = gauge("cgw_events_segments", "Event segments in the data directory.")
SINK: Fields = {
    "shipped": counter("cgw_events_shipped", "Usage events that a sink took.", "sink"),
    "batches": counter("cgw_events_batches", "Batches of usage events that a sink took.", "sink"),
    "failed": counter("cgw_events_rejected", "Usage events that a sink rejected, and that were set aside.", "sink"),
    "retries": counter("cgw_events_shipping_retries", "Attempts to ship a batch after one that failed.", "sink"),
    "unshipped_events": gauge("cgw_events_unshipped", "Usage events that a sink does not have yet, estimated.", "sink"),
    "unshipped_bytes": gauge(
        "cgw_events_unshipped_bytes", "The size of the usage events that a sink does not have yet.", "sink", unit="By"
    ),
    "lag_seconds": gauge("cgw_events_lag_seconds", "The age of the oldest event that a sink lacks.", "sink", unit="s"),
}
SINK_UP = gauge("cgw_events_sink_up", "0 while a sink takes nothing.", "sink")
RESOLVER: Fields = {
    "names": gauge("cgw_resolver_names", "Host names whose addresses are known."),
    "started": counter("cgw_resolver_lookups", "Look-ups of host names that were started."),
    "pending": gauge("cgw_resolver_pending", "Look-ups of host names that are under way now."),
    "stale": counter("cgw_resolver_stale_answers", "Addresses that were used although they could not be looked up."),
}
REFRESHER: Fields = {
    "updated": counter("cgw_actor_refreshes", "Actors that were fetched again from their source."),
    "failed": counter("cgw_actor_refreshes_failed", "Actors that could not be fetched again."),
    "joined": counter("cgw_actor_refreshes_joined", "Requests for a refresh that found one under way."),
    "cooling": counter("cgw_actor_refreshes_cooling", "Requests for a refresh that came too soon after the last."),
    "dropped": counter("cgw_actor_refreshes_dropped", "Refreshes that found the queue full, or the service ending."),
    "waiting": gauge("cgw_actor_refreshes_waiting", "Refreshes that wait for their turn now."),
    "under_way": gauge("cgw_actor_refreshes_under_way", "Refreshes under way now."),
    "remembered": gauge("cgw_actor_refreshes_remembered", "Actors whose cool-down is remembered."),
}
SOURCE: Fields = {
    "remembered": gauge("cgw_actor_source_remembered", "Tokens and denials that a source remembers.", "source"),
    "addresses": gauge("cgw_actor_source_addresses", "Client addresses that presented unknown tokens.", "source"),
    "lookups": gauge("cgw_actor_source_lookups", "Look-ups of tokens under way now.", "source"),
    "fetches": counter("cgw_actor_source_fetches", "Tokens that a source was asked about.", "source"),
    "refused": counter("cgw_actor_source_refused", "Callers that presented too many unknown tokens (429).", "source"),
    "hits": counter("cgw_actor_source_hits", "Tokens that were known and fresh.", "source"),
}
SOURCE_UP = gauge("cgw_actor_source_up", "0 while a source of actors cannot be asked.", "source")
SYNC: Fields = {
    "is_holding_lock": gauge("cgw_sync_holding_lock", "1 on the replica that syncs the sources."),
    "succeeded": counter("cgw_syncs", "Syncs of one source that succeeded."),
    "failed": counter("cgw_syncs_failed", "Syncs of one source that failed."),
}
LOG: Fields = {
    "written": counter("cgw_log_lines", "Lines of the log that were written."),
    "dropped": counter("cgw_log_lines_dropped", "Lines of the log that found too many waiting."),
    "pending": gauge("cgw_log_lines_pending", "Lines of the log that wait to be written."),
    "write_errors": counter("cgw_log_write_errors", "Times at which the log's stream began to fail."),
    "lost": counter("cgw_log_lines_lost", "Lines of the log that could not be written."),
}
FLAGGING: Fields = {
    "examined": counter("cgw_flagging_examined", "Requests that were examined by the rules of flagging."),
    "flagged": counter("cgw_flagging_flagged", "Requests that were flagged, blocked ones included."),
    "blocked": counter("cgw_flagging_blocked", "Requests that were blocked."),
    "prompts_dropped": counter("cgw_flagged_prompts_dropped", "Flagged prompts that could not be kept."),
}
EXPORT: Fields = {
    "exported": counter("cgw_telemetry_exported", "Traces, or snapshots of metrics, that were exported.", "exporter"),
    "dropped": counter("cgw_telemetry_dropped", "Items that found too many waiting to be exported.", "exporter"),
    "failed": counter("cgw_telemetry_failed", "Items that the receiver did not accept.", "exporter"),
    "pending": gauge("cgw_telemetry_pending", "Items that wait to be exported now.", "exporter"),
}
ERROR_REPORTS: Fields = {
    "sent": counter("cgw_error_reports", "Errors that were reported to Sentry."),
    "suppressed": counter("cgw_error_reports_suppressed", "Errors that were not reported: too many of one cause."),
    "dropped": counter("cgw_error_reports_dropped", "Reports of errors that did not arrive."),
}
REDIS_LATENCY = Metric(
    "cody_gateway_redis_latency",
    MetricKind.HISTOGRAM,
    "Milliseconds from sending a command to its reply, error replies included; a script is named by EVALSHA.",
    ("command", "error"),
    unit="ms",
    bounds=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000),
    otel_name="cody-gateway.redis_latency",
)

PARTS: tuple[Fields, ...] = (
    SERVER, ENGINE, RELAY, POOL, LIMITER, ALERTS, REDIS, EVENT_LOG, RESOLVER, REFRESHER, SOURCE, SYNC, LOG, FLAGGING,
    SINK, EXPORT, ERROR_REPORTS,
)  # fmt: skip
SINGLE: tuple[Metric, ...] = (
    BUILD_INFO, PHASE, HEALTH, COLLAPSED, LOOP_LAG, SHEDDING, MODEL_UNAVAILABLE, LIMITS_REFUSED, BUFFER_SIZE,
    EVENTS_ACCEPTING, EVENTS_FAILING, EVENTS_DISK, EVENTS_DISK_LIMIT, EVENTS_SEGMENTS, SINK_UP, SOURCE_UP,
    REDIS_LATENCY,
)  # fmt: skip


def list_part_metrics() -> list[Metric]:
    """Return all metrics that are declared here."""
    return [*SINGLE, *(metric for fields in PARTS for metric in fields.values())]
