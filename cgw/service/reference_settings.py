"""Settings of the reference (Cody Gateway) that cgw does not have, each with what to do instead.

An operator who brings an environment along from there is told what it does not do here. A setting that cgw gets leaves
this table; a test checks that no name is in both.
"""

from __future__ import annotations

_NO_SHIPPING = "remove it; usage events stay in CODY_GATEWAY_DATA_DIR, and `cgw usage` reads them"

REFERENCE_SETTINGS: dict[str, str] = {
    "CODY_GATEWAY_BIGQUERY_PROJECT_ID": _NO_SHIPPING,
    "CODY_GATEWAY_BIGQUERY_DATASET": _NO_SHIPPING,
    "CODY_GATEWAY_BIGQUERY_TABLE": _NO_SHIPPING,
    "CODY_GATEWAY_AUTO_FLUSH_STREAMING_RESPONSES": "remove it; streams are always forwarded at once",
}
