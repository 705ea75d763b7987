"""One exchange: a client's request together with the upstream's answer, from the request's head to the settlement.

The path reads from top to bottom: authenticate, receive, check, admit, open the upstream, relay, record, settle. Once a
request is whole, the client's hang-up ends whatever is under way; once it is admitted, every path leads through the
usage event and the settlement, cancellation included.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection

import trio

from cgw.errors import ClientGone, Refusal, UpstreamError
from cgw.gateway import debug_lines
from cgw.gateway.admission import AdmittedRequest, admit, authenticate, check_actor, check_model_access, settle
from cgw.gateway.answer import content_length_of, is_event_stream, read_timeouts, select_feature
from cgw.gateway.ending import end_late, relay_rest, release
from cgw.gateway.opening import explain_overload, open_upstream, tell_trace
from cgw.gateway.own_answers import CUT, build_relayed_headers, explain_late, send_cut, send_refusal
from cgw.gateway.parts import Gateway, check_recording, wait_recorded
from cgw.gateway.phases import Phase
from cgw.gateway.state import ExchangeState
from cgw.limits.admissions import Admission
from cgw.model import Actor, BodyWindow, Feature, RateLimit, UsageEvent
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.transport.client_side import ClientSide
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.relay import RelayOutcome, relay_response
from cgw.transport.serving_scope import Cause, ServingScope
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.messages import RequestHead


class Exchange:
    """One exchange at work in ``scope``, its client's. A subclass may read, ask and record in another way.

    The scope carries the deadline (of the response's head first, then of the whole), and the client's hang-up cancels
    it. There is no nursery: nothing runs beside the exchange, and leaving even an empty one costs a turn of the loop.
    """

    def __init__(self, gateway: Gateway, dialect: Dialect, client: ClientSide, scope: ServingScope) -> None:
        self._gateway = gateway
        self._dialect = dialect
        self._client = client
        self._scope = scope
        self._deadline = math.inf
        self._head_seconds = math.inf
        self._refusal: Refusal | None = None
        self._relay: FlatRelay | None = gateway.relay  # of the fast path; None where a response cannot take it
        self._response: UpstreamResponse | None = None  # until it is given back
        self._is_debugging = debug_lines.are_on()  # asked once: each look costs every exchange 50 ns
        self.state = ExchangeState(client, dialect.path, gateway.read_time)

    async def run(self) -> None:
        """Serve the request, from its head to its settlement, and log it.

        Raises nothing but :exc:`trio.Cancelled`. If it is cancelled, in the last moment too, :meth:`conclude` is left
        to the owner of the scope. An admitted exchange is recorded and settled either way.
        """
        self._scope.conclude = self.conclude
        self._gateway.in_flight.count += 1
        try:
            try:
                await self._serve_admitted(await self._admit_request())
            except Refusal as refusal:
                self._refusal = refusal
            except ClientGone:
                self.state.note_client_gone()
        except* Exception as bugs:  # noqa: BLE001 - the boundary between one exchange and all others
            # A bug costs one exchange, never the process; the client gets a 500, or sees its answer break off.
            self.state.journal.crashed(bugs)
            self._refusal = Refusal(500, "internal error")
        if self._refusal is None:
            self._end()
        elif self._scope.cause is None:
            await self.conclude()

    async def conclude(self) -> None:
        """Answer what was refused or cancelled, and log the exchange; outside of the scope if that was cancelled.

        A client whose exchange is cancelled from further out gets a 503 if its response had not begun.
        """
        state, client, scope, refusal = self.state, self._client, self._scope, self._refusal
        # Neither time nor a client that leaves cancels the answer: to send it has bounds of its own.
        scope.deadline = math.inf
        client.call_when_gone(None)
        try:
            try:
                if state.gone_in is not None:
                    state.note_client_gone()
                elif refusal is not None and not client.is_response_started:
                    await self._refuse(refusal)
                elif refusal is not None or scope.cause is not None:
                    client.break_off()  # too late for another answer
                elif state.is_cut:
                    state.status = CUT.status
                    await send_cut(client, self._dialect.errors)
            except ClientGone:
                state.note_client_gone()
        except* Exception as bugs:  # noqa: BLE001 - as in run()
            state.journal.crashed(bugs)
            client.break_off()
        finally:
            self._end()

    def _end(self) -> None:
        """Give back what the exchange has, and log it."""
        state, client, gateway = self.state, self._client, self._gateway
        self._scope.conclude = None
        gateway.in_flight.count -= 1  # before what might fail: else a bug would count for ever
        client.call_when_gone(None)
        if self._response is not None:
            self._give_back()
        gateway.readers(state.journal.close(state.status, client.bytes_sent))

    async def _admit_request(self) -> AdmittedRequest:
        """Receive and check the request, and claim it from its limits; what is not admitted raises its refusal."""
        head, gateway, dialect, state = self._client.head, self._gateway, self._dialect, self.state
        journal = state.journal
        check_recording(gateway)  # first: before the request costs anything
        actor = await authenticate(gateway, head, self._client.peer, dialect.errors)
        journal.authenticated(actor)
        await check_actor(gateway, actor, head)
        feature = select_feature(head, dialect)
        timeout_seconds, head_seconds = read_timeouts(head, gateway.timeout_seconds, gateway.max_timeout_seconds)
        self._head_seconds = head_seconds or gateway.pool.deadlines.head_seconds
        body = await self._receive_body()
        self._deadline = gateway.read_time() + timeout_seconds
        self._await_head()
        # Not before: until the body is there, reading it is what notices that the client left.
        self._client.call_when_gone(self._client_has_gone)
        journal.received(feature, len(body))
        state.move(Phase.PREPARING)
        actor_uid = (head.header(b"x-sourcegraph-actor-uid") or b"").decode("latin-1")
        prepared = self._prepare(head, body, Caller(f"{actor.id}:{actor_uid}", feature))
        rate_limit = self._check_access(actor, feature, prepared)
        journal.prepared(prepared, self._dialect.provider)
        if self._is_debugging:
            debug_lines.log_routed(feature, prepared, len(body))
        state.move(Phase.ADMITTING)
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
        return AdmittedRequest(actor, feature, prepared, admission)

    def _receive_body(self) -> Awaitable[bytes]:
        return self._client.receive_body()

    def _await_head(self) -> None:
        """Let the head of the upstream's response have its time from now on."""
        self._scope.set_deadline(min(self._deadline, self._gateway.read_time() + self._head_seconds))

    def _check_access(self, actor: Actor, feature: Feature, prepared: PreparedRequest) -> RateLimit:
        return check_model_access(actor, feature, prepared, self._dialect)

    def _prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        return self._dialect.prepare(head, body, caller)

    def _admit(
        self, actor: Actor, feature: Feature, rate_limit: RateLimit, prepared: PreparedRequest
    ) -> Awaitable[Admission]:
        head, dialect = self._client.head, self._dialect
        return admit(self._gateway, actor, feature, rate_limit, prepared, dialect=dialect, head=head)

    async def _serve_admitted(self, admitted: AdmittedRequest) -> None:
        """Ask the upstream and pass its answer on; whatever happens, leave an event and a settled admission."""
        state, gateway, client, provider = self.state, self._gateway, self._client, self._dialect.provider
        answer: RelayOutcome | Refusal | None = None
        try:
            state.move(Phase.OPENING)
            count = gateway.upstream_counts.begin(provider, admitted.feature, client.head)
            try:
                answer = await self._ask_upstream(admitted)
            except UpstreamError as error:
                answer = state.note_failure(error, provider, admitted)
            except BaseException as error:
                self._note_interruption(error, admitted)
                raise
            finally:
                self._scope.deadline = math.inf  # what follows has bounds of its own
                count.value -= 1
                if self._record_usage(admitted):
                    await wait_recorded(gateway)
            if state.is_charged:
                # Before settling: the client need not wait for Redis.
                await self._end_answer(release(client, answer, state.journal))
        finally:
            state.move(Phase.SETTLING)
            is_charged = state.is_charged
            await settle(gateway, admitted.admission, is_charged, state.used_tokens)
            state.journal.settled()
            if self._is_debugging:
                debug_lines.log_settled(admitted.admission, is_charged, state.used_tokens)
        if not is_charged:
            # After settling: a refund is there when the client asks again.
            await self._end_answer(release(client, answer, state.journal))
        if isinstance(answer, RelayOutcome) and answer.resume is not None:
            await self._end_answer(relay_rest(client, answer.resume))

    def _end_answer(self, ending: Awaitable[None]) -> Awaitable[None]:
        """Return what is to be awaited for the end of an answer that has come: time is not over for that."""
        # The keeper of deadlines may have cancelled the scope in the turn in which the last of the answer came.
        return ending if self._scope.cause is not Cause.LATE else end_late(ending)

    def _note_interruption(self, error: BaseException, admitted: AdmittedRequest) -> None:
        """Stop the upstream, and note why. When time is over, that is what :meth:`conclude` answers."""
        state = self.state
        if isinstance(error, ClientGone):
            state.note_client_gone()  # now: the usage event tells it
        elif isinstance(error, Exception):
            state.note_bug(error)  # as before
        self._give_back()  # at once: this is what stops an upstream that is still generating
        if isinstance(error, trio.Cancelled) and self._is_late():
            self._refusal = state.note_late(self._gateway, self._deadline, self._dialect.provider, admitted)

    async def _ask_upstream(self, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        gateway, prepared = self._gateway, admitted.prepared
        if gateway.build_traceparent is not None:
            prepared.upstream = tell_trace(gateway, self._client.head.trace, prepared.upstream)
        response = self._response = await open_upstream(
            gateway, self._dialect, prepared, self._scope, self._deadline, self._head_seconds, self.state.journal
        )
        answer = await self._pass_on(response, admitted)
        if isinstance(answer, Refusal) or answer.resume is None:
            self._give_back()
        return answer

    def _is_late(self) -> bool:
        """True if the scope was cancelled by its deadline: neither by the client, nor from outside."""
        return self.state.gone_in is None and self._scope.cause is Cause.LATE

    async def _pass_on(self, response: UpstreamResponse, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        """Send the response's head to the client, then relay its body up to what completes it."""
        state, journal = self.state, self.state.journal
        head = response.head
        status = state.note_head(head, response.connected_at, response.asked_at)
        headers = build_relayed_headers(self._gateway, self._dialect, admitted, self._client.head, head)
        if status == 503:
            prepared, provider = admitted.prepared, self._dialect.provider
            refusal = await explain_overload(response, prepared, provider, headers, journal)
            state.note_refusal(refusal)
            return refusal
        state.move(Phase.RELAYING, response.arrived_at)
        length = 0 if head.status in (204, 304) else content_length_of(head)
        # An error's body may have to be decoded to be masked, which waits, too.
        if length is None or status >= 400 or response.connection.unread_bytes < length:
            if self._scope.cause is not None:
                # Now, as it was cancelled in the turn in which the head came: there can still be another answer.
                await trio.lowlevel.checkpoint_if_cancelled()
            self._scope.set_deadline(self._deadline)  # the silence between chunks has a timeout of its own
        # The relay sends it, in one write with what is there of the body.
        await self._client.send_head(status, headers, is_stream=False)
        relay, note_first, client = self._relay, journal.first_chunk, self._client
        if is_stream := is_event_stream(head) and length != 0:
            state.window.look_for(self._dialect.final_markers)
        outcome = await relay_response(
            relay, response, client, state.window, content_length=length, is_stream=is_stream, on_first_chunk=note_first
        )
        state.note_relayed(outcome)
        return outcome

    def _record_usage(self, admitted: AdmittedRequest) -> bool:
        """Record the exchange's usage event, and return whether that has to be waited for."""
        state, event_log = self.state, self._gateway.event_log
        state.move(Phase.RECORDING, state.relayed_at)
        if state.is_cut:
            state.status = CUT.status
        event = self._build_event(admitted)
        if admitted.prepared.find_stored_ids is not None:
            self._keep_stored(admitted, admitted.prepared.find_stored_ids)
        event_log.record(event)
        return event_log.must_wait

    def _keep_stored(self, admitted: AdmittedRequest, find_ids: Callable[[BodyWindow], Collection[str]]) -> None:
        """Note whose the stored response is, before the client has the end of it: its next request may refer to it."""
        state = self.state
        if state.is_charged and state.body is not None:
            self._gateway.stored.keep_later(admitted.actor, self._dialect.provider, find_ids(state.body))

    def _build_event(self, admitted: AdmittedRequest) -> UsageEvent:
        state, dialect = self.state, self._dialect
        return state.build_event(admitted, dialect.provider, state.read_usage(dialect, admitted.prepared))

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
            self._scope.cancel(Cause.CLIENT_GONE)
