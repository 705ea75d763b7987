"""What one exchange notes on its way: enough for its usage event, its log line and its settlement."""

from __future__ import annotations

from datetime import UTC, datetime

import trio

from cgw.errors import Refusal
from cgw.events import records
from cgw.gateway.answer import answer_status
from cgw.gateway.phases import Phase, move
from cgw.model import Actor, Feature, Usage, UsageEvent
from cgw.providers.dialect import PreparedRequest
from cgw.telemetry.exchange_log import ExchangeRecord, Outcome, log_exchange
from cgw.transport.client_side import ClientSide
from cgw.transport.relay import RelayEnd, RelayOutcome
from cgw.wire.messages import RequestHead, ResponseHead

CLIENT_CLOSED_REQUEST = 499
"""What stands for a status in usage events when the client left before there was one; nginx's convention."""


class Journal:
    """Notes taken by one exchange. Times are Trio's clock, in seconds."""

    def __init__(self, head: RequestHead, peer: str) -> None:
        self._head = head
        self._peer = peer
        self._started = trio.current_time()
        self._opened: float | None = None
        self._first_chunk: float | None = None
        self._upstream_seconds: float | None = None
        self._actor: Actor | None = None
        self._feature: Feature | None = None
        self._prepared: PreparedRequest | None = None
        self._refusal: Refusal | None = None
        self._outcome = Outcome.SHUTDOWN
        self._error: str | None = None
        self._bug: BaseException | None = None
        self._request_bytes: int | None = None
        self._gone_in: Phase | None = None
        self.phase = Phase.RECEIVING
        self.upstream_head: ResponseHead | None = None
        self.is_upstream_complete = False

    @staticmethod
    def now() -> datetime:
        """The wall clock, in UTC."""
        return datetime.now(UTC)

    def move(self, phase: Phase) -> None:
        """Go to the next phase."""
        self.phase = move(self.phase, phase)
        if phase is Phase.OPENING:
            self._opened = trio.current_time()
        elif phase is Phase.RECORDING and self._opened is not None:
            self._upstream_seconds = trio.current_time() - self._opened

    def authenticated(self, actor: Actor) -> None:
        """It is known who asks."""
        self._actor = actor

    def received(self, feature: Feature, body: bytes) -> None:
        """The whole request is there."""
        self._feature, self._request_bytes = feature, len(body)
        self.move(Phase.PREPARING)

    def prepared(self, prepared: PreparedRequest) -> None:
        """It is known what for."""
        self._prepared = prepared
        self.move(Phase.ADMITTING)

    def answered(self, head: ResponseHead) -> None:
        """The upstream's response head is there."""
        self.upstream_head = head
        self.move(Phase.RELAYING)

    def first_chunk(self, at: float) -> None:
        """The first bytes of the body came at this time."""
        self._first_chunk = at

    def relayed(self, outcome: RelayOutcome) -> None:
        """The body came to its end, good or bad."""
        self.is_upstream_complete = outcome.end is RelayEnd.COMPLETE
        if outcome.error is not None:
            is_timeout = outcome.end is RelayEnd.TIMED_OUT
            self.upstream_failed(Outcome.TIMEOUT if is_timeout else Outcome.UPSTREAM_BROKE, outcome.error)

    def upstream_failed(self, outcome: Outcome, error: str) -> None:
        """The upstream did not keep its side."""
        self._outcome, self._error = outcome, error

    def refused(self, refusal: Refusal) -> None:
        """The gateway answers itself; the first fault stays the exchange's outcome."""
        self._refusal = refusal
        if self._outcome is Outcome.SHUTDOWN:
            self._outcome, self._error = Outcome.REFUSED, refusal.message

    def finished(self) -> None:
        """The client has the whole answer."""
        self._outcome = Outcome.OK

    def noticed_gone(self) -> None:
        """The client has just left; what that means is for :meth:`client_gone` to say, once all is done."""
        self._gone_in = self.phase

    def client_gone(self) -> None:
        """The client left; before its answer was complete, unless all but the end of the framing was out."""
        phase = self._gone_in or self.phase
        if phase in (Phase.RECORDING, Phase.DONE) and self.is_upstream_complete:
            # Some SDKs hang up on the API's own last event, before HTTP's end of the body.
            self._outcome = Outcome.OK
            return
        self._outcome, self._error = Outcome.CLIENT_GONE, f"the client left while {phase.value}"

    def failed(self, bug: BaseException) -> None:
        """Something is wrong with cgw itself."""
        self._outcome, self._error, self._bug = Outcome.INTERNAL_ERROR, type(bug).__name__, bug

    @property
    def is_charged(self) -> bool:
        """Whether the exchange counts on the actor's limits: the upstream answered 2xx, whoever left after that."""
        return self.upstream_head is not None and 200 <= self.upstream_head.status < 300

    @property
    def status(self) -> int | None:
        """The status that the client got, or would have got; ``None`` when it left before there was one."""
        if self._refusal is not None:
            return self._refusal.status
        return None if self.upstream_head is None else answer_status(self.upstream_head.status)

    def completions_finished(
        self, actor: Actor, feature: Feature, provider: str, prepared: PreparedRequest, usage: Usage | None
    ) -> UsageEvent:
        """The usage event; without ``usage`` (no answer came) only the prompt's length is known."""
        seconds = self._upstream_seconds
        return records.completions_finished(
            actor,
            feature=feature,
            model=prepared.model,
            provider=provider,
            usage=usage or Usage(prompt_character_count=prepared.prompt_character_count),
            resolved_status=self.status or CLIENT_CLOSED_REQUEST,
            upstream_status=None if self.upstream_head is None else self.upstream_head.status,
            upstream_request_duration_ms=None if seconds is None else round(seconds * 1000),
            sg_actor_id=self._text(b"x-sourcegraph-actor-uid"),
            sg_actor_anonymous_uid=self._text(b"x-sourcegraph-actor-anonymous-uid"),
            metadata=prepared.metadata,
        )

    def _text(self, name: bytes) -> str | None:
        value = self._head.header(name)
        return None if value is None else value.decode("utf-8", "replace")

    def close(self, client: ClientSide) -> None:
        """Write the exchange's line to the log."""
        now = trio.current_time()
        log_exchange(
            ExchangeRecord(
                method=self._head.method.decode("latin-1"),
                path=self._head.path.decode("latin-1"),
                protocol=f"HTTP/{self._head.http_version.decode('latin-1')}",
                outcome=self._outcome,
                duration_ms=(now - self._started) * 1000,
                status=self.status,
                actor=None if self._actor is None else self._actor.id,
                source=None if self._actor is None else self._actor.source,
                feature=None if self._feature is None else self._feature.value,
                model=None if self._prepared is None else self._prepared.model,
                stream=None if self._prepared is None else self._prepared.is_stream,
                upstream_status=None if self.upstream_head is None else self.upstream_head.status,
                upstream_ms=None if self._upstream_seconds is None else self._upstream_seconds * 1000,
                first_byte_ms=None if self._first_chunk is None else (self._first_chunk - self._started) * 1000,
                request_bytes=self._request_bytes,
                response_bytes=client.bytes_sent,
                remote_ip=client.peer,
                user_agent=self._text(b"user-agent"),
                error=self._error,
            ),
            self._bug,
        )
