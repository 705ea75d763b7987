"""Notes of one exchange, for its log line and the other reports of it. Nothing is decided here."""

from __future__ import annotations

import time
from collections.abc import Callable

from cgw.errors import OutOfDescriptors, Refusal, UpstreamError, UpstreamRefusal, UpstreamTimeout, UpstreamUnreachable
from cgw.gateway.answer import describe_unread_timeout
from cgw.gateway.phases import Phase
from cgw.model import Actor, Feature, Usage, UsageQuality
from cgw.providers.dialect import PreparedRequest
from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind, begin_times
from cgw.telemetry.stack_traces import unwrap
from cgw.transport.arrival import measure_wait
from cgw.wire.messages import RequestHead

# Looking a value up is quicker than asking an enum's member for it, which calls a function.
_VALUES: dict[Feature | UsageQuality, str] = {member: member.value for member in (*Feature, *UsageQuality)}


class Journal:
    """Notes of one exchange, each taken once, in the order of its phases, in the record that readers get in the end.

    ``times`` are those of its moments, by ``read_time``, which reads Trio's clock. ``peer`` is the client's address,
    ``route`` the path that its dialect serves.
    """

    __slots__ = ("_read_time", "record", "times")

    def __init__(self, head: RequestHead, peer: str, route: str, read_time: Callable[[], float]) -> None:
        self._read_time = read_time
        now = time.time()
        waited = measure_wait(head.arrived_at, now)
        times = self.times = begin_times(read_time() - waited)
        find = head.header
        agent = find(b"user-agent")
        self.record = ExchangeRecord(
            head.trace,
            RequestKind.EXCHANGE,
            head.method.decode("latin-1"),
            head.path.decode("latin-1"),
            Outcome.SHUTDOWN,  # until another is noted: that cuts exchanges off, and notes nothing
            now - waited,
            times,
            route,
            protocol="HTTP/" + head.http_version.decode("latin-1"),
            remote_ip=peer,
            user_agent=None if agent is None else agent.decode("utf-8", "replace"),
        )
        if find(b"x-timeout-ms") is not None:
            self.record.warning = describe_unread_timeout(head)

    def authenticated(self, actor: Actor) -> None:
        """The request is ``actor``'s."""
        record = self.record
        record.actor, record.source = actor.id, actor.source
        if actor.is_stale:
            record.stale = True
        self.times[Moment.AUTHENTICATED] = self._read_time()

    def received(self, feature: Feature, body_bytes: int) -> None:
        """The request's body is whole."""
        record = self.record
        record.feature, record.request_bytes = _VALUES[feature], body_bytes

    def prepared(self, prepared: PreparedRequest, provider: str) -> None:
        """The body is checked, and may be sent to ``provider``."""
        record = self.record
        record.provider, record.model, record.stream = provider, prepared.model, prepared.is_stream

    def answered(self, status: int) -> None:
        """The head of the upstream's response has come."""
        self.record.upstream_status = status

    def first_chunk(self, at: float) -> None:
        """The first bytes of the response's body came at time ``at``."""
        self.times[Moment.FIRST_CHUNK] = at

    def used(self, usage: Usage) -> None:
        """The answer tells ``usage``."""
        record = self.record
        record.prompt_tokens, record.completion_tokens = usage.prompt_token_count, usage.completion_token_count
        record.cache_read_tokens, record.usage_quality = usage.cache_read_token_count, _VALUES[usage.quality]

    def settled(self) -> None:
        """The limits know what was used, or will."""
        self.times[Moment.SETTLED] = self._read_time()

    def upstream_failed(self, error: UpstreamError) -> None:
        """The upstream could not be reached, took too long, or broke its response off."""
        if isinstance(error, OutOfDescriptors | UpstreamRefusal):
            outcome = Outcome.REFUSED
        elif isinstance(error, UpstreamTimeout):
            outcome = Outcome.TIMEOUT
        elif isinstance(error, UpstreamUnreachable):
            outcome = Outcome.UPSTREAM_UNREACHABLE
        else:
            outcome = Outcome.UPSTREAM_BROKE
        self.record.outcome, self.record.error = outcome, str(error)

    def upstream_refused(self, reason: str) -> None:
        """The upstream's answer is told in cgw's own words; ``reason`` is the upstream's."""
        self.record.outcome, self.record.error = Outcome.REFUSED, reason

    def fell_back(self, reason: str) -> None:
        """A second upstream was asked, because of ``reason``."""
        self.record.warning = reason

    def refused(self, refusal: Refusal) -> None:
        """cgw itself answers. A failure of the upstream that led to it stays the outcome."""
        if self.record.outcome is Outcome.SHUTDOWN:
            self.record.outcome, self.record.error = Outcome.REFUSED, refusal.message

    def finished(self) -> None:
        """The client has the whole answer."""
        self.record.outcome = Outcome.OK

    def client_gone(self, phase: Phase) -> None:
        """The client left in ``phase``, before its answer was complete. A bug stays the outcome."""
        if self.record.bug is None:
            self.record.outcome, self.record.error = Outcome.CLIENT_GONE, f"the client left while {phase.text}"

    def crashed(self, bug: BaseException) -> None:
        """cgw itself has a bug."""
        bug, record = unwrap(bug), self.record
        record.outcome, record.error, record.bug = Outcome.INTERNAL_ERROR, type(bug).__name__, bug

    def close(self, status: int | None, bytes_sent: int) -> ExchangeRecord:
        """Return the record of the exchange, which ends now. Without an outcome, the service was cut off under it."""
        record = self.record
        record.status, record.response_bytes = status, bytes_sent
        self.times[Moment.ENDED] = self._read_time()
        return record
