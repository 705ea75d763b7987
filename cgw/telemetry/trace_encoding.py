"""Spans of finished exchanges, as OTLP: a root span with the record's own ids, and one child for each phase. Pure.

The port is public, so the root has no parent: the caller's context is a link (semantic conventions for public
endpoints). Names and attributes follow OpenTelemetry's conventions for HTTP servers and generative AI, where there are
any; the others begin with ``cgw.``. https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
from attrs import frozen

from cgw.telemetry.error_events import select_reason
from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind, Times
from cgw.telemetry.genai_names import OPERATIONS, name_provider
from cgw.telemetry.otlp_wire import (
    AttributeValue,
    build_double_encoder,
    build_integer_encoder,
    build_text_encoder,
    encode_attributes,
    encode_bytes,
    encode_text,
    encode_varint,
)
from cgw.wire.trace_context import CallerContext

MAX_CACHED = 4096
"""Encoded attributes that are kept. They repeat: routes, models, actors, user agents."""

_INTERNAL, _SERVER, _CLIENT = b"\x30\x01", b"\x30\x02", b"\x30\x03"  # Span.kind
_FAILED = b"\x18\x02"  # Status.code = ERROR
# Span.flags: sampled, and "whether the parent is remote" is known: it is not.
_OWN_FLAGS = b"\x85\x01" + struct.pack("<I", 0x101)
_ATTRIBUTES = 9

_FAULTS = frozenset(
    [
        Outcome.INTERNAL_ERROR,
        Outcome.UPSTREAM_UNREACHABLE,
        Outcome.UPSTREAM_BROKE,
        Outcome.TIMEOUT,
        Outcome.SHUTDOWN,
    ]
)

_pack_times = struct.Struct("<BQBQ").pack
_START_TAG, _END_TAG = 7 << 3 | 1, 8 << 3 | 1
_STARTED, _ENDED = int(Moment.STARTED), int(Moment.ENDED)

Mask = Callable[[str], str]


class CallSpan(msgspec.Struct, frozen=True, gc=False):
    """A call of cgw's own to another service: a span of its own, below the exchange's if it was made for one.

    Ids are lower-case hexadecimal, times are in nanoseconds since the epoch. ``error`` is ``None`` where it succeeded.
    """

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    start_ns: int
    end_ns: int
    server: str | None = None
    error: str | None = None


_PHASES = (
    (Moment.AUTHENTICATED, "authenticate"),
    (Moment.RECEIVED, "receive"),
    (Moment.PREPARED, "prepare"),
    (Moment.ADMITTED, "admit"),
    (Moment.CONNECTED, "connect"),
    (Moment.FIRST_CHUNK, "first byte"),
    (Moment.RELAYED, "relay"),
    (Moment.RECORDED, "record"),
    (Moment.SETTLED, "settle"),
)
"""The children of a root, and the moment that ends each."""


@frozen
class _Child:
    """A child of a plan: between which two moments it lasts."""

    number: int
    name: str
    start: Moment
    end: Moment
    has_failed: bool = False


def _plan_children(reached: Collection[Moment], *, has_failed: bool, never_connected: bool) -> list[_Child]:
    """Return a child for each phase that began. The one in which a failed exchange ended is marked."""
    children: list[_Child] = []
    at, unfinished = Moment.STARTED, None
    for number, (moment, name) in enumerate(_PHASES, start=1):
        end = moment
        if moment is Moment.FIRST_CHUNK and moment not in reached:
            end = Moment.ANSWERED  # a body without a byte
        if end not in reached:
            # A kept connection has no phase "connect"; one that could not be opened has nothing but it.
            if has_failed and unfinished is None and (moment is not Moment.CONNECTED or never_connected):
                unfinished = number, name
            continue
        if unfinished is None:
            children.append(_Child(number, name, at, end))
        else:
            # It ended here, and what this phase would have been did not begin.
            children.append(_Child(*unfinished, at, end, has_failed=True))
            unfinished = None
        at = end
    if unfinished is not None:
        children.append(_Child(*unfinished, at, Moment.ENDED, has_failed=True))
    return children


class _Plan:
    """Encodes the children of all exchanges that reached the same moments: ids and times are filled in, in one step.

    A step for each child would take three times as long.
    """

    def __init__(self, children: Sequence[_Child], id_offset: int) -> None:
        # Plain numbers: a list is indexed by them in half the time that it takes by members of an enum.
        moments = sorted({int(moment) for child in children for moment in (child.start, child.end)})
        # The places of what is filled in: the times, then what all children have in common, then what each has.
        at = {moment: index for index, moment in enumerate(moments)}
        id_at, common_at, constants_at = (len(moments) + index for index in range(3))
        form, constants, order = "<", list[bytes](), list[int]()
        for child in children:
            fixed = encode_text(5, child.name) + _INTERNAL + _OWN_FLAGS
            fixed += encode_bytes(15, _FAILED) if child.has_failed else b""
            # span_id, trace_id, parent_span_id, start and end, with their tags
            length = len(fixed) + 10 + 18 + 10 + 9 + 9
            begin = b"\x12" + encode_varint(length) + fixed + b"\x12\x08"
            between = bytes([id_offset + child.number, _START_TAG])
            form += f"{len(begin)}s7s2sQ29sQ"
            first = constants_at + len(constants)
            order += [first, id_at, first + 1, at[child.start], common_at, at[child.end]]
            constants += [begin, between]
        self._constants = constants
        self._pack = struct.Struct(form).pack
        self._order = itemgetter(*order) if order else None
        self._moments = moments

    def encode(self, trace: bytes, span_id: bytes, times: Times, zero_ns: int) -> bytes:
        """Return the children as fields ``spans``. ``trace`` is the field ``trace_id``; ``zero_ns`` is the clock's."""
        if self._order is None:
            return b""
        filled: list[Any] = [zero_ns + int(times[moment] * 1e9) for moment in self._moments]  # type: ignore[operator]
        filled += (span_id[:7], b"\x22\x08" + span_id + trace + b"\x41", *self._constants)
        return self._pack(*self._order(filled))


_REQUEST_BYTES = build_integer_encoder(_ATTRIBUTES, "http.request.body.size")
_RESPONSE_BYTES = build_integer_encoder(_ATTRIBUTES, "http.response.size")
_CHUNKS = build_integer_encoder(_ATTRIBUTES, "cgw.response.chunks")
_INPUT_TOKENS = build_integer_encoder(_ATTRIBUTES, "gen_ai.usage.input_tokens")
_OUTPUT_TOKENS = build_integer_encoder(_ATTRIBUTES, "gen_ai.usage.output_tokens")
_CACHED_TOKENS = build_integer_encoder(_ATTRIBUTES, "gen_ai.usage.cache_read.input_tokens")
_EVENT_ID = build_text_encoder(_ATTRIBUTES, "cgw.event.id")
_FIRST_BYTE = build_double_encoder(_ATTRIBUTES, "cgw.time_to_first_byte")
_OVERHEAD = build_double_encoder(_ATTRIBUTES, "cgw.overhead")

# What decides about the attributes with few values.
_read_shape = attrgetter(
    "method", "route", "path", "protocol", "status", "outcome", "feature", "model", "provider", "stream",
    "upstream_status", "is_reused", "source", "usage_quality",
)  # fmt: skip
_read_numbers = attrgetter(
    "request_bytes", "response_bytes", "chunks", "prompt_tokens", "completion_tokens", "cache_read_tokens"
)


class TraceEncoder:
    """Encodes records, each as fields ``spans`` of ``ScopeSpans``. ``mask`` hides credentials. For one thread."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        # Attributes by the values that they are made of, encoded and masked.
        self._cache: dict[tuple[object, ...], bytes] = {}
        self._plans: dict[tuple[object, ...], _Plan] = {}

    def encode_exchange(self, record: ExchangeRecord) -> bytes:
        """Return the spans of one exchange: the root first."""
        times = record.times
        started, ended = times[_STARTED] or 0.0, times[_ENDED]
        start_ns = int(record.started_at * 1e9)
        # Added to each of the times: one rounding for all, so that no child ends after the root.
        zero_ns = start_ns - int(started * 1e9)
        end_ns = zero_ns + int((started if ended is None else ended) * 1e9)
        trace_id, span_id = bytes.fromhex(record.trace.trace_id), bytes.fromhex(record.trace.span_id)
        trace = b"\x0a\x10" + trace_id
        parts = [
            trace,
            b"\x12\x08",
            span_id,
            _pack_times(_START_TAG, start_ns, _END_TAG, end_ns),
            self._encode_shape(record),
            self._encode_texts(record),
        ]
        request_bytes, response_bytes, chunks, input_tokens, output_tokens, cached_tokens = _read_numbers(record)
        if request_bytes is not None:
            parts.append(_REQUEST_BYTES(request_bytes))
        if response_bytes is not None:
            parts.append(_RESPONSE_BYTES(response_bytes))
        if chunks is not None:
            parts.append(_CHUNKS(chunks))
        if input_tokens is not None:
            parts.append(_INPUT_TOKENS(input_tokens))
        if output_tokens is not None:
            parts.append(_OUTPUT_TOKENS(output_tokens))
        if cached_tokens:
            parts.append(_CACHED_TOKENS(cached_tokens))
        _, first_byte, _, overhead = record.measure()
        if first_byte is not None:
            parts.append(_FIRST_BYTE(first_byte))
        if overhead is not None:
            parts.append(_OVERHEAD(overhead))
        if record.trace.caller is not None:
            parts.append(_encode_link(record.trace.caller))
        if record.error is not None:
            parts.append(self._encode_error(record))
        root = b"".join(parts)
        spans = b"\x12" + encode_varint(len(root)) + root
        if record.kind is RequestKind.EXCHANGE:
            spans += self._find_plan(record, span_id).encode(trace, span_id, times, zero_ns)
        return spans

    def encode_call(self, call: CallSpan) -> bytes:
        """Return the span of one call."""
        parts = [
            encode_bytes(1, bytes.fromhex(call.trace_id)) + encode_bytes(2, bytes.fromhex(call.span_id)),
            encode_text(5, call.name) + _CLIENT + _OWN_FLAGS,
            _pack_times(_START_TAG, call.start_ns, _END_TAG, call.end_ns),
            encode_attributes(_ATTRIBUTES, {"server.address": call.server}),
        ]
        if call.parent_span_id is not None:
            parts.append(encode_bytes(4, bytes.fromhex(call.parent_span_id)))
        if call.error is not None:
            parts.append(encode_bytes(15, _FAILED + encode_text(2, self._mask(call.error))))
        return encode_bytes(2, b"".join(parts))

    def _find_plan(self, record: ExchangeRecord, span_id: bytes) -> _Plan:
        # Children have the root's id but for the last byte, of which they take small values, or the next larger ones.
        id_offset = len(_PHASES) if span_id[7] <= len(_PHASES) else 0
        # Types tell which of the times are None, in one step.
        key = record.outcome, id_offset, *map(type, record.times)
        plan = self._plans.get(key)
        if plan is None:
            outcome = record.outcome
            has_failed, never_connected = outcome is not Outcome.OK, outcome is Outcome.UPSTREAM_UNREACHABLE
            moments = {moment for moment in Moment if record.times[moment] is not None}
            children = _plan_children(moments, has_failed=has_failed, never_connected=never_connected)
            # There are few: moments are reached in their order.
            plan = self._plans[key] = _Plan(children, id_offset)
        return plan

    def _encode_shape(self, record: ExchangeRecord) -> bytes:
        """Return name, kind, status, and the attributes with few values together, which most exchanges share."""
        key = _read_shape(record), record.error is None
        return self._cache.get(key) or self._keep(key, self._build_shape(record))

    def _build_shape(self, record: ExchangeRecord) -> bytes:
        status, outcome, model = record.status, record.outcome, record.model
        is_fault = outcome in _FAULTS or (status or 0) >= 500
        attributes: dict[str, AttributeValue | None] = {
            "http.request.method": self._mask(record.method),
            "http.route": record.route,
            "url.path": self._mask(record.path),
            "network.protocol.version": record.protocol.partition("/")[2] or None,
            "http.response.status_code": status,
            "cgw.outcome": outcome.value,
            "cgw.feature": record.feature,
            "cgw.actor.source": record.source,
            "cgw.upstream.status_code": record.upstream_status,
            "cgw.upstream.connection_reused": record.is_reused,
            "cgw.usage.quality": record.usage_quality,
            "gen_ai.request.stream": record.stream,
        }
        if is_fault:
            attributes["error.type"] = outcome.value if outcome in _FAULTS else str(status)
        if record.provider is not None:
            # gen_ai.system is the older name, which many tools still read.
            attributes["gen_ai.provider.name"] = attributes["gen_ai.system"] = name_provider(record.provider)
            attributes["gen_ai.operation.name"] = OPERATIONS.get(record.feature or "")
        if model is not None:
            attributes["gen_ai.request.model"] = self._mask(model.partition("/")[2] or model)
        # A name may have few values, so a path that no route has is not in it.
        name = f"{record.method} {record.route}" if record.route else record.method
        shape = encode_text(5, self._mask(name)) + _SERVER + _OWN_FLAGS + encode_attributes(_ATTRIBUTES, attributes)
        return shape + encode_bytes(15, _FAILED) if is_fault and record.error is None else shape

    def _encode_texts(self, record: ExchangeRecord) -> bytes:
        """Return the attributes with the caller's values, and the event's id, which is never the same."""
        key = ("texts", record.actor, record.user_agent)
        texts = self._cache.get(key)
        if texts is None:
            agent = None if record.user_agent is None else self._mask(record.user_agent)
            actor = None if record.actor is None else self._mask(record.actor)
            attributes: dict[str, AttributeValue | None] = {"actor.id": actor, "user_agent.original": agent}
            texts = self._keep(key, encode_attributes(_ATTRIBUTES, attributes))
        if record.event_id is None:
            return texts
        return texts + _EVENT_ID(record.event_id)

    def _encode_error(self, record: ExchangeRecord) -> bytes:
        message = self._mask(select_reason(record) or "")
        is_fault = record.outcome in _FAULTS or (record.status or 0) >= 500
        if is_fault:
            return encode_bytes(15, _FAILED + encode_text(2, message))
        # A refusal is no error of the server's (semantic conventions for HTTP), but its reason is worth knowing.
        return encode_attributes(_ATTRIBUTES, {"cgw.refusal": message})

    def _keep(self, key: tuple[object, ...], encoded: bytes) -> bytes:
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()  # a flood of different values; the usual ones are back at once
        self._cache[key] = encoded
        return encoded


def _encode_link(caller: CallerContext) -> bytes:
    flags = 0x300 | caller.is_sampled  # remote, and that is known
    ids = encode_bytes(1, bytes.fromhex(caller.trace_id)) + encode_bytes(2, bytes.fromhex(caller.span_id))
    return encode_bytes(13, ids + b"\x35" + struct.pack("<I", flags))
