"""Readings as OTLP: an ``ExportMetricsServiceRequest`` in Protocol Buffers' wire format. Pure.

Numbers of fields: https://github.com/open-telemetry/opentelemetry-proto, ``metrics/v1/metrics.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from cgw.telemetry.metrics import Exemplar, HistogramValue, Metric, MetricKind, MetricReading
from cgw.telemetry.otlp_wire import encode_attributes, encode_bytes, encode_text, encode_varint

_NANOSECONDS = 10**9
_CUMULATIVE = 2  # of AggregationTemporality: values count from the start of the process

_pack_fixed = struct.Struct("<Q").pack
_pack_double = struct.Struct("<d").pack

_FIXED64 = 1  # the wire type, of fixed64 and double


def encode_metrics(
    readings: Iterable[MetricReading], *, resource: bytes, scope: bytes, started_at: float, taken_at: float
) -> bytes:
    """Return the request for ``readings``, which count since ``started_at``; times are in Unix seconds.

    ``resource`` and ``scope`` are messages. Metrics have their names of OpenTelemetry, where there are such.
    """
    points: dict[Metric, list[bytes]] = {}
    times = _fixed(2, _to_nanoseconds(started_at)) + _fixed(3, _to_nanoseconds(taken_at))
    for reading in readings:
        points.setdefault(reading.metric, []).append(_encode_point(reading, times))
    scope_metrics = encode_bytes(1, scope) + b"".join(
        encode_bytes(2, _encode_metric(metric, encoded)) for metric, encoded in points.items()
    )
    return encode_bytes(1, encode_bytes(1, resource) + encode_bytes(2, scope_metrics))


def _encode_metric(metric: Metric, points: Sequence[bytes]) -> bytes:
    head = encode_text(1, metric.otel_name or metric.name) + encode_text(2, metric.help) + encode_text(3, metric.unit)
    data = b"".join(encode_bytes(1, point) for point in points)
    temporality = encode_varint(2 << 3) + encode_varint(_CUMULATIVE)
    if metric.kind is MetricKind.GAUGE:
        return head + encode_bytes(5, data)
    if metric.kind is MetricKind.COUNTER:
        is_monotonic = encode_varint(3 << 3) + encode_varint(1)
        return head + encode_bytes(7, data + temporality + is_monotonic)
    return head + encode_bytes(9, data + temporality)


def _encode_point(reading: MetricReading, times: bytes) -> bytes:
    metric, value = reading.metric, reading.value
    names = metric.otel_labels or metric.labels
    # An empty label is no label, as in Prometheus.
    attributes = {name: label for name, label in zip(names, reading.labels, strict=True) if label}
    if not isinstance(value, HistogramValue):
        return encode_attributes(7, attributes) + times + _double(4, value)
    return (
        encode_attributes(9, attributes)
        + times
        + _fixed(4, sum(value.counts))
        + _double(5, value.sum)
        + encode_bytes(6, b"".join(map(_pack_fixed, value.counts)))
        + encode_bytes(7, b"".join(map(_pack_double, metric.bounds)))
        + b"".join(encode_bytes(8, _encode_exemplar(one)) for one in value.exemplars if one is not None)
    )


def _encode_exemplar(exemplar: Exemplar) -> bytes:
    trace_id = bytes.fromhex(exemplar.trace_id)
    return _fixed(2, _to_nanoseconds(exemplar.at)) + _double(3, exemplar.value) + encode_bytes(5, trace_id)


def _fixed(field: int, value: int) -> bytes:
    return encode_varint(field << 3 | _FIXED64) + _pack_fixed(value)


def _double(field: int, value: float) -> bytes:
    return encode_varint(field << 3 | _FIXED64) + _pack_double(value)


def _to_nanoseconds(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)
