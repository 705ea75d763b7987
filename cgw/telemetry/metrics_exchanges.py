"""Metrics of exchanges: a reader of their records, called after each answer is out.

Everything that depends on labels is looked up once per set of labels; an exchange then costs one look-up and the
additions, 3 µs in all. They are counted some at a time: one by one, with the processor's caches full of what serves
requests, each would take 25 µs. Names and labels are those of OpenTelemetry's semantic conventions for generative AI,
and the reference's, where these have any.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

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

GATHERED = 64
"""Exchanges that are counted at once, in some 0.3 ms."""

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

_STARTED, _ADMITTED, _FIRST_CHUNK, _RELAYED, _ENDED = (
    int(moment) for moment in (Moment.STARTED, Moment.ADMITTED, Moment.FIRST_CHUNK, Moment.RELAYED, Moment.ENDED)
)


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
        self._gathered: list[ExchangeRecord] = []
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._models: set[str] = set()

    def note(self, record: ExchangeRecord) -> None:
        """Have one exchange counted: with :data:`GATHERED` others, or by the next reading."""
        gathered = self._gathered
        gathered.append(record)
        # A traceback keeps bodies of requests alive.
        if len(gathered) >= GATHERED or record.bug is not None:
            self._count_gathered()

    def _count_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        for record in gathered:
            self._count(record)

    def _count(self, record: ExchangeRecord) -> None:
        status, upstream_status = record.status, record.upstream_status
        key = (
            record.route, record.outcome, status and status // 100, record.provider, record.feature, record.model,
            record.stream, upstream_status, record.times[_ADMITTED] is None,
        )  # fmt: skip
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._add(key, record)
        kind.note(record)
        if record.stale:
            self._stale.find(record.source or OTHER).value += 1
        if record.bug is not None:
            self._internal_errors += 1

    def read(self) -> Iterator[MetricReading]:
        """Return the readings of all metrics."""
        self._count_gathered()
        yield INTERNAL_ERRORS.read(self._internal_errors)
        yield from chain.from_iterable(one.read() for one in self._list_all())

    def count_collapsed(self) -> Iterator[tuple[Metric, int]]:
        """Return, for each metric that has too many sets of labels, how many became one."""
        self._count_gathered()
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

    def note(self, record: ExchangeRecord, seconds: float, at: float) -> None:
        times, trace_id = record.times, record.trace.trace_id
        asked, first, relayed = times[_ADMITTED], times[_FIRST_CHUNK], times[_RELAYED]
        self.responses.value += 1
        if asked is None or relayed is None:
            return
        self.operation.observe(relayed - asked)
        self.overhead.observe_traced((seconds - (relayed - asked)) * 1000, trace_id, at)
        tokens = record.completion_tokens
        if first is not None:
            self.first_byte.observe_traced(first - (times[_STARTED] or 0.0), trace_id, at)
            if self.stream is not None:
                self.stream[0].observe(first - asked)
                if tokens is not None and tokens > 1:
                    self.stream[1].observe((relayed - first) / (tokens - 1))
        if tokens is not None:
            self.output_tokens.observe(tokens)
        if record.prompt_tokens is not None:
            self.input_tokens.observe(record.prompt_tokens)


@define(eq=False)
class _Kind:
    """The series of exchanges that have all labels in common."""

    exchanges: Count
    duration: Distribution
    received: Count
    sent: Count
    upstream: _UpstreamKind | None

    def note(self, record: ExchangeRecord) -> None:
        times = record.times
        seconds = (times[_ENDED] or 0.0) - (times[_STARTED] or 0.0)
        at = record.started_at + seconds
        self.exchanges.value += 1
        self.duration.observe_traced(seconds, record.trace.trace_id, at)
        self.received.value += record.request_bytes or 0
        self.sent.value += record.response_bytes or 0
        if self.upstream is not None:
            self.upstream.note(record, seconds, at)


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
