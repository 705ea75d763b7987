"""Notes of one exchange, for its usage event and its log line. Nothing is decided here."""

from __future__ import annotations

import trio

from cgw.errors import OutOfDescriptors, Refusal, UpstreamError, UpstreamRefusal, UpstreamTimeout, UpstreamUnreachable
from cgw.events import records
from cgw.gateway.answer import describe_unread_timeout, read_text
from cgw.gateway.phases import Phase
from cgw.model import Actor, Feature, Usage, UsageEvent, UsageQuality
from cgw.providers.dialect import PreparedRequest
from cgw.telemetry.exchange_log import ExchangeRecord, Outcome, log_exchange
from cgw.wire.messages import RequestHead, ResponseHead

CLIENT_CLOSED_REQUEST = 499
"""The status in usage events of clients that left before there was one; nginx's convention."""


class Journal:
    """Notes of one exchange, each taken once, in the order of its phases. Times are by Trio's clock, in seconds.

    ``peer`` is the client's address.
    """

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
        self._upstream_head: ResponseHead | None = None
        self._outcome: Outcome | None = None
        self._error: str | None = None
        self._bug: BaseException | None = None
        self._request_bytes: int | None = None
        self._warning: str | None = None

    def entered(self, phase: Phase) -> None:
        """The exchange is in ``phase`` from now on."""
        if phase is Phase.OPENING:
            self._opened = trio.current_time()
        elif phase is Phase.RECORDING and self._opened is not None:
            self._upstream_seconds = trio.current_time() - self._opened

    def authenticated(self, actor: Actor) -> None:
        """The request is ``actor``'s."""
        self._actor = actor

    def received(self, feature: Feature, body_bytes: int) -> None:
        """The request's body is whole."""
        self._feature, self._request_bytes = feature, body_bytes

    def prepared(self, prepared: PreparedRequest) -> None:
        """The body is checked."""
        self._prepared = prepared

    def answered(self, head: ResponseHead) -> None:
        """The head of the upstream's response has come."""
        self._upstream_head = head

    def first_chunk(self, at: float) -> None:
        """The first bytes of the response's body came at time ``at``."""
        self._first_chunk = at

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
        self._outcome, self._error = Outcome.CLIENT_GONE, f"the client left while {phase.value}"

    def crashed(self, bug: BaseException) -> None:
        """cgw itself has a bug."""
        self._outcome, self._error, self._bug = Outcome.INTERNAL_ERROR, type(bug).__name__, bug

    def build_event(
        self, actor: Actor, feature: Feature, provider: str, usage: Usage | None, status: int | None
    ) -> UsageEvent:
        """Return the usage event of a prepared exchange.

        ``usage`` is ``None`` where no answer came: then only the prompt's length is known. ``status`` is what the
        client is answered, ``None`` where it left before that was known.
        """
        prepared, seconds = self._prepared, self._upstream_seconds
        if prepared is None:
            raise RuntimeError("an exchange that was not prepared has no usage event")
        return records.completions_finished(
            actor,
            feature=feature,
            model=prepared.model,
            provider=provider,
            usage=usage or Usage(prompt_character_count=prepared.prompt_character_count),
            resolved_status=status or CLIENT_CLOSED_REQUEST,
            upstream_status=None if self._upstream_head is None else self._upstream_head.status,
            upstream_request_duration_ms=None if seconds is None else round(seconds * 1000),
            sg_actor_id=read_text(self._head, b"x-sourcegraph-actor-uid"),
            sg_actor_anonymous_uid=read_text(self._head, b"x-sourcegraph-actor-anonymous-uid"),
            metadata=prepared.metadata,
        )

    def build_embeddings_event(
        self, actor: Actor, provider: str, *, tokens: int | None, quality: UsageQuality, status: int | None
    ) -> UsageEvent:
        """Return the usage event of embeddings. ``tokens`` is what they took, ``None`` where there are none."""
        prepared, seconds = self._prepared, self._upstream_seconds
        if prepared is None:
            raise RuntimeError("an exchange that was not prepared has no usage event")
        return records.embeddings_finished(
            actor,
            model=prepared.model,
            provider=provider,
            input_character_count=prepared.prompt_character_count,
            tokens_used=tokens,
            quality=quality,
            resolved_status=status or CLIENT_CLOSED_REQUEST,
            upstream_status=None if self._upstream_head is None else self._upstream_head.status,
            upstream_request_duration_ms=None if seconds is None else round(seconds * 1000),
            metadata=prepared.metadata,
        )

    def close(self, status: int | None, bytes_sent: int) -> None:
        """Write the exchange's line to the log. Without an outcome, the service was cut off under it."""
        now = trio.current_time()
        log_exchange(
            ExchangeRecord(
                method=self._head.method.decode("latin-1"),
                path=self._head.path.decode("latin-1"),
                protocol=f"HTTP/{self._head.http_version.decode('latin-1')}",
                outcome=self._outcome or Outcome.SHUTDOWN,
                duration_ms=(now - self._started) * 1000,
                status=status,
                actor=None if self._actor is None else self._actor.id,
                source=None if self._actor is None else self._actor.source,
                stale=True if self._actor is not None and self._actor.is_stale else None,
                feature=None if self._feature is None else self._feature.value,
                model=None if self._prepared is None else self._prepared.model,
                stream=None if self._prepared is None else self._prepared.is_stream,
                upstream_status=None if self._upstream_head is None else self._upstream_head.status,
                upstream_ms=None if self._upstream_seconds is None else self._upstream_seconds * 1000,
                first_byte_ms=None if self._first_chunk is None else (self._first_chunk - self._started) * 1000,
                request_bytes=self._request_bytes,
                response_bytes=bytes_sent,
                remote_ip=self._peer,
                user_agent=read_text(self._head, b"user-agent"),
                error=self._error,
                warning=self._warning or describe_unread_timeout(self._head),
            ),
            self._bug,
        )
