"""One exchange: a client's request together with the upstream's answer, from the request's head to the settlement.

The path reads from top to bottom: authenticate, receive, check, admit, open the upstream, relay, record, settle. Once a
request is whole, the client's hang-up ends whatever is under way; once it is admitted, every path leads through the
usage event and the settlement, cancellation included.
"""

from __future__ import annotations

import contextlib
import math

import trio
from attrs import evolve

from cgw.errors import ClientGone, Refusal, UpstreamError
from cgw.gateway import debug_lines
from cgw.gateway.admission import AdmittedRequest, admit, authenticate, check_actor, check_model_access, settle
from cgw.gateway.answer import answer_status, content_length_of, is_event_stream, read_timeouts, select_feature
from cgw.gateway.ending import cut_off, relay_rest, send_end
from cgw.gateway.opening import explain_overload, open_upstream
from cgw.gateway.own_answers import CUT, build_relayed_headers, explain_late, send_cut, send_refusal
from cgw.gateway.parts import Gateway, check_recording, record_event
from cgw.gateway.phases import Phase
from cgw.gateway.state import ExchangeState
from cgw.limits.admissions import Admission
from cgw.model import Actor, Feature, RateLimit, UsageEvent
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.transport.client_side import ClientSide
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.relay import RelayEnd, RelayOutcome, relay_response
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.messages import RequestHead, add_field


async def run_exchange(
    gateway: Gateway, dialect: Dialect, client: ClientSide, kind: type[Exchange] | None = None
) -> None:
    """Run one exchange from its head to its settlement, in the task of its connection, and log it.

    Raises nothing but :exc:`trio.Cancelled`, after which the client got no complete answer: a 503 if its response had
    not begun. An admitted exchange is recorded and settled either way.
    """
    exchange = (kind or Exchange)(gateway, dialect, client)
    state = exchange.state
    try:
        await exchange.run()
    except* Exception as bugs:  # noqa: BLE001 - the boundary between one exchange and all others
        # A bug costs one exchange, never the process; the client gets a 500, or sees its answer break off.
        state.journal.crashed(bugs)
        await exchange.fail()
    finally:
        client.call_when_gone(None)
        if state.is_cut:
            state.status = CUT.status
            await send_cut(client, dialect.errors)
        gateway.readers(state.journal.close(state.status, client.bytes_sent))


class Exchange:
    """One exchange at work, in one scope. A subclass may read, ask and record in another way.

    The scope carries the deadline (of the response's head first, then of the whole), and the client's hang-up cancels
    it. There is no nursery: nothing runs beside the exchange, and leaving even an empty one costs a turn of the loop.
    """

    def __init__(self, gateway: Gateway, dialect: Dialect, client: ClientSide) -> None:
        self._gateway = gateway
        self._dialect = dialect
        self._client = client
        self._deadline = math.inf
        self._head_seconds = math.inf
        self._scope = trio.CancelScope()
        self._refusal: Refusal | None = None
        self._response: UpstreamResponse | None = None  # until it is given back
        self._is_debugging = debug_lines.are_on()  # asked once: each look costs every exchange 50 ns
        self.state = ExchangeState(client, dialect.path)

    async def run(self) -> None:
        """Serve the request. A refusal is sent once nothing of the exchange runs any more."""
        has_ended = False
        try:
            with self._scope:
                try:
                    await self._serve()
                except Refusal as error:
                    self._refusal = error
                except ClientGone:
                    self.state.note_client_gone()
                has_ended = True
            if self.state.gone_in is not None and (self._refusal is not None or not has_ended):
                self.state.note_client_gone()
            elif self._refusal is not None:
                await self._refuse(self._refusal)
            elif not has_ended:
                self._client.break_off()  # time was over with the response begun
        except ClientGone:
            self.state.note_client_gone()
        finally:
            self._give_back()

    async def _serve(self) -> None:
        """Serve the request up to the end of its answer; refusals are raised."""
        head, gateway, dialect = self._client.head, self._gateway, self._dialect
        check_recording(gateway)  # first: before the request costs anything
        actor = await authenticate(gateway, head, self._client.peer, dialect.errors)
        self.state.journal.authenticated(actor)
        await check_actor(gateway, actor, head)
        feature = select_feature(head, dialect)
        timeout_seconds, head_seconds = read_timeouts(head, gateway.timeout_seconds, gateway.max_timeout_seconds)
        self._head_seconds = head_seconds or gateway.pool.deadlines.head_seconds
        body = await self._receive_body()
        self._deadline = trio.current_time() + timeout_seconds
        self._await_head()
        # Not before: until the body is there, reading it is what notices that the client left.
        self._client.call_when_gone(self._client_has_gone)
        self.state.journal.received(feature, len(body))
        self.state.move(Phase.PREPARING)
        actor_uid = (head.header(b"x-sourcegraph-actor-uid") or b"").decode("latin-1")
        prepared = self._prepare(head, body, Caller(f"{actor.id}:{actor_uid}", feature))
        rate_limit = self._check_access(actor, feature, prepared)
        self.state.journal.prepared(prepared, self._dialect.provider)
        if self._is_debugging:
            debug_lines.log_routed(feature, prepared, len(body))
        self.state.move(Phase.ADMITTING)
        try:
            if prepared.references:
                await gateway.stored.check_references(actor, dialect.provider, prepared.references)
            admission = await self._admit(actor, feature, rate_limit, prepared)
        except trio.Cancelled:
            if self._is_late():
                self._refusal = explain_late(prepared)
            raise
        if self._is_debugging:
            debug_lines.log_admitted(admission)
        await self._serve_admitted(AdmittedRequest(actor, feature, prepared, admission))

    async def _receive_body(self) -> bytes:
        return await self._client.receive_body()

    def _await_head(self) -> None:
        """Let the head of the upstream's response have its time from now on."""
        self._scope.deadline = min(self._deadline, trio.current_time() + self._head_seconds)

    def _check_access(self, actor: Actor, feature: Feature, prepared: PreparedRequest) -> RateLimit:
        return check_model_access(actor, feature, prepared, self._dialect)

    def _prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        return self._dialect.prepare(head, body, caller)

    async def _admit(
        self, actor: Actor, feature: Feature, rate_limit: RateLimit, prepared: PreparedRequest
    ) -> Admission:
        head, dialect = self._client.head, self._dialect
        return await admit(self._gateway, actor, feature, rate_limit, prepared, dialect=dialect, head=head)

    async def _serve_admitted(self, admitted: AdmittedRequest) -> None:
        """Ask the upstream and pass its answer on; whatever happens, leave an event and a settled admission."""
        state, answer = self.state, None
        try:
            try:
                answer = await self._forward(admitted)
                self._scope.deadline = math.inf  # what follows has bounds of its own
            finally:
                await self._record_usage(admitted)
            if state.is_charged:
                await self._release(answer)  # before settling: the client need not wait for Redis
        finally:
            state.move(Phase.SETTLING)
            await settle(self._gateway, admitted.admission, state.is_charged, state.used_tokens)
            state.journal.settled()
            if self._is_debugging:
                debug_lines.log_settled(admitted.admission, state.is_charged, state.used_tokens)
        if not state.is_charged:
            await self._release(answer)  # after settling: what was refunded is there when the client asks again
        await relay_rest(self._client, answer)

    async def _forward(self, admitted: AdmittedRequest) -> RelayOutcome | Refusal | None:
        """Return how the relay ended, or what to refuse with. When time is over, that is noted for :meth:`run`."""
        self.state.move(Phase.OPENING)
        state, provider = self.state, self._dialect.provider
        counts = self._gateway.upstream_counts
        counts.note_traced(provider, self._client.head)
        counts.change(provider, admitted.feature, 1)
        try:
            return await self._ask_upstream(admitted)
        except UpstreamError as error:
            return state.note_failure(error, provider, admitted)
        except BaseException as error:
            if isinstance(error, ClientGone):
                state.note_client_gone()  # now: the usage event tells it
            self._give_back()  # at once: this is what stops an upstream that is still generating
            if isinstance(error, trio.Cancelled) and self._is_late():
                self._refusal = state.note_late(self._gateway, self._deadline, provider, admitted)
            raise
        finally:
            counts.change(provider, admitted.feature, -1)

    async def _ask_upstream(self, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        gateway, journal, prepared = self._gateway, self.state.journal, admitted.prepared
        if gateway.build_traceparent is not None:
            traceparent = gateway.build_traceparent(self._client.head.trace)
            prepared = evolve(prepared, upstream=add_field(prepared.upstream, b"traceparent", traceparent))
        response = self._response = await open_upstream(
            gateway, self._dialect, prepared, self._scope, self._deadline, self._head_seconds, journal
        )
        answer = await self._pass_on(response, admitted)
        if isinstance(answer, Refusal) or answer.resume is None:
            self._give_back()
        return answer

    def _is_late(self) -> bool:
        """True if the scope was cancelled by its deadline: neither by the client, nor from outside."""
        return self.state.gone_in is None and trio.current_time() >= self._scope.deadline

    async def _pass_on(self, response: UpstreamResponse, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        """Send the response's head to the client, then relay its body up to what completes it."""
        state, journal = self.state, self.state.journal
        head = state.upstream_head = response.head
        state.status = answer_status(head.status)
        journal.answered(head)
        journal.connected(response.connected_at, response.connection.asked_at)
        headers = build_relayed_headers(self._gateway, self._dialect, admitted, self._client.head, head)
        if state.status == 503:
            prepared, provider = admitted.prepared, self._dialect.provider
            refusal = await explain_overload(response, prepared, provider, headers, journal)
            state.note_refusal(refusal)
            return refusal
        state.move(Phase.RELAYING, response.arrived_at)
        length = 0 if head.status in (204, 304) else content_length_of(head)
        if length is None or response.connection.unread_bytes < length:
            self._scope.deadline = self._deadline  # the silence between chunks has a timeout of its own
        # The relay sends it, in one write with what is there of the body.
        await self._client.send_head(state.status, headers, is_stream=False)
        relay, note_first, client = self._choose_relay(), journal.first_chunk, self._client
        if is_stream := is_event_stream(head) and length != 0:
            state.window.look_for(self._dialect.final_markers)
        outcome = await relay_response(
            relay, response, client, state.window, content_length=length, is_stream=is_stream, on_first_chunk=note_first
        )
        state.note_relayed(outcome)
        return outcome

    def _choose_relay(self) -> FlatRelay | None:
        """Return the relay of the fast path; ``None`` where a response cannot take it."""
        return self._gateway.relay

    async def _record_usage(self, admitted: AdmittedRequest) -> None:
        """Record the exchange's usage event. The client may be gone, the usage is not: only time cancels this."""
        self.state.move(Phase.RECORDING, self.state.relayed_at)
        if self.state.is_cut:
            self.state.status = CUT.status
        event = self._build_event(admitted)
        self._keep_stored(admitted)
        await record_event(self._gateway, event)

    def _keep_stored(self, admitted: AdmittedRequest) -> None:
        """Note whose the stored response is, before the client has the end of it: its next request may refer to it."""
        state, find_ids = self.state, admitted.prepared.find_stored_ids
        if find_ids is not None and state.is_charged and state.body is not None:
            self._gateway.stored.keep_later(admitted.actor, self._dialect.provider, find_ids(state.body))

    def _build_event(self, admitted: AdmittedRequest) -> UsageEvent:
        state, dialect = self.state, self._dialect
        usage = state.read_usage(dialect, admitted.prepared)
        return state.journal.build_event(
            admitted.actor, admitted.feature, dialect.provider, usage, state.status, state.list_facts()
        )

    async def _release(self, answer: RelayOutcome | Refusal | None) -> None:
        """Send the part of the answer that completes it, or make sure that it does not look complete."""
        if isinstance(answer, Refusal):
            raise answer
        if answer is None or answer.end is not RelayEnd.COMPLETE:
            await cut_off(self._client, answer)
        else:
            await send_end(self._client, answer)
            self.state.journal.finished()

    def _give_back(self) -> None:
        if self._response is not None:
            response, self._response = self._response, None
            self._gateway.pool.give_back(response)  # which keeps or closes its connection

    async def _refuse(self, refusal: Refusal) -> None:
        self.state.note_refusal(refusal)
        await send_refusal(self._client, self._dialect.errors, refusal)

    def _client_has_gone(self) -> None:
        if self.state.gone_in is None:
            self.state.gone_in = self.state.phase
            self._scope.cancel()

    async def fail(self) -> None:
        """Answer 500 if the response has not begun; break it off otherwise."""
        if self._client.is_response_started:
            self._client.break_off()
            return
        with contextlib.suppress(ClientGone):
            await self._refuse(Refusal(500, "internal error"))
