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


def describe_exchange(record: ExchangeRecord) -> str:
    """Return what the log says of ``record``; what is unknown is left out.

    ``status`` is what the client got, ``upstream_status`` what the provider answered. Times are in milliseconds.
    """
    path, actor, model = record.path, record.actor, record.model
    # One look at all of them: nearly always none has to be quoted.
    if _ODD.search(f"{path}{actor}{model}{record.method}") is not None:
        path = quote_value(path)
        actor = quote_value(actor) if actor else None
        model = quote_value(model) if model else None
        method = quote_value(record.method)
    else:
        method = record.method
    # Appended to one text, and not joined from a list: half the time. Joining two texts with + raises TypeError for
    # anything else, which keeps bytes out of the log.
    line = method + " " + path + f" status={record.status or '–'} outcome={record.outcome}"
    if record.upstream_status is not None:
        line += f" upstream_status={record.upstream_status}"
    if actor:
        line += " actor=" + actor
        if record.stale:
            line += " stale=true"
    if record.feature:
        line += " feature=" + record.feature
    if model:
        line += " model=" + model
    if record.stream:
        line += " stream=true"
    line += _describe_figures(record)
    line += " request_id=" + record.trace.trace_id
    if record.warning:
        line += " warning=" + quote_value(record.warning)
    return line + " error=" + quote_value(record.error) if record.error else line


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
