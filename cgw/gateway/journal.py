"""Notes of one exchange, for its usage event and its log line. Nothing is decided here."""

from __future__ import annotations

import time

import trio
from attrs import define

from cgw.errors import OutOfDescriptors, Refusal, UpstreamError, UpstreamRefusal, UpstreamTimeout, UpstreamUnreachable
from cgw.events import records
from cgw.events.kinds import Exchanged
from cgw.gateway.answer import describe_unread_timeout, read_text
from cgw.gateway.phases import Phase
from cgw.model import Actor, EventOutcome, Feature, Usage, UsageEvent, UsageQuality
from cgw.providers.dialect import PreparedRequest
from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind, begin_times
from cgw.telemetry.stack_traces import unwrap
from cgw.transport.arrival import measure_wait
from cgw.wire.messages import RequestHead, ResponseHead

CLIENT_CLOSED_REQUEST = 499
"""The status in usage events of clients that left before there was one; nginx's convention."""


_EVENT_OUTCOMES = {
    Outcome.OK: EventOutcome.COMPLETED,
    Outcome.REFUSED: EventOutcome.REFUSED,
    Outcome.CLIENT_GONE: EventOutcome.CLIENT_GONE,
    Outcome.UPSTREAM_UNREACHABLE: EventOutcome.UPSTREAM_BROKEN,
    Outcome.UPSTREAM_BROKE: EventOutcome.UPSTREAM_BROKEN,
    Outcome.TIMEOUT: EventOutcome.TIMED_OUT,
    Outcome.SHUTDOWN: EventOutcome.SHUTDOWN,
    Outcome.INTERNAL_ERROR: EventOutcome.INTERNAL_ERROR,
}


@define
class RelayFacts:
    """The facts about a relay that its usage event tells: payload and pieces, and how it ended."""

    body_bytes: int
    chunks: int
    is_complete: bool
    has_client_left: bool


class Journal:
    """Notes of one exchange, each taken once, in the order of its phases.

    ``times`` are those of its moments, by Trio's clock. ``peer`` is the client's address, ``route`` the path that its
    dialect serves.
    """

    def __init__(self, head: RequestHead, peer: str, route: str) -> None:
        self._head = head
        self._peer = peer
        self._route = route
        now = time.time()
        waited = measure_wait(head.arrived_at, now)
        self._started_at = now - waited
        self.times = begin_times(trio.current_time() - waited)
        self._actor: Actor | None = None
        self._feature: Feature | None = None
        self._provider: str | None = None
        self._prepared: PreparedRequest | None = None
        self._upstream_head: ResponseHead | None = None
        self._is_reused: bool | None = None
        self._outcome: Outcome | None = None
        self._error: str | None = None
        self._bug: BaseException | None = None
        self._request_bytes: int | None = None
        self._warning: str | None = None
        self._chunks: int | None = None
        self._usage: Usage | None = None
        self._event_id: str | None = None

    def authenticated(self, actor: Actor) -> None:
        """The request is ``actor``'s."""
        self._actor = actor
        self.times[Moment.AUTHENTICATED] = trio.current_time()

    def received(self, feature: Feature, body_bytes: int) -> None:
        """The request's body is whole."""
        self._feature, self._request_bytes = feature, body_bytes

    def prepared(self, prepared: PreparedRequest, provider: str) -> None:
        """The body is checked, and may be sent to ``provider``."""
        self._prepared, self._provider = prepared, provider

    def connected(self, at: float | None, asked_at: float) -> None:
        """The upstream answered on a connection that was opened at time ``at``, ``None`` for one that was kept.

        ``asked_at`` is when the request was sent.
        """
        self._is_reused, self.times[Moment.CONNECTED] = at is None, at
        if at is None and self._warning is None:
            # Finding the connection and encoding the request are cgw's part; connecting, and a first upstream, are not.
            self.times[Moment.ADMITTED] = asked_at

    def answered(self, head: ResponseHead) -> None:
        """The head of the upstream's response has come."""
        self._upstream_head = head

    def first_chunk(self, at: float) -> None:
        """The first bytes of the response's body came at time ``at``."""
        self.times[Moment.FIRST_CHUNK] = at

    def settled(self) -> None:
        """The limits know what was used, or will."""
        self.times[Moment.SETTLED] = trio.current_time()

    def upstream_failed(self, error: UpstreamError) -> None:
        """The upstream could not be reached, took too long, or broke its response off."""
        if isinstance(error, OutOfDescriptors | UpstreamRefusal):
            self._outcome = Outcome.REFUSED
        elif isinstance(error, UpstreamTimeout):
            self._outcome = Outcome.TIMEOUT
        elif isinstance(error, UpstreamUnreachable):
            self._outcome = Outcome.UPSTREAM_UNREACHABLE
        else:
            self._outcome = Outcome.UPSTREAM_BROKE
        self._error = str(error)

    def upstream_refused(self, reason: str) -> None:
        """The upstream's answer is told in cgw's own words; ``reason`` is the upstream's."""
        self._outcome, self._error = Outcome.REFUSED, reason

    def fell_back(self, reason: str) -> None:
        """A second upstream was asked, because of ``reason``."""
        self._warning = reason

    def refused(self, refusal: Refusal) -> None:
        """cgw itself answers. A failure of the upstream that led to it stays the outcome."""
        if self._outcome is None:
            self._outcome, self._error = Outcome.REFUSED, refusal.message

    def finished(self) -> None:
        """The client has the whole answer."""
        self._outcome = Outcome.OK

    def client_gone(self, phase: Phase) -> None:
        """The client left in ``phase``, before its answer was complete."""
        self._outcome, self._error = Outcome.CLIENT_GONE, f"the client left while {phase.text}"

    def crashed(self, bug: BaseException) -> None:
        """cgw itself has a bug."""
        bug = unwrap(bug)
        self._outcome, self._error, self._bug = Outcome.INTERNAL_ERROR, type(bug).__name__, bug

    def build_event(
        self, actor: Actor, feature: Feature, provider: str, usage: Usage | None, status: int | None, facts: RelayFacts
    ) -> UsageEvent:
        """Return the usage event of a prepared exchange.

        ``usage`` is ``None`` where no answer came: then only the prompt's length is known. ``status`` is what the
        client is answered, ``None`` where it left before that was known.
        """
        prepared = self._require_prepared()
        self._usage, self._chunks = usage, facts.chunks or None
        event = records.completions_finished(
            actor,
            feature=feature,
            model=prepared.model,
            provider=provider,
            usage=usage or Usage(prompt_character_count=prepared.prompt_character_count),
            resolved_status=status or CLIENT_CLOSED_REQUEST,
            upstream_status=None if self._upstream_head is None else self._upstream_head.status,
            upstream_request_duration_ms=self._measure_upstream_ms(),
            sg_actor_id=read_text(self._head, b"x-sourcegraph-actor-uid"),
            sg_actor_anonymous_uid=read_text(self._head, b"x-sourcegraph-actor-anonymous-uid"),
            metadata=prepared.metadata,
            exchange=self._build_exchanged(facts),
        )
        self._event_id = event.id
        return event

    def build_embeddings_event(
        self,
        actor: Actor,
        provider: str,
        *,
        tokens: int | None,
        quality: UsageQuality,
        status: int | None,
        facts: RelayFacts,
    ) -> UsageEvent:
        """Return the usage event of embeddings. ``tokens`` is what they took, ``None`` where there are none."""
        prepared = self._require_prepared()
        if tokens is not None:
            self._usage = Usage(prompt_token_count=tokens, quality=quality)
        event = records.embeddings_finished(
            actor,
            model=prepared.model,
            provider=provider,
            input_character_count=prepared.prompt_character_count,
            tokens_used=tokens,
            quality=quality,
            resolved_status=status or CLIENT_CLOSED_REQUEST,
            upstream_status=None if self._upstream_head is None else self._upstream_head.status,
            upstream_request_duration_ms=self._measure_upstream_ms(),
            metadata=prepared.metadata,
            exchange=self._build_exchanged(facts),
        )
        self._event_id = event.id
        return event

    def _require_prepared(self) -> PreparedRequest:
        if self._prepared is None:
            raise RuntimeError("an exchange that was not prepared has no usage event")
        return self._prepared

    def _measure_upstream_ms(self) -> int | None:
        asked, relayed = self.times[Moment.ADMITTED], self.times[Moment.RELAYED]
        return None if asked is None or relayed is None else round((relayed - asked) * 1000)

    def _build_exchanged(self, facts: RelayFacts) -> Exchanged:
        times = self.times
        started, asked, relayed = times[Moment.STARTED], times[Moment.ADMITTED], times[Moment.RELAYED]
        if started is None or relayed is None or asked is None:
            raise RuntimeError("an exchange whose upstream was not asked has no usage event")
        first = times[Moment.FIRST_CHUNK]
        return records.build_exchanged(
            trace_id=self._head.trace.trace_id,
            outcome=self._describe_outcome(facts),
            started_at=self._started_at,
            ended_at=self._started_at + relayed - started,
            request_bytes=self._request_bytes,
            response_bytes=facts.body_bytes,
            response_chunks=self._chunks,
            time_to_first_byte_ms=None if first is None else (first - started) * 1000,
            overhead_ms=(asked - started) * 1000,
        )

    def _describe_outcome(self, facts: RelayFacts) -> EventOutcome:
        """Return what became of the exchange, as far as that is known when its event is recorded."""
        if self._outcome is not None:
            return _EVENT_OUTCOMES[self._outcome]
        if facts.has_client_left:
            return EventOutcome.CLIENT_GONE
        return EventOutcome.COMPLETED if facts.is_complete else EventOutcome.SHUTDOWN

    def close(self, status: int | None, bytes_sent: int) -> ExchangeRecord:
        """Return the record of the exchange, which ends now. Without an outcome, the service was cut off under it."""
        head, prepared, usage = self._head, self._prepared, self._usage
        self.times[Moment.ENDED] = trio.current_time()
        return ExchangeRecord(
            trace=head.trace,
            kind=RequestKind.EXCHANGE,
            method=head.method.decode("latin-1"),
            path=head.path.decode("latin-1"),
            protocol=f"HTTP/{head.http_version.decode('latin-1')}",
            outcome=self._outcome or Outcome.SHUTDOWN,
            started_at=self._started_at,
            times=self.times,
            route=self._route,
            status=status,
            actor=None if self._actor is None else self._actor.id,
            source=None if self._actor is None else self._actor.source,
            stale=True if self._actor is not None and self._actor.is_stale else None,
            feature=None if self._feature is None else self._feature.value,
            provider=self._provider,
            model=None if prepared is None else prepared.model,
            stream=None if prepared is None else prepared.is_stream,
            upstream_status=None if self._upstream_head is None else self._upstream_head.status,
            is_reused=self._is_reused,
            request_bytes=self._request_bytes,
            response_bytes=bytes_sent,
            chunks=self._chunks,
            prompt_tokens=None if usage is None else usage.prompt_token_count,
            completion_tokens=None if usage is None else usage.completion_token_count,
            cache_read_tokens=None if usage is None else usage.cache_read_token_count,
            usage_quality=None if usage is None else usage.quality.value,
            event_id=self._event_id,
            remote_ip=self._peer,
            user_agent=read_text(head, b"user-agent"),
            error=self._error,
            warning=self._warning or describe_unread_timeout(head),
            bug=self._bug,
        )
