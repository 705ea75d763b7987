"""Lines of exchanges as JSON, a batch at a time, from parts that are encoded and masked once. Pure.

A line is a shape, which has what most exchanges share, filled with its caller's texts and its own numbers::

    {"severity":"INFO","time":"%s.%06d+00:00","message":"POST /v1/… status=200 outcome=ok%s feature=…", … "exchange":{…
                                └ own                      of the caller: " actor=acme" ┘

It is the line of :meth:`cgw.telemetry.json_lines.JsonLines.render`, byte for byte, at half of its cost. Parts that
have to be masked, or are long, are not kept, and neither is what is never the same: errors and warnings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import TypeVar

import msgspec

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, RequestKind
from cgw.telemetry.exchange_text import describe_actor, describe_request, describe_target
from cgw.telemetry.log_lines import format_second, name_severity, render_each
from cgw.telemetry.masking import SecretMask
from cgw.wire.trace_context import RequestTrace

MAX_CACHED = 4096
"""Shapes, and callers, that are kept."""

MAX_CACHED_CHARACTERS = 256
"""The texts of a shape, or of a caller, that are kept: a path or a user agent may be as long as a head. Whoever sends a
flood of different ones, for which no token is needed, then takes some 4 MB of memory."""

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode

# What decides about a shape. An error or a bug is in it only so that it is seen without a look of its own.
_read_shape = attrgetter(
    "method", "path", "protocol", "status", "outcome", "upstream_status", "route", "feature", "provider", "model",
    "stream", "trace.is_wanted", "kind", "error", "warning", "bug",
)  # fmt: skip
_read_caller = attrgetter("actor", "source", "stale", "user_agent", "remote_ip")
_read_figures = attrgetter(
    "is_reused", "request_bytes", "response_bytes", "chunks", "prompt_tokens", "completion_tokens",
    "cache_read_tokens", "usage_quality", "event_id", "stale",
)  # fmt: skip
_read_moments = itemgetter(Moment.STARTED, Moment.ADMITTED, Moment.FIRST_CHUNK, Moment.RELAYED, Moment.ENDED)


class _Figures(msgspec.Struct, omit_defaults=True, gc=False):
    """The end of the fields of an exchange: those that are its own."""

    duration_ms: float
    # None is the default, so that what is unknown is left out.
    first_byte_ms: float | None = None
    upstream_ms: float | None = None
    overhead_ms: float | None = None
    connection_reused: bool | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    chunks: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cache_read_tokens: int | None = None
    usage_quality: str | None = None
    event_id: str | None = None
    stale: bool | None = None


class ExchangeLines:
    """Renders lines of exchanges. Safe to call from any thread.

    ``service_context`` and ``labels`` are JSON. ``render_any`` renders the exchanges that have no usual line.
    ``is_traced`` tells whether the spans of a request are sent; it may look at ``is_wanted`` of the trace only.
    """

    def __init__(
        self,
        mask: SecretMask,
        *,
        service_context: str,
        labels: str | None,
        trace_prefix: str,
        is_traced: Callable[[RequestTrace], bool] | None,
        render_any: Callable[[ExchangeRecord], bytes | None],
    ) -> None:
        self._mask = mask
        self._constants = f'"logger":"cgw.exchange","serviceContext":{service_context}'
        if labels is not None:
            self._constants += f',"logging.googleapis.com/labels":{labels}'
        self._constants += f',"logging.googleapis.com/trace":"{_quote(trace_prefix)}'
        self._is_traced = is_traced
        self._render_any = render_any
        self._second = 0, format_second(0)  # most lines have that of the one before
        self._shapes: dict[tuple[object, ...], str] = {}
        self._callers: dict[tuple[object, ...], tuple[str, str, str]] = {}

    def render(self, records: Sequence[ExchangeRecord]) -> list[bytes | None]:
        """Return the lines; ``None`` for requests that are no exchanges, for errors, and for what cannot be encoded."""
        return render_each(records, self._render)

    def _render(self, record: ExchangeRecord) -> bytes | None:
        shape = self._shapes.get(_read_shape(record)) or self._add_shape(record)
        caller = self._callers.get(_read_caller(record)) or self._add_caller(record)
        start, asked, first, relayed, end = _read_moments(record.times)
        size = record.response_bytes
        if shape is None or caller is None or start is None or end is None or size is None:
            return self._render_any(record)
        actor_text, client_fields, actor_fields = caller
        trace, seconds = record.trace, end - start
        trace_id, ended_at = trace.trace_id, record.started_at + seconds
        second, second_text = self._second
        if not 0 <= ended_at - second < 1:
            second, second_text = self._second = int(ended_at), format_second(int(ended_at))
        microseconds = round((ended_at - second) * 1_000_000)
        if not 0 <= microseconds < 1_000_000:
            return self._render_any(record)
        line = shape % (
            second_text, microseconds, actor_text, trace_id, trace.span_id, trace_id, size, client_fields, seconds,
            actor_fields,
        )  # fmt: skip
        upstream = None if asked is None or relayed is None else relayed - asked
        end_fields = _Figures(
            round(seconds * 1000, 3),
            None if first is None else round((first - start) * 1000, 3),
            None if upstream is None else round(upstream * 1000, 3),
            None if upstream is None else round((seconds - upstream) * 1000, 3),
            *_read_figures(record),
        )
        return line.encode() + _encode(end_fields)[1:] + b"}\n"

    def _add_shape(self, record: ExchangeRecord) -> str | None:
        """Return the line's form, with a place for each of the values that :meth:`render` fills in."""
        level = record.level
        if record.kind is not RequestKind.EXCHANGE or level >= logging.ERROR:
            return None
        if record.error is not None or record.warning is not None or record.bug is not None:
            return None
        if not self._may_keep(record.method, record.path, record.protocol, record.model or ""):
            return None
        request = {"requestMethod": record.method, "requestUrl": record.path, "status": record.status}
        head = {"outcome": record.outcome, "route": record.route}
        target = {
            "feature": record.feature,
            "provider": record.provider,
            "model": record.model,
            "stream": record.stream,
            "upstream_status": record.upstream_status,
        }
        sampled = {}
        if self._is_traced is not None:
            sampled["logging.googleapis.com/trace_sampled"] = self._is_traced(record.trace)
        # Texts between the values; those of clients may hold a "%".
        texts = (
            f'{{"severity":"{name_severity(level)}","time":"',
            f'","message":"{_quote(describe_request(record))}',
            f'{_quote(describe_target(record))}",{self._constants}',
            '","logging.googleapis.com/spanId":"',
            f'"{_encode_fields(sampled)},"request_id":"',
            f'","httpRequest":{{{_encode_fields(request)[1:]},"responseSize":"',
            '"',
            ',"latency":"',
            f's"{_encode_fields({"protocol": record.protocol})}}},"exchange":{{{_encode_fields(head)[1:]}',
            f"{_encode_fields(target)},",
        )
        values = ("%s.%06d+00:00", "%s", "%s", "%s", "%s", "%d", "%s", "%.6f", "%s", "")
        shape = "".join(text.replace("%", "%%") + value for text, value in zip(texts, values, strict=True))
        return _keep(self._shapes, _read_shape(record), shape)

    def _add_caller(self, record: ExchangeRecord) -> tuple[str, str, str] | None:
        """Return what the message says of the actor, the fields of the client, and those of the actor."""
        if not self._may_keep(record.actor or "", record.source or "", record.user_agent or "", record.remote_ip or ""):
            return None
        caller = (
            _quote(describe_actor(record)),
            _encode_fields({"userAgent": record.user_agent, "remoteIp": record.remote_ip}),
            _encode_fields({"actor": record.actor, "source": record.source}),
        )
        return _keep(self._callers, _read_caller(record), caller)

    def _may_keep(self, *texts: str) -> bool:
        # Texts that may hold a secret are never kept. No secret lies in two of them: each is a value of its own.
        text = "\n".join(texts)
        if len(text) > MAX_CACHED_CHARACTERS or self._mask.may_change(text):
            return False
        return text.isascii() or text == text.encode("utf-8", "replace").decode()  # no lone surrogates


def _keep(cache: dict[tuple[object, ...], T], key: tuple[object, ...], value: T) -> T:
    if len(cache) >= MAX_CACHED:
        cache.clear()  # a flood of different values; the usual ones are back at once
    cache[key] = value
    return value


def _quote(text: str) -> str:
    """Return ``text`` as within a JSON string."""
    return _encode(text).decode()[1:-1]


def _encode_fields(values: Mapping[str, object]) -> str:
    """Return the known ones of ``values`` as fields of an object that has others before them."""
    known = {name: value for name, value in values.items() if value is not None}
    return "," + _encode(known).decode()[1:-1] if known else ""
