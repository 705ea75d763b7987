"""The text of an exchange's log line: a method and a path, then named values. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgw.telemetry.exchange_record import ExchangeRecord  # whose str() is made here

# Values of these characters stand as they are; a space, a quote or an equals sign could begin another field.
_ODD = re.compile(r"[^\w./:@+~%,–-]", re.ASCII)


def quote_value(value: str) -> str:
    """Return ``value`` as it stands behind ``name=``: as it is, or as a JSON string where that could be misread."""
    return json.dumps(value, ensure_ascii=False) if not value or _ODD.search(value) else value


def describe_exchange(record: ExchangeRecord, *, has_figures: bool = True) -> str:
    """Return what the log says of ``record``; what is unknown is left out, and figures and id if they are not wanted.

    ``status`` is what the client got, ``upstream_status`` what the provider answered. Times are in milliseconds.
    """
    line = describe_request(record) + describe_actor(record) + describe_target(record)
    if has_figures:
        line += _describe_figures(record) + " request_id=" + record.trace.trace_id
    if record.warning:
        line += " warning=" + quote_value(record.warning)
    return line + " error=" + quote_value(record.error) if record.error else line


def describe_request(record: ExchangeRecord) -> str:
    """Return the beginning of the text: what was asked, and what came of it."""
    # Joining two texts with + raises TypeError for anything else, which keeps bytes out of the log.
    line = quote_value(record.method) + " " + quote_value(record.path)
    line += f" status={record.status or '–'} outcome={record.outcome}"
    return line if record.upstream_status is None else line + f" upstream_status={record.upstream_status}"


def describe_actor(record: ExchangeRecord) -> str:
    """Return what follows: who asked."""
    if not record.actor:
        return ""
    return " actor=" + quote_value(record.actor) + (" stale=true" if record.stale else "")


def describe_target(record: ExchangeRecord) -> str:
    """Return what follows: for what."""
    line = " feature=" + record.feature if record.feature else ""
    if record.model:
        line += " model=" + quote_value(record.model)
    return line + " stream=true" if record.stream else line


def _describe_figures(record: ExchangeRecord) -> str:
    seconds, first, _, overhead = record.measure()
    line = f" ms={seconds * 1000:.1f}"
    if first is not None:
        line += f" first_byte_ms={first * 1000:.1f}"
    if overhead is not None:
        line += f" overhead_ms={overhead * 1000:.1f}"
    if record.prompt_tokens is not None:
        line += f" tokens_in={record.prompt_tokens}"
    if record.completion_tokens is not None:
        line += f" tokens_out={record.completion_tokens}"
    if record.response_bytes is not None:
        line += f" bytes={record.response_bytes}"
    return line
