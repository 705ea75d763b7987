"""One exchange: a client's request, together with what the upstream answered.

The way is that of ``docs/design.md`` §3: authenticate, check, admit, open, relay, record, settle. The client's
hang-up is watched from the moment that its request is there, and ends whatever is under way. From an admission on
there is no way past the usage event and the settlement, cancellation included.
"""

from __future__ import annotations

import logging

import trio
from attrs import frozen

from cgw.actors.authorization import check_access, extract_token
from cgw.actors.refresh import Refresher
from cgw.actors.source import AccessTokenDenied, NotFromSource, Sources
from cgw.errors import (
    ClientGone,
    Refusal,
    StoreUnavailable,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from cgw.events import records
from cgw.events.event_log import EventLog
from cgw.gateway.answer import (
    answer_status,
    build_answer_headers,
    content_length_of,
    is_event_stream,
    read_timeout_seconds,
    select_feature,
)
from cgw.gateway.journal import Journal
from cgw.gateway.phases import Phase
from cgw.limits.admissions import Admission
from cgw.limits.headers import build_limit_headers, build_limit_refusal
from cgw.limits.limiter import Limiter
from cgw.limits.states import LimitExceeded
from cgw.limits.tokens import count_tokens, estimate_tokens
from cgw.model import Actor, Feature, RateLimit, UsageEvent
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.providers.models import check_model, evaluate_allowed_models
from cgw.telemetry.exchange_log import Outcome
from cgw.transport.client_side import ClientSide
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.relay import RelayEnd, RelayOutcome, relay_response
from cgw.transport.upstream import UpstreamPool, UpstreamResponse
from cgw.wire.windows import BodyWindowCollector

CONCLUDE_SECONDS = 10.0
"""How long recording, and settling, may take once nothing else can cancel them."""

STORE_RETRY_AFTER_SECONDS = 1

logger = logging.getLogger("cgw.exchange")


@frozen
class Gateway:
    """What exchanges share. Times in seconds; ``max_timeout_seconds`` caps what ``X-Timeout-Ms`` may ask for."""

    sources: Sources
    refresher: Refresher
    limiter: Limiter
    pool: UpstreamPool
    relay: FlatRelay
    event_log: EventLog
    timeout_seconds: float = 600
    max_timeout_seconds: float = 600


async def run_exchange(gateway: Gateway, dialect: Dialect, client: ClientSide) -> None:
    """Carry one exchange from its head to its settlement, in a nursery of its own, and log it.

    Raises nothing but :exc:`trio.Cancelled`, after which the client got no complete answer. What was admitted is on
    record and settled either way.
    """
    exchange = Exchange(gateway, dialect, client)
    try:
        async with trio.open_nursery() as exchange_nursery:
            await exchange.run(exchange_nursery)
            exchange_nursery.cancel_scope.cancel()
    except* Exception as bugs:  # noqa: BLE001 - the boundary between one exchange and all others
        # A bug costs one exchange, never the process; the client gets a 500, or sees its answer break off.
        exchange.journal.failed(bugs)
        await exchange.fail()
    finally:
        exchange.journal.close(client)


class Exchange:
    """The state of one exchange. ``client_scope`` is cancelled by the client, when it leaves."""

    def __init__(self, gateway: Gateway, dialect: Dialect, client: ClientSide) -> None:
        self._gateway = gateway
        self._dialect = dialect
        self._client = client
        self._window = BodyWindowCollector()
        self._used_tokens: int | None = None
        self.client_scope = trio.CancelScope()
        self.journal = Journal(client.head, client.peer)

    async def run(self, exchange_nursery: trio.Nursery) -> None:
        """Everything, with its ends: an answer, a refusal, or a client that left."""
        with self.client_scope:
            try:
                try:
                    await self._serve(exchange_nursery)
                except Refusal as refusal:
                    await self._refuse(refusal)
            except ClientGone:
                self.journal.client_gone()
        if self.client_scope.cancelled_caught:
            self.journal.client_gone()

    async def fail(self) -> None:
        """Answer 500 if there is still somebody to answer, otherwise break off."""
        refusal = Refusal(500, "internal error")
        try:
            if self._client.is_response_started:
                self._client.break_off()
            else:
                await self._refuse(refusal)
        except ClientGone:
            return

    async def _watch_client(self) -> None:
        await self._client.wait_gone()
        self.journal.noticed_gone()
        self.client_scope.cancel()

    async def _refuse(self, refusal: Refusal) -> None:
        self.journal.refused(refusal)
        headers, body = self._dialect.errors.render(refusal)
        fields = [*headers, *refusal.headers]
        if refusal.must_close:
            self._client.close_after_response()
        await self._client.send_response(refusal.status, fields, body)

    async def _serve(self, exchange_nursery: trio.Nursery) -> None:
        head, gateway = self._client.head, self._gateway
        if not gateway.event_log.is_accepting:  # before the request costs anything
            retry_after = (b"retry-after", b"1")
            raise Refusal(503, "usage cannot be recorded right now, please retry", headers=[retry_after])
        actor = await self._authenticate()
        feature = select_feature(head, self._dialect)
        timeout_seconds = read_timeout_seconds(head, gateway.timeout_seconds, gateway.max_timeout_seconds)
        body = await self._client.receive_body()
        deadline = trio.current_time() + timeout_seconds
        exchange_nursery.start_soon(self._watch_client)
        self.journal.received(feature, body)
        actor_uid = (head.header(b"x-sourcegraph-actor-uid") or b"").decode("latin-1")
        prepared = self._dialect.prepare(head, body, Caller(f"{actor.id}:{actor_uid}", feature))
        rate_limit = self._check_access_to_model(actor, feature, prepared)
        self.journal.prepared(prepared)
        with trio.move_on_at(deadline) as deadline_scope:
            admission = await self._admit(actor, feature, rate_limit, prepared)
        if deadline_scope.cancelled_caught:
            raise Refusal(504, "the request's time was over before its limits were checked")
        await self._forward(actor, feature, prepared, admission, deadline)

    async def _authenticate(self) -> Actor:
        head = self._client.head
        try:
            actor = await self._gateway.sources.get(extract_token(head.headers))
        except NotFromSource as error:
            raise Refusal(401, str(error)) from None
        except AccessTokenDenied as error:
            await self._record(records.unauthorized(error.source, error.reason))
            raise Refusal(401, str(error)) from None
        self.journal.authenticated(actor)
        try:
            check_access(actor, head.path.decode("latin-1"))
        except Refusal:
            await self._record(records.access_denied(actor))
            raise
        return actor

    def _check_access_to_model(self, actor: Actor, feature: Feature, prepared: PreparedRequest) -> RateLimit:
        rate_limit = actor.rate_limits.get(feature)
        if rate_limit is None:
            raise Refusal(403, f"no access to feature {feature}")
        provider = self._dialect.provider
        check_model(prepared.model, evaluate_allowed_models(rate_limit.allowed_models, self._dialect.models, provider))
        return rate_limit

    async def _admit(
        self, actor: Actor, feature: Feature, rate_limit: RateLimit, prepared: PreparedRequest
    ) -> Admission:
        gateway = self._gateway
        tokens = estimate_tokens(prepared.prompt_character_count, prepared.max_completion_tokens)
        try:
            return await gateway.limiter.admit(
                actor, feature, rate_limit, provider=self._dialect.provider, tokens=tokens
            )
        except LimitExceeded as exceeded:
            if exceeded.cause == "quota":
                gateway.refresher.request(actor)  # its limits may have been raised meanwhile
            refusal = build_limit_refusal(exceeded, feature, self.journal.now())
            event = records.rate_limited(actor, feature, error=refusal.message, cause=exceeded.cause)
            await self._record(event)
            raise refusal from None
        except StoreUnavailable:
            # Why is said by the limiter, once for all requests that it happens to.
            retry_after = (b"retry-after", b"%d" % STORE_RETRY_AFTER_SECONDS)
            raise Refusal(503, "limits cannot be checked right now, please retry", headers=[retry_after]) from None

    async def _forward(
        self, actor: Actor, feature: Feature, prepared: PreparedRequest, admission: Admission, deadline: float
    ) -> None:
        """Ask the upstream and pass its answer on; whatever happens, leave an event and a settled admission."""
        outcome: RelayOutcome | None = None
        failure: Refusal | None = None
        try:
            try:
                outcome = await self._relay_within(prepared, admission, deadline)
            except Refusal as refusal:
                failure = refusal
                self.journal.refused(refusal)
            finally:
                await self._record_usage(actor, feature, prepared)
            if not self.journal.is_charged:
                await self._settle(admission)  # what is given back is there before the client can ask again
            if failure is not None:
                raise failure
            await self._release(outcome)
        finally:
            await self._settle(admission)

    async def _release(self, outcome: RelayOutcome | None) -> None:
        """Let the client have what makes its answer whole, or make sure that it does not look so."""
        if outcome is not None and outcome.end is RelayEnd.COMPLETE:
            await self._client.finish(outcome.held_back)
            self.journal.finished()
        else:
            self._client.break_off()

    async def _relay_within(
        self, prepared: PreparedRequest, admission: Admission, deadline: float
    ) -> RelayOutcome | None:
        """The relay's outcome; ``None`` when the deadline passed after the answer had begun."""
        self.journal.move(Phase.OPENING)
        with trio.move_on_at(deadline):  # the deadline scope
            return await self._relay(prepared, admission)
        self.journal.upstream_failed(Outcome.TIMEOUT, "the exchange's time was over")
        if not self._client.is_response_started:
            raise self._timed_out()
        return None

    async def _relay(self, prepared: PreparedRequest, admission: Admission) -> RelayOutcome:
        try:
            async with self._gateway.pool.open_response(prepared.upstream) as response:
                return await self._pass_on(response, prepared, admission)
        except UpstreamTimeout as error:
            self.journal.upstream_failed(Outcome.TIMEOUT, str(error))
            raise self._timed_out() from None
        except UpstreamError as error:
            is_unreachable = isinstance(error, UpstreamUnreachable)
            outcome = Outcome.UPSTREAM_UNREACHABLE if is_unreachable else Outcome.UPSTREAM_BROKE
            self.journal.upstream_failed(outcome, str(error))
            provider = self._dialect.provider
            raise Refusal(502, f"failed to make request to upstream provider {provider}: {error}") from None

    def _timed_out(self) -> Refusal:
        return Refusal(504, f"request to upstream provider {self._dialect.provider} timed out")

    async def _pass_on(
        self, response: UpstreamResponse, prepared: PreparedRequest, admission: Admission
    ) -> RelayOutcome:
        head = response.head
        content_length = 0 if head.status in (204, 304) else content_length_of(head)
        self.journal.answered(head)
        headers = build_answer_headers(
            head, prepared.model, self._dialect.retry_after_seconds, build_limit_headers(admission.states)
        )
        await self._client.send_head(
            answer_status(head.status), headers, is_stream=is_event_stream(head) and content_length != 0
        )
        outcome = await relay_response(
            self._gateway.relay,
            response,
            self._client,
            self._window,
            content_length=content_length,
            on_first_chunk=self.journal.first_chunk,
        )
        self.journal.relayed(outcome)
        return outcome

    async def _record_usage(self, actor: Actor, feature: Feature, prepared: PreparedRequest) -> None:
        """Record what the exchange came to. The client may be gone, the usage is not: nothing but time cancels it."""
        journal = self.journal
        journal.move(Phase.RECORDING)
        body = self._window.close(is_complete=journal.is_upstream_complete)
        usage = None
        if journal.upstream_head is not None:
            usage = self._dialect.read_usage(prepared, journal.upstream_head, body)
            self._used_tokens = count_tokens(usage, body.total_bytes)
        event = journal.completions_finished(actor, feature, self._dialect.provider, prepared, usage)
        await self._record(event)

    async def _settle(self, admission: Admission) -> None:
        """Charge the admission or give it back, once; shielded and bounded as :meth:`_record_usage`."""
        if self.journal.phase is Phase.DONE:
            return
        self.journal.move(Phase.DONE)
        with trio.move_on_after(CONCLUDE_SECONDS, shield=True):
            await self._gateway.limiter.settle(admission, is_charged=self.journal.is_charged, tokens=self._used_tokens)

    async def _record(self, event: UsageEvent) -> None:
        """Record ``event``; wait for the disk only where it is slow, or where each event is to be synced."""
        event_log = self._gateway.event_log
        event_log.record(event)
        if event_log.must_wait:
            with trio.CancelScope(shield=True):
                await event_log.wait_durable(trio.current_time() + CONCLUDE_SECONDS)
