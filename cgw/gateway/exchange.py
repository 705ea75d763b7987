"""One exchange: a client's request together with the upstream's answer, from the request's head to the settlement.

The path reads from top to bottom: authenticate, receive, check, admit, open the upstream, relay, record, settle. The
client's hang-up is watched from the moment that its request is whole, and ends whatever is under way. Once a request is
admitted, every path leads through the usage event and the settlement, cancellation included.
"""

from __future__ import annotations

import contextlib
import math

import trio

from cgw.errors import ClientGone, Headers, OutOfDescriptors, Refusal, UpstreamError, UpstreamTimeout
from cgw.gateway.admission import AdmittedRequest, admit, authenticate, check_actor, check_model_access
from cgw.gateway.answer import (
    answer_status,
    build_answer_headers,
    content_length_of,
    is_event_stream,
    read_timeout_seconds,
    select_feature,
)
from cgw.gateway.journal import Journal
from cgw.gateway.parts import Gateway, check_recording, record_event
from cgw.gateway.phases import Phase, move
from cgw.limits.admissions import Admission
from cgw.limits.headers import build_limit_headers
from cgw.limits.tokens import count_tokens
from cgw.providers.dialect import Caller, Dialect
from cgw.transport.client_side import ClientSide
from cgw.transport.relay import RelayEnd, RelayOutcome, relay_response
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.messages import ResponseHead
from cgw.wire.windows import BodyWindowCollector

CONCLUDE_SECONDS = 10.0
"""The time that settling may take once nothing else can cancel it."""

CUT_ANSWER_SECONDS = 1.0
"""The time that the answer of an exchange which is cut may take."""

_RETRY_SOON: Headers = [(b"retry-after", b"1")]

CUT = Refusal(
    503, "the gateway is shutting down, please retry", code="overloaded", headers=_RETRY_SOON, must_close=True
)


async def run_exchange(gateway: Gateway, dialect: Dialect, client: ClientSide) -> None:
    """Run one exchange from its head to its settlement, in a nursery of its own, and log it.

    Raises nothing but :exc:`trio.Cancelled`, after which the client got no complete answer: a 503 if its response had
    not begun. An admitted exchange is recorded and settled either way.
    """
    exchange = _Exchange(gateway, dialect, client)
    try:
        await exchange.run()
    except* Exception as bugs:  # noqa: BLE001 - the boundary between one exchange and all others
        # A bug costs one exchange, never the process; the client gets a 500, or sees its answer break off.
        exchange.journal.crashed(bugs)
        await exchange.fail()
    finally:
        client.call_when_gone(None)
        await exchange.answer_cut()
        exchange.journal.close(exchange.status, client.bytes_sent)


class _Exchange:
    """The state of one exchange. ``status`` is the one that the client is answered, ``None`` before there is one.

    Its nursery is empty where the connection itself notices that the client leaves. The nursery's scope is the only
    one: it carries the deadline (of the response's head first, then of the whole), and the hang-up cancels it.
    """

    _nursery: trio.Nursery

    def __init__(self, gateway: Gateway, dialect: Dialect, client: ClientSide) -> None:
        self._gateway = gateway
        self._dialect = dialect
        self._client = client
        self._deadline = math.inf
        self._phase = Phase.RECEIVING
        self._gone_in: Phase | None = None
        self._window = BodyWindowCollector()
        self._upstream_head: ResponseHead | None = None
        self._is_upstream_complete = False
        self._used_tokens: int | None = None
        self._timeout_refusal: Refusal | None = None
        self.status: int | None = None
        self.journal = Journal(client.head, client.peer)

    @property
    def _is_charged(self) -> bool:
        """True if the exchange counts on the actor's limits: the upstream answered 2xx, whoever left after that."""
        return self._upstream_head is not None and 200 <= self._upstream_head.status < 300

    @property
    def _is_cut(self) -> bool:
        """True if the exchange ends without a response, although the client is there: the drain's deadline was over."""
        return self.status in (None, CUT.status) and self._gone_in is None and not self._client.is_response_started

    async def run(self) -> None:
        """Serve the request. A refusal is sent once nothing of the exchange runs any more."""
        refusal: Refusal | None = None
        has_ended = False
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._serve()
                except Refusal as error:
                    refusal = error
                except ClientGone:
                    self._note_client_gone()
                # What is left of the nursery may be cancelled: that is not a timeout, nor a client that left too early.
                has_ended = True
                if nursery.child_tasks:
                    nursery.cancel_scope.cancel()
            if self._gone_in is not None and (refusal is not None or not has_ended):
                self._note_client_gone()
            elif refusal := refusal or self._timeout_refusal:
                await self._refuse(refusal)
            elif not has_ended:
                self._client.break_off()  # time was over with the response begun
        except ClientGone:
            self._note_client_gone()

    async def _serve(self) -> None:
        """Serve the request up to the end of its answer; refusals are raised."""
        head, gateway, dialect = self._client.head, self._gateway, self._dialect
        check_recording(gateway)  # first: before the request costs anything
        actor = await authenticate(gateway, head)
        self.journal.authenticated(actor)
        await check_actor(gateway, actor, head)
        feature = select_feature(head, dialect)
        timeout_seconds = read_timeout_seconds(head, gateway.timeout_seconds, gateway.max_timeout_seconds)
        body = await self._client.receive_body()
        self._deadline = self._nursery.cancel_scope.deadline = trio.current_time() + timeout_seconds
        # Not before the body is there: until then reading it is what notices that the client left.
        if not self._client.call_when_gone(self._client_has_gone):
            self._nursery.start_soon(self._watch_client)
        self.journal.received(feature, len(body))
        self._move(Phase.PREPARING)
        actor_uid = (head.header(b"x-sourcegraph-actor-uid") or b"").decode("latin-1")
        prepared = dialect.prepare(head, body, Caller(f"{actor.id}:{actor_uid}", feature))
        rate_limit = check_model_access(actor, feature, prepared, dialect)
        self.journal.prepared(prepared)
        self._move(Phase.ADMITTING)
        try:
            admission = await admit(gateway, actor, feature, rate_limit, prepared, provider=dialect.provider)
        except trio.Cancelled:
            if self._is_late():
                self._timeout_refusal = Refusal(504, "the request's time was over before its limits were checked")
            raise
        await self._serve_admitted(AdmittedRequest(actor, feature, prepared, admission))

    async def _serve_admitted(self, admitted: AdmittedRequest) -> None:
        """Ask the upstream and pass its answer on; whatever happens, leave an event and a settled admission."""
        answer: RelayOutcome | Refusal | None = None
        try:
            try:
                answer = await self._forward(admitted)
                self._nursery.cancel_scope.deadline = math.inf  # what follows has bounds of its own
            finally:
                await self._record_usage(admitted)
            if self._is_charged:
                await self._release(answer)  # before settling: the client need not wait for Redis
        finally:
            self._move(Phase.SETTLING)
            await self._settle(admitted.admission)
        if not self._is_charged:
            await self._release(answer)  # after settling: what was refunded is there when the client asks again

    async def _settle(self, admission: Admission) -> None:
        """Settle; wait for Redis only where that frees something, which the connection's next request must find."""
        limiter, tokens = self._gateway.limiter, self._used_tokens
        if self._is_charged and admission.is_charge_final(tokens):
            limiter.settle_later(admission, is_charged=True, tokens=tokens)
            return
        with trio.move_on_after(CONCLUDE_SECONDS, shield=True):
            await limiter.settle(admission, is_charged=self._is_charged, tokens=tokens)

    async def _forward(self, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        """Return how the relay ended, or what to refuse with. When time is over, that is noted for :meth:`run`."""
        self._move(Phase.OPENING)
        pool, provider = self._gateway.pool, self._dialect.provider
        try:
            response = await pool.open(admitted.prepared.upstream, self._nursery.cancel_scope, self._deadline)
            try:
                return await self._pass_on(response, admitted)
            finally:
                pool.give_back(response)
        except trio.Cancelled:
            if self._is_late():
                self._note_timeout()
            raise
        except UpstreamTimeout as error:
            self.journal.upstream_failed(error)
            return self._note_refusal(Refusal(504, f"request to upstream provider {provider} timed out"))
        except OutOfDescriptors as error:
            self.journal.upstream_failed(error)
            text = "the gateway has too many open connections, please retry"
            return self._note_refusal(Refusal(503, text, code="overloaded", headers=_RETRY_SOON))
        except UpstreamError as error:
            self.journal.upstream_failed(error)
            # The error is for the log alone: it may name hosts of the operator's own.
            return self._note_refusal(Refusal(502, f"failed to make request to upstream provider {provider}"))

    def _is_late(self) -> bool:
        """True if the scope was cancelled by its deadline: neither by the client, nor from outside."""
        return self._gone_in is None and trio.current_time() >= self._nursery.cancel_scope.deadline

    def _note_timeout(self) -> None:
        """Note that time was over: before recording, as the usage event tells the status."""
        if trio.current_time() >= self._deadline:
            self.journal.upstream_failed(UpstreamTimeout("the exchange's time was over"))
        else:
            seconds = self._gateway.pool.deadlines.head_seconds
            self.journal.upstream_failed(UpstreamTimeout(f"no response head within {seconds:g} seconds"))
        if not self._client.is_response_started:
            text = f"request to upstream provider {self._dialect.provider} timed out"
            self._timeout_refusal = self._note_refusal(Refusal(504, text))

    async def _pass_on(self, response: UpstreamResponse, admitted: AdmittedRequest) -> RelayOutcome:
        """Send the response's head to the client, then relay its body up to what completes it."""
        head = self._upstream_head = response.head
        self.status = answer_status(head.status)
        self.journal.answered(head)
        self._move(Phase.RELAYING)
        content_length = 0 if head.status in (204, 304) else content_length_of(head)
        limit_headers = build_limit_headers(admitted.admission.states)
        headers = build_answer_headers(head, admitted.prepared.model, self._dialect.retry_after_seconds, limit_headers)
        # From the head on, the silence between chunks has a timeout of its own.
        self._nursery.cancel_scope.deadline = self._deadline
        await self._client.send_head(self.status, headers, is_stream=is_event_stream(head) and content_length != 0)
        outcome = await relay_response(
            self._gateway.relay,
            response,
            self._client,
            self._window,
            content_length=content_length,
            on_first_chunk=self.journal.first_chunk,
        )
        self._is_upstream_complete = outcome.end is RelayEnd.COMPLETE
        if outcome.error is not None:
            is_timeout = outcome.end is RelayEnd.TIMED_OUT
            self.journal.upstream_failed((UpstreamTimeout if is_timeout else UpstreamError)(outcome.error))
        return outcome

    async def _record_usage(self, admitted: AdmittedRequest) -> None:
        """Record the exchange's usage event. The client may be gone, the usage is not: only time cancels this."""
        self._move(Phase.RECORDING)
        if self._is_cut:
            self.status = CUT.status
        body = self._window.close(is_complete=self._is_upstream_complete)
        usage = None
        if self._upstream_head is not None:
            usage = self._dialect.read_usage(admitted.prepared, self._upstream_head, body)
            self._used_tokens = count_tokens(usage, body.total_bytes)
        event = self.journal.build_event(admitted.actor, admitted.feature, self._dialect.provider, usage, self.status)
        await record_event(self._gateway, event)

    async def _release(self, answer: RelayOutcome | Refusal | None) -> None:
        """Send the part of the answer that completes it, or make sure that it does not look complete."""
        if isinstance(answer, Refusal):
            raise answer
        if answer is not None and answer.end is RelayEnd.COMPLETE:
            await self._client.finish(answer.held_back)
            self.journal.finished()
        else:
            self._client.break_off()

    def _move(self, phase: Phase) -> None:
        self._phase = move(self._phase, phase)
        self.journal.entered(phase)

    def _note_refusal(self, refusal: Refusal) -> Refusal:
        """Note that cgw itself answers: before recording, as the usage event tells the status."""
        self.status = refusal.status
        self.journal.refused(refusal)
        return refusal

    async def _refuse(self, refusal: Refusal) -> None:
        self._note_refusal(refusal)
        headers, body = self._dialect.errors.render(refusal)
        if refusal.must_close:
            self._client.close_after_response()
        await self._client.send_response(refusal.status, [*headers, *refusal.headers], body)

    async def _watch_client(self) -> None:
        await self._client.wait_gone()
        self._client_has_gone()

    def _client_has_gone(self) -> None:
        if self._gone_in is None:
            self._gone_in = self._phase
            self._nursery.cancel_scope.cancel()

    def _note_client_gone(self) -> None:
        phase = self._gone_in = self._gone_in or self._phase
        if phase in (Phase.RECORDING, Phase.SETTLING) and self._is_upstream_complete:
            # Some SDKs hang up on the API's own last event, before HTTP's end of the body.
            self.journal.finished()
        else:
            self.journal.client_gone(phase)

    async def answer_cut(self) -> None:
        """Answer 503 if the exchange was cancelled from outside before its response began; otherwise do nothing."""
        if not self._is_cut:
            return
        self.status = CUT.status
        headers, body = self._dialect.errors.render(CUT)
        self._client.close_after_response()
        # The connection is being cut, too: shielded, or nothing would be sent.
        with trio.move_on_after(CUT_ANSWER_SECONDS, shield=True), contextlib.suppress(ClientGone):
            await self._client.send_response(CUT.status, [*headers, *CUT.headers], body)

    async def fail(self) -> None:
        """Answer 500 if the response has not begun; break it off otherwise."""
        try:
            if self._client.is_response_started:
                self._client.break_off()
            else:
                await self._refuse(Refusal(500, "internal error"))
        except ClientGone:
            return
