"""The state of one exchange while it runs, and what follows from it. No I/O."""

from __future__ import annotations

import trio

from cgw.errors import Refusal, UpstreamError, UpstreamTimeout
from cgw.gateway.admission import AdmittedRequest
from cgw.gateway.journal import Journal, RelayFacts
from cgw.gateway.own_answers import CUT, build_failure_headers, explain_failure, explain_late_upstream
from cgw.gateway.parts import Gateway
from cgw.gateway.phases import Phase, move
from cgw.limits.tokens import count_tokens
from cgw.model import BodyWindow, Usage
from cgw.providers.dialect import Dialect, PreparedRequest
from cgw.transport.client_side import ClientSide
from cgw.transport.relay import RelayEnd, RelayOutcome
from cgw.wire.messages import ResponseHead
from cgw.wire.windows import BodyWindowCollector


class ExchangeState:
    """The state of one exchange. ``status`` is the one that the client is answered, ``None`` before there is one."""

    def __init__(self, client: ClientSide, route: str) -> None:
        self.journal = Journal(client.head, client.peer, route)
        self.status: int | None = None
        self.phase = Phase.RECEIVING
        self.gone_in: Phase | None = None
        self.window = BodyWindowCollector()
        self.body: BodyWindow | None = None  # once it is recorded
        self.upstream_head: ResponseHead | None = None
        self.is_upstream_complete = False
        self.relayed_at: float | None = None  # if known: when the last of the upstream's answer came
        self.used_tokens: int | None = None
        self._client = client

    @property
    def is_charged(self) -> bool:
        """True if the exchange counts on the actor's limits: the upstream answered 2xx, whoever left after that."""
        return self.upstream_head is not None and 200 <= self.upstream_head.status < 300

    @property
    def is_cut(self) -> bool:
        """True if cgw ends the exchange before its response has begun: it was answered by nobody, and nobody left."""
        return self.status in (None, CUT.status) and self.gone_in is None and not self._client.is_response_started

    def move(self, phase: Phase, at: float | None = None) -> None:
        """Enter ``phase``, which began at time ``at``, by default now."""
        self.phase = move(self.phase, phase)
        self.journal.times[phase] = trio.current_time() if at is None else at

    def read_usage(self, dialect: Dialect, prepared: PreparedRequest) -> Usage | None:
        """Return the usage that the relayed body tells, and note its tokens; ``None`` if no answer came."""
        body = self.body = self.window.close(is_complete=self.is_upstream_complete)
        if self.upstream_head is None:
            return None
        usage = dialect.read_usage(prepared, self.upstream_head, body)
        self.used_tokens = count_tokens(usage, body.total_bytes)
        return usage

    def list_facts(self) -> RelayFacts:
        """Return what the usage event tells of the relay."""
        window = self.window
        has_left = self.gone_in is not None
        return RelayFacts(window.total_bytes, window.chunks, self.is_upstream_complete, has_left)

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
