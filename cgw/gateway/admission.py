"""The steps from a request to its admission: who is asking, what they may use, and whether their limits allow it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import trio
from attrs import define

from cgw.actors.authorization import build_denied, build_unauthorized, check_access, extract_token
from cgw.actors.source import AccessTokenDenied, NotFromSource, SourceUnavailable, TooManyUnknownTokens
from cgw.errors import Headers, Refusal, StoreUnavailable
from cgw.events import records
from cgw.flagging.flagger import PromptBlocked
from cgw.gateway.answer import read_text
from cgw.gateway.parts import SETTLE_SECONDS, Gateway, record_event
from cgw.limits.admissions import Admission
from cgw.limits.plans import check_cut_off
from cgw.limits.refusals import build_limit_refusal, choose_wait_ms, describe_for_events
from cgw.limits.states import LimitExceeded
from cgw.limits.tokens import estimate_tokens
from cgw.model import Actor, Feature, LimitUnit, RateLimit, UsageEvent
from cgw.providers.dialect import Dialect, ErrorStyle, PreparedRequest
from cgw.providers.models import check_model
from cgw.providers.upstream_requests import query_of
from cgw.wire.messages import RequestHead

STORE_RETRY_AFTER_SECONDS = 1


@define(eq=False)  # not frozen, which makes creating one three times as expensive
class AdmittedRequest:
    """A checked request that its limits let through. It does not change."""

    actor: Actor
    feature: Feature
    prepared: PreparedRequest
    admission: Admission


async def authenticate(gateway: Gateway, head: RequestHead, client: str, errors: ErrorStyle) -> Actor:
    """Return the actor whose token the request presents; ``client`` is the client's address.

    Raises :exc:`~cgw.errors.Refusal`: 400 for a malformed header, 401 for a token that no source knows or that its
    source denies (which leaves an ``Unauthorized`` event), 429 when ``client`` has presented too many unknown ones, and
    503 when the source cannot decide now (the reference's §4).
    """
    token = ""
    try:
        token = read_token(head, errors)
        # Nearly all tokens are known here, which takes no coroutine to find out.
        return gateway.sources.recall(token) or await gateway.sources.look_up(token, client)
    except NotFromSource:
        raise build_unauthorized(has_token=bool(token)) from None
    except AccessTokenDenied as error:
        await _record_refusal(gateway, records.unauthorized(error.source, error.reason, trace_id=head.trace.trace_id))
        raise build_denied(error) from None
    except TooManyUnknownTokens as error:
        raise _build_retry(429, str(error), error.retry_after_seconds) from None
    except SourceUnavailable as error:
        # The reason is for the log, where the source has said it: it may name the operator's hosts.
        raise _build_retry(
            503, "the token cannot be checked right now, please retry", error.retry_after_seconds
        ) from None
    except Refusal:
        # An SDK with an empty key sends a bare "Bearer". Its users know the API's error for that, and not a 400.
        if errors.is_for_sdks:
            raise build_unauthorized(has_token=False) from None
        raise


def read_token(head: RequestHead, errors: ErrorStyle) -> str:
    """Return the token that a request presents. Raises :exc:`~cgw.errors.Refusal` 400 for a malformed field."""
    return extract_token(head.header, query_of(head) if errors.takes_key_in_query else b"")


async def _record_refusal(gateway: Gateway, event: UsageEvent) -> None:
    # A flood of wrong tokens, or of requests beyond a limit, must not fill the disk.
    if not gateway.repeats.absorb(event):
        await record_event(gateway, event)


def _build_retry(status: int, text: str, seconds: float) -> Refusal:
    return Refusal(status, text, headers=[(b"retry-after", b"%d" % max(1, math.ceil(seconds)))])


async def check_actor(gateway: Gateway, actor: Actor, head: RequestHead) -> None:
    """Raise :exc:`~cgw.errors.Refusal` 403, and leave an ``AccessDenied`` event, if the actor has no access."""
    if actor.access_enabled:
        return  # as nearly all have: the path does not matter then
    try:
        check_access(actor, head.path.decode("latin-1"))
    except Refusal:
        await _record_refusal(gateway, records.access_denied(actor, trace_id=head.trace.trace_id))
        raise


def check_feature(actor: Actor, feature: Feature) -> RateLimit:
    """Return the actor's limits for ``feature``. Raises :exc:`~cgw.errors.Refusal` 403 if it may not use it."""
    rate_limit = actor.rate_limits.get(feature)
    if rate_limit is None:
        raise Refusal(403, f"no access to feature {feature}")
    return rate_limit


def check_model_access(actor: Actor, feature: Feature, prepared: PreparedRequest, dialect: Dialect) -> RateLimit:
    """Return the actor's limits for ``feature``.

    Raises :exc:`~cgw.errors.Refusal` 403 for a feature, and 400 for a model, that the actor may not use.
    """
    rate_limit = actor.rate_limits.get(feature) or check_feature(actor, feature)
    names = (prepared.model, *prepared.other_names)
    check_model(names, rate_limit.allowed_models, dialect)
    return rate_limit


async def admit(
    gateway: Gateway,
    actor: Actor,
    feature: Feature,
    rate_limit: RateLimit,
    prepared: PreparedRequest,
    *,
    dialect: Dialect,
    head: RequestHead,
) -> Admission:
    """Examine the request, whose head is ``head``, by the rules of flagging, and claim it from all its limits.

    Raises :exc:`~cgw.errors.Refusal` 400, and leaves a ``RequestBlocked`` event, for a prompt that is to be blocked;
    429 or 403, and leaves a ``RateLimited`` event, for a limit that is used up; 503 when Redis cannot be asked and
    requests are refused then. Cancel-safe, as :meth:`Limiter.admit` is.
    """
    if gateway.flagger.must_examine(actor, prepared):
        await _examine(gateway, actor, feature, prepared, dialect, head)
    prepared.prompt = None  # the decoded body: not needed while the response is streamed
    tokens = 1
    if rate_limit.unit is LimitUnit.TOKENS:
        tokens = estimate_tokens(prepared.prompt_character_count, prepared.max_completion_tokens)
    try:
        return await gateway.limiter.admit(actor, feature, rate_limit, provider=dialect.provider, tokens=tokens)
    except LimitExceeded as exceeded:
        if exceeded.cause == "quota":
            # Its limits may have been raised meanwhile.
            gateway.refresher.request(actor, read_token(head, dialect.errors))
        raise await _refuse(gateway, actor, feature, exceeded, dialect.errors, head) from None
    except StoreUnavailable:
        raise _build_unchecked() from None


async def admit_free(
    gateway: Gateway,
    actor: Actor,
    feature: Feature,
    errors: ErrorStyle,
    head: RequestHead,
    *,
    provider: str = "",
    rate_limit: RateLimit | None = None,
) -> Admission:
    """Claim a request that costs nothing upstream from the actor's rate of such requests, which all features share.

    ``rate_limit`` is that of ``feature``, whose quota is not touched; an actor that is cut off gets 403. Otherwise
    raises :exc:`~cgw.errors.Refusal` as :func:`admit` does, and is as cancel-safe.
    """
    try:
        if rate_limit is not None:
            check_cut_off(actor, rate_limit)
        return await gateway.limiter.admit_free(actor, feature, provider=provider)
    except LimitExceeded as exceeded:
        raise await _refuse(gateway, actor, feature, exceeded, errors, head) from None
    except StoreUnavailable:
        raise _build_unchecked() from None


async def count_free(
    gateway: Gateway, actor: Actor, feature: Feature, errors: ErrorStyle, head: RequestHead
) -> Headers:
    """Count a request that cgw answers itself, such as for a list of models; return the rate-limit fields.

    Raises as :func:`admit_free` does.
    """
    admission = await admit_free(gateway, actor, feature, errors, head)
    gateway.limiter.settle_later(admission, is_charged=True)
    return admission.build_headers()


def _build_unchecked() -> Refusal:
    # The limiter logs the reason, once for all requests that it happens to.
    retry_after = (b"retry-after", b"%d" % STORE_RETRY_AFTER_SECONDS)
    return Refusal(503, "limits cannot be checked right now, please retry", headers=[retry_after])


async def _examine(
    gateway: Gateway, actor: Actor, feature: Feature, prepared: PreparedRequest, dialect: Dialect, head: RequestHead
) -> None:
    try:
        await gateway.flagger.check(actor, feature, prepared, dialect.provider, head.trace.trace_id)
    except PromptBlocked as blocked:
        event = records.request_blocked(
            actor,
            feature,
            metadata=blocked.metadata,
            sg_actor_id=read_text(head, b"x-sourcegraph-actor-uid"),
            sg_actor_anonymous_uid=read_text(head, b"x-sourcegraph-actor-anonymous-uid"),
            trace_id=head.trace.trace_id,
        )
        # Nothing else bounds them, as they count on no limit. The log has the id of each.
        await _record_refusal(gateway, event)
        raise


async def settle(gateway: Gateway, admission: Admission, is_charged: bool, tokens: int | None) -> None:
    """Settle; wait for Redis only where that frees something, which the connection's next request must find."""
    if is_charged and gateway.limiter.charge_later(admission, tokens):
        return
    with trio.move_on_after(SETTLE_SECONDS, shield=True):
        await gateway.limiter.settle(admission, is_charged=is_charged, tokens=tokens)


async def _refuse(
    gateway: Gateway, actor: Actor, feature: Feature, exceeded: LimitExceeded, errors: ErrorStyle, head: RequestHead
) -> Refusal:
    """Record a refusal by a limit, and return it."""
    # Instances and Cody retry silently after a short wait; SDKs tell their users how often they retry.
    is_patient, refused = not errors.is_for_sdks, exceeded.refused
    event = records.rate_limited(
        actor,
        feature,
        error=describe_for_events(exceeded, feature),
        cause=exceeded.cause,
        limit=refused.limit,
        unit=refused.unit.value,
        window_ms=refused.window_ms,
        retry_after_ms=choose_wait_ms(exceeded, is_patient=is_patient),
        trace_id=head.trace.trace_id,
    )
    await _record_refusal(gateway, event)
    return build_limit_refusal(exceeded, feature, datetime.now(UTC), is_patient=is_patient)
