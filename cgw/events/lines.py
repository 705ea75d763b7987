"""The lines of the event log: one usage event each, as JSON. Pure.

``{"id":…,"name":…,"source":…,"identifier":…,"created_at":…,"metadata":{…}}``, UTF-8, in this order of keys.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from cgw.events.kinds import Key
from cgw.model import UsageEvent

logger = logging.getLogger("cgw.events")

MAX_LINE_BYTES = 2**20
"""The longest line that is written. A reader discards anything longer without holding it in memory."""

_MAX_DEPTH = 20


class EventLine(msgspec.Struct):
    """An event as it is stored. ``created_at`` is of fixed width, so that it sorts as text."""

    id: Annotated[str, Key("unique; ids sort by time", is_own=True)]
    name: Annotated[str, Key("the kind of event")]
    source: Annotated[str, Key("the source that the actor is from, such as `static`")]
    identifier: Annotated[str, Key("the actor's id")]
    created_at: Annotated[str, Key("when the event was recorded: ISO 8601 in UTC, to the microsecond")]
    metadata: Annotated[dict[str, Any], Key("what the kinds below list")]


class _Line(msgspec.Struct, gc=False):
    """An event as it is encoded: the keys of :class:`EventLine`, in the same order."""

    id: str
    name: str
    source: str
    identifier: str
    created_at: datetime | str
    metadata: Mapping[str, Any] | msgspec.Struct


def _copy_mapping(value: Any) -> Any:
    """Return a dictionary for a mapping of another type, which msgspec does not take."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a type of JSON")


encode = msgspec.json.Encoder(enc_hook=_copy_mapping).encode


def render_line(event: UsageEvent) -> bytes:
    """Return ``event`` as a line, newline included.

    Never raises: text that is not valid Unicode gets question marks, values that JSON cannot hold become text, and
    metadata that makes the line longer than 1 MiB is left out, each with an error in the log. A usage event without
    all of its metadata is worth more than none.
    """
    moment = event.created_at
    created_at: datetime | str = moment
    # msgspec writes a time in UTC as isoformat() does, in a twentieth of its time; but it leaves out a fraction of 0.
    if moment.tzinfo is not UTC or not moment.microsecond:
        created_at = moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    stored = _Line(event.id, event.name, event.source, event.identifier, created_at, event.metadata)
    try:
        line = encode(stored)
    except UnicodeEncodeError:  # half a surrogate pair, from a client's JSON
        line = _encode_cleaned(stored)
    except (TypeError, ValueError, RecursionError) as error:
        logger.error("metadata of the usage event %s cannot be written as JSON as it is: %s", event.id, error)
        line = _encode_cleaned(stored)
    if len(line) >= MAX_LINE_BYTES:
        logger.error("metadata of the usage event %s has %d bytes and is left out", event.id, len(line))
        stored.metadata = {"omitted_bytes": len(line)}
        line = _encode_cleaned(stored)
    return line + b"\n"


def _encode_cleaned(stored: _Line) -> bytes:
    names = _clean(stored.name), _clean(stored.source), _clean(stored.identifier)
    metadata = stored.metadata
    if isinstance(metadata, msgspec.Struct):
        metadata = msgspec.to_builtins(metadata, enc_hook=str)
    return encode(_Line(_clean(stored.id), *names, stored.created_at, _clean(metadata)))


def _clean(value: Any, depth: int = 0) -> Any:
    """Return ``value`` with everything that JSON in UTF-8 cannot hold as text."""
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {_clean(str(key)): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        return [_clean(item, depth + 1) for item in value]
    if value is None or isinstance(value, int | float):
        return value
    text = str(value) if depth < _MAX_DEPTH else "…"
    return text.encode("utf-8", "replace").decode("utf-8")


def render_for_log(line: bytes) -> str:
    """Return ``line`` as ASCII, so that it can be imported from a log that escapes or masks what is not printable."""
    return json.dumps(json.loads(line), separators=(",", ":"))
