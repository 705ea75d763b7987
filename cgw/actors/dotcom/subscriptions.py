"""Product subscriptions as Sourcegraph.com's GraphQL API knows them (the reference's §2.7, early backend)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from cgw.actors.dotcom.answers import DotcomSubscription
from cgw.actors.dotcom.client import DotcomClient, UnreadableSubscription
from cgw.actors.dotcom.limits import read_limits
from cgw.actors.fetched.backend import ListedActor, Report
from cgw.actors.fetched.fetched_actor import FetchedActor, check_actor_id
from cgw.actors.policies import SUBSCRIPTION_ENDPOINT_ACCESS
from cgw.actors.source import SourceUnavailable
from cgw.actors.tokens import clean_name

INTERNAL_TAGS = ("dev", "internal")
"""In internal mode a licence must have one of these tags."""

_CUSTOMER = "customer:"


class DotcomSubscriptions:
    """Asks Sourcegraph.com for subscriptions. A :class:`~cgw.actors.fetched.backend.ListingBackend`."""

    def __init__(self, client: DotcomClient, *, is_internal: bool) -> None:
        """``is_internal``: only licences for development have access (``CODY_GATEWAY_DOTCOM_INTERNAL_MODE``)."""
        self._client = client
        self._is_internal = is_internal

    async def fetch(self, token: str, report: Report) -> FetchedActor:
        """See :class:`~cgw.actors.fetched.backend.Backend`."""
        subscription = await self._client.check_access_token(token)
        actor = self._build(subscription, report)
        if actor is None:
            raise SourceUnavailable("Sourcegraph.com's subscription has no usable uuid", is_down=False)
        return actor

    async def list_all(self, report: Report) -> AsyncGenerator[Sequence[ListedActor], None]:
        """See :class:`~cgw.actors.fetched.backend.ListingBackend`."""
        async with aclosing(self._client.list_product_subscriptions()) as pages:
            async for page in pages:
                yield [self._read_listed(subscription, report) for subscription in page]

    def _read_listed(self, subscription: DotcomSubscription | UnreadableSubscription, report: Report) -> ListedActor:
        if isinstance(subscription, UnreadableSubscription):
            report(f"{subscription.problem}; it stays as it was")
            return ListedActor(None, subscription.tokens)
        return ListedActor(self._build(subscription, report), subscription.sourcegraph_access_tokens)

    def _build(self, subscription: DotcomSubscription, report: Report) -> FetchedActor | None:
        uuid = subscription.uuid
        if not check_actor_id(uuid):
            report(f"a subscription has the uuid {clean_name(uuid)[:40]!r}, which cannot be an id; it stays as it was")
            return None
        tags = subscription.tags
        access = subscription.cody_gateway_access
        is_licensed = not self._is_internal or (tags is not None and any(tag in INTERNAL_TAGS for tag in tags))
        return FetchedActor(
            id=uuid,
            name=_find_name(subscription),
            access_enabled=is_licensed and not subscription.is_archived and access.enabled,
            fetched_at_ms=round(time.time() * 1000),
            limits=read_limits(access, f"subscription {uuid}", report),
            endpoint_access=SUBSCRIPTION_ENDPOINT_ACCESS,
        )


def _find_name(subscription: DotcomSubscription) -> str:
    """Return the customer's name by the licence's tags, otherwise the account's, otherwise the uuid."""
    for tag in subscription.tags or ():
        if tag.startswith(_CUSTOMER) and (name := clean_name(tag.removeprefix(_CUSTOMER))):
            return name
    account = subscription.account
    return (clean_name(account.username) if account is not None else "") or subscription.uuid
