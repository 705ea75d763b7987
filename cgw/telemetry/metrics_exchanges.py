"""Metrics of exchanges: a reader of their records, called after their answers are out.

Everything that depends on labels is looked up once per set of labels; of a batch, exchanges with the same labels are
counted together, in some 2 µs each. Names and labels are those of OpenTelemetry's semantic conventions for generative
AI, and the reference's, where these have any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter, itemgetter

from attrs import define

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome
from cgw.telemetry.genai_names import OPERATIONS, name_provider
from cgw.telemetry.metrics import (
    OTHER,
    Count,
    CountSet,
    Distribution,
    Histogram,
    Metric,
    MetricKind,
    MetricReading,
    counter,
    gauge,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Those below are the conventions' own.
_OPERATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_PER_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(float(4**exponent) for exponent in range(14))

_GENAI_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_GENAI_ATTRIBUTES = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")

EXCHANGES = counter("cgw_exchanges", "Requests that were answered, or came to another end.", "route", "outcome", "code")
INTERNAL_ERRORS = counter(
    "cgw_internal_errors", "Exchanges that a bug of cgw's ended; from the start on, so 0 is told."
)
DURATION = Metric(
    "cgw_exchange_duration_seconds",
    MetricKind.HISTOGRAM,
    "The time from a request's head to the end of its response.",
    ("route", "outcome"),
    unit="s",
    bounds=_SECONDS,
)
FIRST_BYTE = Metric(
    "cgw_first_byte_seconds",
    MetricKind.HISTOGRAM,
    "The time from a request's head to the first byte of its response's body, the upstream's time included.",
    ("route",),
    unit="s",
    bounds=_SECONDS,
)
RECEIVED = counter("cgw_request_body_bytes", "Bytes of request bodies of exchanges.", "route", unit="By")
SENT = counter("cgw_response_bytes", "Bytes of responses, heads included.", "route", unit="By")
STALE = counter(
    "cgw_exchanges_with_stale_actor", "Exchanges of actors whose source could not be asked lately.", "source"
)
UPSTREAM_RESPONSES = counter(
    "cgw_upstream_responses",
    'Requests to upstreams, by the class of the status (429 by itself); without one "client_gone", otherwise "none".',
    "provider",
    "code",
)
OVERHEAD = Metric(
    "cody_gateway_latency_overhead",
    MetricKind.HISTOGRAM,
    "Milliseconds of an exchange that are cgw's own: its duration without the time that the upstream took.",
    ("provider", "feature", "stream"),
    unit="ms",
    bounds=(0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 50, 100, 250, 500, 1000, 5000),
    otel_name="cody-gateway.latency_overhead",
)
CONCURRENT = gauge(
    "cody_gateway_concurrent_upstream_requests",
    "Exchanges that have asked an upstream whose response has not ended.",
    "provider",
    "feature",
    otel_name="cody-gateway.concurrent_upstream_requests",
)
TRACED = counter(
    "cody_gateway_fireworks_traced_requests",
    "Requests to Fireworks with X-Fireworks-Genie, which has it trace them.",
    otel_name="cody-gateway.fireworks-traced-requests",
)
OPERATION = Metric(
    "gen_ai_client_operation_duration_seconds",
    MetricKind.HISTOGRAM,
    "The time from asking the upstream to the end of its response.",
    (*_GENAI_LABELS, "error_type"),
    unit="s",
    bounds=_OPERATION_SECONDS,
    otel_name="gen_ai.client.operation.duration",
    otel_labels=(*_GENAI_ATTRIBUTES, "error.type"),
)
FIRST_TOKEN = Metric(
    "gen_ai_server_time_to_first_token_seconds",
    MetricKind.HISTOGRAM,
    "The time from asking the upstream to the first bytes of a streamed response.",
    _GENAI_LABELS,
    unit="s",
    bounds=_FIRST_TOKEN_SECONDS,
    otel_name="gen_ai.server.time_to_first_token",
    otel_labels=_GENAI_ATTRIBUTES,
)
PER_TOKEN = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    MetricKind.HISTOGRAM,
    "The time from the first to the last bytes of a streamed response, per token after the first.",
    _GENAI_LABELS,
    unit="s",
    bounds=_PER_TOKEN_SECONDS,
    otel_name="gen_ai.server.time_per_output_token",
    otel_labels=_GENAI_ATTRIBUTES,
)
TOKENS = Metric(
    "gen_ai_client_token_usage",
    MetricKind.HISTOGRAM,
    "Tokens of exchanges whose usage is known, by whether they went in or came out.",
    (*_GENAI_LABELS, "gen_ai_token_type"),
    unit="{token}",
    bounds=_TOKENS,
    otel_name="gen_ai.client.token.usage",
    otel_labels=(*_GENAI_ATTRIBUTES, "gen_ai.token.type"),
)

EXCHANGE_METRICS = (
    EXCHANGES, INTERNAL_ERRORS, DURATION, FIRST_BYTE, RECEIVED, SENT, STALE, UPSTREAM_RESPONSES, OVERHEAD, CONCURRENT,
    TRACED, OPERATION, FIRST_TOKEN, PER_TOKEN, TOKENS,
)  # fmt: skip

MAX_MODELS = 50
"""Models with a label of their own; actors with patterns may ask for any name, so only those that answered get one."""

MAX_KINDS = 4096
"""Kinds of exchange whose series are remembered; a look-up of all labels takes 10 µs."""

_ERROR_TYPES = {
    Outcome.TIMEOUT: "timeout",
    Outcome.UPSTREAM_UNREACHABLE: "upstream_unreachable",
    Outcome.UPSTREAM_BROKE: "upstream_broke",
    Outcome.CLIENT_GONE: "client_gone",
    Outcome.SHUTDOWN: "shutdown",
    Outcome.INTERNAL_ERROR: "internal_error",
}

# What decides about the series, besides whether an upstream was asked.
_read_kind = attrgetter(
    "route", "outcome", "status", "provider", "feature", "model", "stream", "upstream_status", "kind"
)
_read_moments = itemgetter(Moment.STARTED, Moment.ADMITTED, Moment.FIRST_CHUNK, Moment.RELAYED, Moment.ENDED)

_STARTED, _ADMITTED, _ENDED = int(Moment.STARTED), int(Moment.ADMITTED), int(Moment.ENDED)


class ExchangeMetrics:
    """Counts exchanges: :meth:`note` is a reader of their records. Belongs to the Trio thread."""

    def __init__(self) -> None:
        self._exchanges = CountSet(EXCHANGES)
        self._duration = Histogram(DURATION)
        self._first_byte = Histogram(FIRST_BYTE)
        self._received = CountSet(RECEIVED)
        self._sent = CountSet(SENT)
        self._stale = CountSet(STALE)
        self._upstream_responses = CountSet(UPSTREAM_RESPONSES)
        self._overhead = Histogram(OVERHEAD)
        self._operation = Histogram(OPERATION)
        self._first_token = Histogram(FIRST_TOKEN)
        self._per_token = Histogram(PER_TOKEN)
        self._tokens = Histogram(TOKENS)
        self._internal_errors = 0
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._models: set[str] = set()

    def note(self, records: Sequence[ExchangeRecord]) -> None:
        """Count a batch of exchanges."""
        groups: dict[_Kind, list[ExchangeRecord]] = {}
        kinds = self._kinds
        for record in records:
            key = _read_kind(record), record.times[_ADMITTED] is None
            kind = kinds.get(key) or self._add(key, record)
            if kind in groups:
                groups[kind].append(record)
            else:
                groups[kind] = [record]
            if record.stale:
                self._stale.find(record.source or OTHER).value += 1
            if record.bug is not None:
                self._internal_errors += 1
        for kind, group in groups.items():
            kind.count(group)

    def read(self) -> Iterator[MetricReading]:
        """Return the readings of all metrics."""
        yield INTERNAL_ERRORS.read(self._internal_errors)
        yield from chain.from_iterable(one.read() for one in self._list_all())

    def count_collapsed(self) -> Iterator[tuple[Metric, int]]:
        """Return, for each metric that has too many sets of labels, how many became one."""
        for one in self._list_all():
            if one.collapsed:
                yield one.metric, one.collapsed

    def _list_all(self) -> tuple[Histogram | CountSet, ...]:
        return (
            self._exchanges, self._duration, self._first_byte, self._received, self._sent, self._stale,
            self._upstream_responses, self._overhead, self._operation, self._first_token,
            self._per_token, self._tokens,
        )  # fmt: skip

    def _add(self, key: tuple[object, ...], record: ExchangeRecord) -> _Kind:
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        kind = self._kinds[key] = self._build(record)
        return kind

    def _build(self, record: ExchangeRecord) -> _Kind:
        route = record.route or record.kind.value  # a path of a client's is no label
        code = "none" if record.status is None else f"{record.status // 100}xx"
        is_upstream = record.provider is not None and record.times[_ADMITTED] is not None
        return _Kind(
            exchanges=self._exchanges.find(route, record.outcome.value, code),
            duration=self._duration.find(route, record.outcome.value),
            received=self._received.find(route),
            sent=self._sent.find(route),
            upstream=self._build_upstream(record, route, record.provider or OTHER) if is_upstream else None,
        )

    def _build_upstream(self, record: ExchangeRecord, route: str, provider: str) -> _UpstreamKind:
        feature = record.feature or OTHER
        labels = (
            OPERATIONS.get(feature, feature),
            name_provider(provider),
            self._choose_model(record.model, record.upstream_status),
        )
        return _UpstreamKind(
            responses=self._upstream_responses.find(provider, describe_code(record)),
            first_byte=self._first_byte.find(route),
            overhead=self._overhead.find(provider, feature, "true" if record.stream else "false"),
            operation=self._operation.find(*labels, choose_error_type(record)),
            input_tokens=self._tokens.find(*labels, "input"),
            output_tokens=self._tokens.find(*labels, "output"),
            stream=(self._first_token.find(*labels), self._per_token.find(*labels)) if record.stream else None,
        )

    def _choose_model(self, model: str | None, upstream_status: int | None) -> str:
        name = (model or "").partition("/")[2] or model or OTHER
        if name in self._models:
            return name
        if upstream_status is None or not 200 <= upstream_status < 300 or len(self._models) >= MAX_MODELS:
            return OTHER
        self._models.add(name)
        return name


@define(eq=False)
class _UpstreamKind:
    """The series of exchanges that asked an upstream; ``stream``: those of first token, and of each further token."""

    responses: Count
    first_byte: Distribution
    overhead: Distribution
    operation: Distribution
    input_tokens: Distribution
    output_tokens: Distribution
    stream: tuple[Distribution, Distribution] | None

    def count(self, records: Sequence[ExchangeRecord]) -> None:
        self.responses.value += len(records)
        # Looked up once for all records.
        operations, overheads, first_bytes = self.operation.gathered, self.overhead.traced, self.first_byte.traced
        outputs, inputs, stream = self.output_tokens.gathered, self.input_tokens.gathered, self.stream
        for record in records:
            start, asked, first, relayed, end = _read_moments(record.times)
            if start is None or asked is None or relayed is None or end is None:
                continue
            upstream, seconds = relayed - asked, end - start
            at, trace_id = record.started_at + seconds, record.trace.trace_id
            tokens = record.completion_tokens
            operations.append(upstream)
            overheads.append((trace_id, (seconds - upstream) * 1000, at))
            if first is not None:
                first_bytes.append((trace_id, first - start, at))
                if stream is not None:
                    stream[0].gathered.append(first - asked)
                    if tokens is not None and tokens > 1:
                        stream[1].gathered.append((relayed - first) / (tokens - 1))
            if tokens is not None:
                outputs.append(tokens)
            if record.prompt_tokens is not None:
                inputs.append(record.prompt_tokens)
        for one in (self.first_byte, self.overhead, self.operation, self.input_tokens, self.output_tokens):
            one.count_gathered()
        for one in stream or ():
            one.count_gathered()


@define(eq=False)
class _Kind:
    """The series of exchanges that have all labels in common."""

    exchanges: Count
    duration: Distribution
    received: Count
    sent: Count
    upstream: _UpstreamKind | None

    def count(self, records: Sequence[ExchangeRecord]) -> None:
        """Count exchanges of this kind."""
        received = sent = 0
        durations = self.duration.traced
        for record in records:
            times = record.times
            seconds = (times[_ENDED] or 0.0) - (times[_STARTED] or 0.0)
            durations.append((record.trace.trace_id, seconds, record.started_at + seconds))
            received += record.request_bytes or 0
            sent += record.response_bytes or 0
        self.duration.count_gathered()
        self.exchanges.value += len(records)
        self.received.value += received
        self.sent.value += sent
        if self.upstream is not None:
            self.upstream.count(records)


def describe_code(record: ExchangeRecord) -> str:
    """Return the label of an upstream's response: the class of its status, but 429 by itself.

    Where no head came, ``none``, or ``client_gone``: editors cancel many completions before they begin, which is no
    failure of the upstream.
    """
    status = record.upstream_status
    if status is None:
        return "client_gone" if record.outcome is Outcome.CLIENT_GONE else "none"
    return "429" if status == 429 else f"{status // 100}xx"


def choose_error_type(record: ExchangeRecord) -> str:
    """Return OpenTelemetry's ``error.type``: the upstream's status, or the outcome; nothing where there is no error."""
    if record.upstream_status is not None and record.upstream_status >= 400:
        return str(record.upstream_status)
    return _ERROR_TYPES.get(record.outcome, "")
