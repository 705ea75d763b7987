"""Settings of the reference (Cody Gateway) that cgw does not have, each with what to do instead.

An operator who brings an environment along from there is told what it does not do here. A setting that cgw gets leaves
this table; a test checks that no name is in both.
"""

from __future__ import annotations

REFERENCE_SETTINGS: dict[str, str] = {
    "CODY_GATEWAY_AUTO_FLUSH_STREAMING_RESPONSES": "remove it; streams are always forwarded at once",
}
