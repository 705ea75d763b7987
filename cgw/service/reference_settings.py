"""Settings of the reference (Cody Gateway) that cgw does not have, each with what to do instead.

An operator who brings an environment along from there is told what it does not do here. A setting that cgw gets leaves
this table; a test checks that no name is in both.
"""

from __future__ import annotations

_NO_SOURCEGRAPH = "remove it; list actors in the file that CODY_GATEWAY_ACTORS_FILE names"
_NO_SHIPPING = "remove it; usage events stay in CODY_GATEWAY_DATA_DIR, and `cgw usage` reads them"
_NO_TRACES = "remove it; there is no tracing yet"
_NOT_NEEDED = "remove it"

REFERENCE_SETTINGS: dict[str, str] = {
    "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": _NO_SOURCEGRAPH,
    "CODY_GATEWAY_DOTCOM_CLIENT_ID": _NO_SOURCEGRAPH,
    "CODY_GATEWAY_DOTCOM_ACTOR_COOLDOWN_INTERVAL": _NO_SOURCEGRAPH,
    "CODY_GATEWAY_ENTERPRISE_PORTAL_URL": _NO_SOURCEGRAPH,
    "CODY_GATEWAY_SOURCES_SYNC_INTERVAL": _NO_SOURCEGRAPH,
    "CODY_GATEWAY_SOURCES_CACHE_TTL": _NO_SOURCEGRAPH,
    "SAMS_CLIENT_ID": _NO_SOURCEGRAPH,
    "SAMS_CLIENT_SECRET": _NO_SOURCEGRAPH,
    "CODY_GATEWAY_BIGQUERY_PROJECT_ID": _NO_SHIPPING,
    "CODY_GATEWAY_BIGQUERY_DATASET": _NO_SHIPPING,
    "CODY_GATEWAY_BIGQUERY_TABLE": _NO_SHIPPING,
    "CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_SIZE": _NO_SHIPPING,
    "CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_WORKERS": _NO_SHIPPING,
    "CODY_GATEWAY_TRACE_POLICY": _NO_TRACES,
    "CODY_GATEWAY_OTEL_GCP_PROJECT_ID": _NO_TRACES,
    "CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH": "remove it; there is no attribution search",
    "CODY_GATEWAY_DOTCOM_FLAGGED_PROMPT_RECORDER_TTL": "remove it; prompts are not recorded",
    "CODY_GATEWAY_IDENTIFIERS_TO_LOG_FOR": "remove it; prompts are not logged",
    "CODY_GATEWAY_AUTO_FLUSH_STREAMING_RESPONSES": "remove it; streams are always forwarded at once",
    "CODY_GATEWAY_ENVIRONMENT": _NOT_NEEDED,
}
