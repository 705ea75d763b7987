"""The state of one exchange while it runs, and what follows from it, its usage event included. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from cgw.errors import Refusal, UpstreamError, UpstreamTimeout
from cgw.events.records import ExchangeFigures, build_exchanged, completions_finished, embeddings_finished
from cgw.gateway.admission import AdmittedRequest
from cgw.gateway.answer import answer_status
from cgw.gateway.journal import Journal
from cgw.gateway.own_answers import CUT, build_failure_headers, explain_failure, explain_late_upstream
from cgw.gateway.parts import Gateway
from cgw.gateway.phases import FOLLOWING, Phase
from cgw.limits.tokens import count_tokens
from cgw.model import BodyWindow, EventOutcome, Usage, UsageEvent, UsageQuality
from cgw.providers.dialect import Dialect, PreparedRequest
from cgw.telemetry.exchange_record import Moment, Outcome
from cgw.transport.client_side import ClientSide
from cgw.transport.relay import RelayEnd, RelayOutcome
from cgw.wire.messages import ResponseHead
from cgw.wire.windows import BodyWindowCollector

CLIENT_CLOSED_REQUEST = 499
"""The status in usage events of clients that left before there was one; nginx's convention."""

_UNANSWERED = (None, CUT.status)

_EVENT_OUTCOMES = {
    Outcome.OK: EventOutcome.COMPLETED,
    Outcome.REFUSED: EventOutcome.REFUSED,
    Outcome.CLIENT_GONE: EventOutcome.CLIENT_GONE,
    Outcome.UPSTREAM_UNREACHABLE: EventOutcome.UPSTREAM_BROKEN,
    Outcome.UPSTREAM_BROKE: EventOutcome.UPSTREAM_BROKEN,
    Outcome.TIMEOUT: EventOutcome.TIMED_OUT,
    Outcome.INTERNAL_ERROR: EventOutcome.INTERNAL_ERROR,
}


class ExchangeState:
    """The state of one exchange. ``status`` is the one that the client is answered, ``None`` before there is one.

    ``is_charged`` is true if the exchange counts on the actor's limits: the upstream answered 2xx, whoever left after
    that.
    """

    # On the class, as most exchanges change a few of them only.
    phase = Phase.RECEIVING
    status: int | None = None
    gone_in: Phase | None = None
    upstream_head: ResponseHead | None = None
    is_charged = False
    is_upstream_complete = False
    relayed_at: float | None = None  # when the last of the upstream's answer came, if that is known
    body: BodyWindow | None = None  # once it is recorded
    used_tokens: int | None = None

    def __init__(self, client: ClientSide, route: str, read_time: Callable[[], float]) -> None:
        self.journal = Journal(client.head, client.peer, route, read_time)
        self._times = self.journal.times
        self._read_time = read_time
        self._client = client
        self.window = BodyWindowCollector()

    @property
    def is_cut(self) -> bool:
        """True if cgw ends the exchange before its response has begun: it was answered by nobody, and nobody left."""
        return self.status in _UNANSWERED and self.gone_in is None and not self._client.is_response_started

    def move(self, phase: Phase, at: float | None = None) -> None:
        """Enter ``phase``, and note the moment: ``at``, by default now.

        An illegal move is a bug, and raises :exc:`RuntimeError`.
        """
        if phase not in FOLLOWING[self.phase]:
            raise RuntimeError(f"an exchange cannot go from {self.phase.name} to {phase.name}")
        self.phase = phase
        self._times[phase] = self._read_time() if at is None else at

    def note_head(self, head: ResponseHead, connected_at: float | None, asked_at: float | None) -> int:
        """Note the head of the upstream's response; return the status that the client is answered.

        ``connected_at`` is when its connection was opened, ``None`` for one that was kept;
        ``asked_at`` is when the request was sent, ``None`` where the upstream's part has begun before.
        """
        status, record = head.status, self.journal.record
        record.upstream_status, record.is_reused = status, connected_at is None
        self._times[Moment.CONNECTED] = connected_at
        if asked_at is not None:
            # Finding the connection and encoding the request were no time of the upstream.
            self._times[Moment.ADMITTED] = asked_at
        self.upstream_head = head
        self.is_charged = 200 <= status < 300
        answered = self.status = answer_status(status)
        return answered

    def read_usage(self, dialect: Dialect, prepared: PreparedRequest) -> Usage | None:
        """Return the usage that the relayed body tells, and note its tokens; ``None`` if no answer came."""
        body = self.body = self.window.close(is_complete=self.is_upstream_complete)
        if self.upstream_head is None:
            return None
        usage = dialect.read_usage(prepared, self.upstream_head, body)
        self.used_tokens = count_tokens(usage, body.total_bytes)
        return usage

    def build_event(self, admitted: AdmittedRequest, provider: str, usage: Usage | None) -> UsageEvent:
        """Return the usage event of an exchange whose upstream was asked.

        ``usage`` is ``None`` where no answer came: then only the prompt's length is known.
        """
        prepared, record, find = admitted.prepared, self.journal.record, self._client.head.header
        uid, anonymous_uid = find(b"x-sourcegraph-actor-uid"), find(b"x-sourcegraph-actor-anonymous-uid")
        record.chunks = self.window.chunks or None
        if usage is None:
            usage = Usage(prompt_character_count=prepared.prompt_character_count)
        else:
            self.journal.used(usage)
        exchange, upstream_ms = self._describe_exchange()
        event = completions_finished(
            admitted.actor,
            feature=admitted.feature,
            model=prepared.model,
            provider=provider,
            usage=usage,
            resolved_status=self.status or CLIENT_CLOSED_REQUEST,
            upstream_status=record.upstream_status,
            upstream_request_duration_ms=upstream_ms,
            sg_actor_id=None if uid is None else uid.decode("utf-8", "replace"),
            sg_actor_anonymous_uid=None if anonymous_uid is None else anonymous_uid.decode("utf-8", "replace"),
            metadata=prepared.metadata,
            exchange=exchange,
        )
        record.event_id = event.id
        return event

    def build_embeddings_event(
        self, admitted: AdmittedRequest, provider: str, tokens: int | None, quality: UsageQuality
    ) -> UsageEvent:
        """Return the usage event of embeddings. ``tokens`` is what they took, ``None`` where there are none."""
        prepared, record = admitted.prepared, self.journal.record
        if tokens is not None:
            self.journal.used(Usage(prompt_token_count=tokens, quality=quality))
        exchange, upstream_ms = self._describe_exchange()
        event = embeddings_finished(
            admitted.actor,
            model=prepared.model,
            provider=provider,
            input_character_count=prepared.prompt_character_count,
            tokens_used=tokens,
            quality=quality,
            resolved_status=self.status or CLIENT_CLOSED_REQUEST,
            upstream_status=record.upstream_status,
            upstream_request_duration_ms=upstream_ms,
            metadata=prepared.metadata,
            exchange=exchange,
        )
        record.event_id = event.id
        return event

    def _describe_exchange(self) -> tuple[ExchangeFigures, int]:
        """Return what a usage event tells of the exchange, and the milliseconds that the upstream took."""
        record = self.journal.record
        # The order of Moment, up to the one that has come.
        started, _, _, _, asked, _, _, first, relayed, _, _, _ = self._times
        if started is None or asked is None or relayed is None:
            raise RuntimeError("an exchange whose upstream was not asked has no usage event")
        if record.outcome is not Outcome.SHUTDOWN:
            outcome = _EVENT_OUTCOMES[record.outcome]
        elif self.gone_in is not None:
            outcome = EventOutcome.CLIENT_GONE
        else:  # nothing was noted: it goes well so far, or was cut off
            outcome = EventOutcome.COMPLETED if self.is_upstream_complete else EventOutcome.SHUTDOWN
        exchange = build_exchanged(
            record.trace.trace_id,
            outcome,
            record.started_at,
            record.started_at + relayed - started,
            record.request_bytes,
            self.window.total_bytes,
            record.chunks,
            None if first is None else (first - started) * 1000,
            (asked - started) * 1000,
        )
        return exchange, round((relayed - asked) * 1000)

    def note_refusal(self, refusal: Refusal) -> None:
        """Note that cgw itself answers: before recording, as the usage event tells the status."""
        self.status = refusal.status
        self.journal.refused(refusal)

    def note_failure(self, error: UpstreamError, provider: str, admitted: AdmittedRequest) -> Refusal | None:
        """Note why there is no complete response; return what to refuse with, ``None`` if a response has begun."""
        self.journal.upstream_failed(error)
        if self._client.is_response_started:
            return None
        refusal = explain_failure(error, provider, build_failure_headers(admitted, self._client.head))
        self.note_refusal(refusal)
        return refusal

    def note_late(self, gateway: Gateway, deadline: float, provider: str, admitted: AdmittedRequest) -> Refusal | None:
        """Note that the upstream was too slow; see :meth:`note_failure`. ``deadline`` is that of the exchange."""
        return self.note_failure(explain_late_upstream(gateway, deadline), provider, admitted)

    def note_relayed(self, outcome: RelayOutcome) -> None:
        """Note how the upstream's answer ended."""
        self.is_upstream_complete, self.relayed_at = outcome.end is RelayEnd.COMPLETE, outcome.ended_at
        if outcome.error is not None:
            kind = UpstreamTimeout if outcome.end is RelayEnd.TIMED_OUT else UpstreamError
            self.journal.upstream_failed(kind(outcome.error))

    def note_client_gone(self) -> None:
        """Note that the client left, in the phase in which that was noticed first."""
        phase = self.gone_in = self.gone_in or self.phase
        if phase in (Phase.RECORDING, Phase.SETTLING) and self.is_upstream_complete:
            # Some SDKs hang up on the API's own last event, before HTTP's end of the body.
            self.journal.finished()
        else:
            self.journal.client_gone(phase)
