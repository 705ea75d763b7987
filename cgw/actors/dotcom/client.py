"""The client of Sourcegraph.com's GraphQL API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from cgw.actors.dotcom.answers import DotcomSubscription, DotcomUser, SnippetAttribution


class DotcomClient:
    """Asks Sourcegraph.com's GraphQL API; opened by ``open_dotcom_client``.

    All methods raise :exc:`~cgw.actors.source.SourceUnavailable` when there is no usable answer: its text names the
    operation and what was wrong, never a token. They take up to 10 s, and are cancel-safe.
    """

    async def check_dotcom_user_access_token(self, token: str) -> DotcomUser:
        """Return the user of an ``sgd_`` token; :exc:`~cgw.actors.source.AccessTokenDenied` if there is none."""
        raise NotImplementedError

    async def check_access_token(self, token: str) -> DotcomSubscription:
        """Return the subscription of an ``slk_`` token; :exc:`~cgw.actors.source.AccessTokenDenied` if there is none."""
        raise NotImplementedError

    def list_product_subscriptions(self) -> AsyncIterator[Sequence[DotcomSubscription]]:
        """Yield all subscriptions, page by page; raises when the listing is not complete."""
        raise NotImplementedError

    async def snippet_attribution(self, snippet: str, first: int) -> SnippetAttribution:
        """Return up to ``first`` repositories that contain ``snippet``."""
        raise NotImplementedError
