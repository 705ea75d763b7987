"""The lines of the event log: one usage event each, as JSON. Pure.

``{"id":…,"name":…,"source":…,"identifier":…,"created_at":…,"metadata":{…}}``, UTF-8, in this order of keys.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import msgspec

from cgw.model import UsageEvent

logger = logging.getLogger("cgw.events")

MAX_LINE_BYTES = 2**20
"""The longest line that is written. A reader discards anything longer without holding it in memory."""


class EventLine(msgspec.Struct):
    """An event as it is stored. ``created_at`` is ISO 8601 in UTC of fixed width, so that it sorts as text."""

    id: str
    name: str
    source: str
    identifier: str
    created_at: str
    metadata: dict[str, Any]


encode = msgspec.json.Encoder().encode


def render_line(event: UsageEvent) -> bytes:
    """Return ``event`` as a line, newline included.

    Never raises: text that is not valid Unicode gets question marks, values that JSON cannot hold become text, and
    metadata that makes the line longer than 1 MiB is left out, each with an error in the log. A usage event without
    all of its metadata is worth more than none.
    """
    created_at = event.created_at if event.created_at.tzinfo is UTC else event.created_at.astimezone(UTC)
    moment = created_at.isoformat(timespec="microseconds")[:-6] + "Z"
    # msgspec takes any mapping type that is a dict; the others are copied.
    metadata = event.metadata if type(event.metadata) is dict else dict(event.metadata)
    try:
        line = encode(EventLine(event.id, event.name, event.source, event.identifier, moment, metadata))
    except (TypeError, ValueError, RecursionError) as error:
        line = _render_slowly(event, moment, metadata, error)
    if len(line) >= MAX_LINE_BYTES:
        logger.error("metadata of the usage event %s has %d bytes and is left out", event.id, len(line))
        line = _render_slowly(event, moment, {"metadata_omitted_bytes": len(line)}, None)
    return line + b"\n"


def _render_slowly(event: UsageEvent, moment: str, metadata: Mapping[str, Any], error: Exception | None) -> bytes:
    if error is not None and not isinstance(error, UnicodeEncodeError):  # half a surrogate pair is a client's doing
        logger.error("metadata of the usage event %s cannot be written as JSON: %s", event.id, error)
    fields = {
        "id": event.id,
        "name": event.name.value,
        "source": event.source,
        "identifier": event.identifier,
        "created_at": moment,
        "metadata": metadata,
    }
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), default=str, skipkeys=True)
    except (ValueError, RecursionError):  # a structure that holds itself
        return _render_slowly(event, moment, {"metadata_omitted": str(error)}, None)
    return text.encode("utf-8", "replace")


def render_for_log(line: bytes) -> str:
    """Return ``line`` as ASCII, so that it can be imported from a log that escapes or masks what is not printable."""
    return json.dumps(json.loads(line), separators=(",", ":"))
