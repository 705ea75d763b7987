"""The steps from a request to its admission: who is asking, what they may use, and whether their limits allow it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from attrs import frozen

from cgw.actors.authorization import check_access, extract_token
from cgw.actors.source import AccessTokenDenied, NotFromSource, SourceUnavailable, TooManyUnknownTokens
from cgw.errors import Refusal, StoreUnavailable
from cgw.events import records
from cgw.gateway.parts import Gateway, record_event
from cgw.limits.admissions import Admission
from cgw.limits.headers import build_limit_refusal
from cgw.limits.states import LimitExceeded
from cgw.limits.tokens import estimate_tokens
from cgw.model import Actor, Feature, RateLimit
from cgw.providers.dialect import Dialect, PreparedRequest
from cgw.providers.models import check_model, evaluate_allowed_models
from cgw.wire.messages import RequestHead

STORE_RETRY_AFTER_SECONDS = 1


@frozen
class AdmittedRequest:
    """A checked request that its limits let through."""

    actor: Actor
    feature: Feature
    prepared: PreparedRequest
    admission: Admission


async def authenticate(gateway: Gateway, head: RequestHead, client: str) -> Actor:
    """Return the actor whose token the request presents; ``client`` is the client's address.

    Raises :exc:`~cgw.errors.Refusal`: 400 for a malformed header, 401 for a token that no source knows or that its
    source denies (which leaves an ``Unauthorized`` event), 429 when ``client`` has presented too many unknown ones, and
    503 when the source cannot decide now (the reference's §4).
    """
    try:
        return await gateway.sources.get(extract_token(head.header), client)
    except NotFromSource as error:
        raise Refusal(401, str(error)) from None
    except AccessTokenDenied as error:
        await record_event(gateway, records.unauthorized(error.source, error.reason))
        raise Refusal(401, str(error)) from None
    except TooManyUnknownTokens as error:
        raise _build_retry(429, str(error), error.retry_after_seconds) from None
    except SourceUnavailable as error:
        # The reason is for the log, where the source has said it: it may name the operator's hosts.
        raise _build_retry(
            503, "the token cannot be checked right now, please retry", error.retry_after_seconds
        ) from None


def _build_retry(status: int, text: str, seconds: float) -> Refusal:
    return Refusal(status, text, headers=[(b"retry-after", b"%d" % max(1, math.ceil(seconds)))])


async def check_actor(gateway: Gateway, actor: Actor, head: RequestHead) -> None:
    """Raise :exc:`~cgw.errors.Refusal` 403, and leave an ``AccessDenied`` event, if the actor has no access."""
    try:
        check_access(actor, head.path.decode("latin-1"))
    except Refusal:
        await record_event(gateway, records.access_denied(actor))
        raise


def check_model_access(actor: Actor, feature: Feature, prepared: PreparedRequest, dialect: Dialect) -> RateLimit:
    """Return the actor's limits for ``feature``.

    Raises :exc:`~cgw.errors.Refusal` 403 for a feature, and 400 for a model, that the actor may not use.
    """
    rate_limit = actor.rate_limits.get(feature)
    if rate_limit is None:
        raise Refusal(403, f"no access to feature {feature}")
    allowed = evaluate_allowed_models(rate_limit.allowed_models, dialect.models, dialect.provider)
    check_model(prepared.model, allowed)
    return rate_limit


async def admit(
    gateway: Gateway,
    actor: Actor,
    feature: Feature,
    rate_limit: RateLimit,
    prepared: PreparedRequest,
    *,
    provider: str,
    head: RequestHead,
) -> Admission:
    """Claim the request, whose head is ``head``, from all its limits.

    Raises :exc:`~cgw.errors.Refusal` 429 or 403, and leaves a ``RateLimited`` event, for a limit that is used up; 503
    when Redis cannot be asked and requests are refused then. Cancel-safe, as :meth:`Limiter.admit` is.
    """
    tokens = estimate_tokens(prepared.prompt_character_count, prepared.max_completion_tokens)
    try:
        return await gateway.limiter.admit(actor, feature, rate_limit, provider=provider, tokens=tokens)
    except LimitExceeded as exceeded:
        if exceeded.cause == "quota":
            gateway.refresher.request(actor, extract_token(head.header))  # its limits may have been raised meanwhile
        refusal = build_limit_refusal(exceeded, feature, datetime.now(UTC))
        event = records.rate_limited(actor, feature, error=refusal.message, cause=exceeded.cause)
        await record_event(gateway, event)
        raise refusal from None
    except StoreUnavailable:
        # The limiter logs the reason, once for all requests that it happens to.
        retry_after = (b"retry-after", b"%d" % STORE_RETRY_AFTER_SECONDS)
        raise Refusal(503, "limits cannot be checked right now, please retry", headers=[retry_after]) from None
