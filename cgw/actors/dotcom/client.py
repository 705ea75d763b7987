"""The client of Sourcegraph.com's GraphQL API (the reference's §3)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio
from attrs import frozen

from cgw.actors.dotcom import queries
from cgw.actors.dotcom.answers import DotcomSubscription, DotcomUser, PageInfo, SnippetAttribution
from cgw.actors.policies import DOTCOM_USER, PRODUCT_SUBSCRIPTION
from cgw.actors.source import AccessTokenDenied, SourceUnavailable
from cgw.actors.structuring import AnswerProblem, build_converter, structure
from cgw.actors.web import WebAnswer, WebClient

T = TypeVar("T")

MAX_PAGES = 1000
"""The longest listing; a longer one goes in circles."""

MAX_TEXT = 200
"""The part of an error's text that is kept."""

# What the API says to an account that may not ask (auth.ErrMustBeSiteAdmin), or to a token that it does not know.
_LACKING = ("must be site admin", "must be authenticated", "not authenticated", "unauthorized")

LACKING_HELP = (
    "the account of CODY_GATEWAY_DOTCOM_ACCESS_TOKEN lacks access: set the feature flag "
    "product-subscriptions-reader-service-account (boolean, default off) to true for it; that lets it read, more is "
    "not needed (product-subscriptions-service-account lets it write, too)"
)


@frozen
class UnreadableSubscription:
    """A listed subscription that is not as it should be: ``problem`` says why; its ``tokens``, if they can be read."""

    problem: str
    tokens: Sequence[str]


class DotcomClient:
    """Asks Sourcegraph.com's GraphQL API.

    All methods raise :exc:`~cgw.actors.source.SourceUnavailable` when there is no usable answer: its text names the
    operation and what was wrong, never a token. They take up to 10 s (a listing: per page), and are cancel-safe.
    """

    def __init__(self, web: WebClient, url: str, *, access_token: str, user_agent: str, client_id: str | None) -> None:
        """``url`` is the API's, ``access_token`` that of an account that may read users and subscriptions."""
        self._web = web
        self._url = url
        self._host = urlsplit(url).hostname or ""
        self._converter = build_converter()
        self._headers = {
            "authorization": f"token {access_token}",
            "content-type": "application/json",
            "user-agent": user_agent,
            **({} if client_id is None else {"x-sourcegraph-client-id": client_id}),
        }

    def __repr__(self) -> str:
        return f"<DotcomClient of {self._host}>"

    async def check_dotcom_user_access_token(self, token: str) -> DotcomUser:
        """Return the user of an ``sgd_`` token; :exc:`~cgw.actors.source.AccessTokenDenied` if there is none."""
        denied = AccessTokenDenied("associated dotcom user not found", DOTCOM_USER)
        answer, data = await self._ask(
            "CheckDotcomUserAccessToken",
            queries.CHECK_DOTCOM_USER_ACCESS_TOKEN,
            {"token": token},
            denials={"ErrDotcomUserNotFound": denied},
        )
        return self._structure(answer, _dig(answer, data, "dotcom", "codyGatewayDotcomUserByToken"), DotcomUser)

    async def check_access_token(self, token: str) -> DotcomSubscription:
        """Return the subscription of an ``slk_`` token, as above."""
        denied = AccessTokenDenied("associated product subscription not found", PRODUCT_SUBSCRIPTION)
        answer, data = await self._ask(
            "CheckAccessToken",
            queries.CHECK_ACCESS_TOKEN,
            {"token": token},
            denials={"ErrProductSubscriptionNotFound": denied},
        )
        found = _dig(answer, data, "dotcom", "productSubscriptionByAccessToken")
        return self._structure(answer, found, DotcomSubscription)

    async def list_product_subscriptions(
        self,
    ) -> AsyncGenerator[Sequence[DotcomSubscription | UnreadableSubscription], None]:
        """Yield all subscriptions, page by page; raises when the listing is not complete."""
        operation, cursor, seen = "ListProductSubscriptions", None, 0
        for _ in range(MAX_PAGES):
            document = queries.LIST_PRODUCT_SUBSCRIPTIONS if cursor is None else queries.LIST_MORE_PRODUCT_SUBSCRIPTIONS
            answer, data = await self._ask(operation, document, {} if cursor is None else {"after": cursor})
            connection = _dig(answer, data, "dotcom", "productSubscriptions")
            page_info = self._structure(answer, connection.get("pageInfo"), PageInfo)
            nodes, total = connection.get("nodes"), connection.get("totalCount")
            if not isinstance(nodes, list):
                raise answer.complain("lacks 'nodes'")
            seen += len(nodes)
            # In a thread: thousands of subscriptions take a second.
            yield await trio.to_thread.run_sync(partial(self._structure_nodes, nodes))
            if not page_info.has_next_page:
                if type(total) is int and seen < total:
                    raise answer.complain(f"ends after {seen} of {total} subscriptions")
                return
            if not page_info.end_cursor or page_info.end_cursor == cursor:
                raise answer.complain("announces a next page, but not where it begins")
            cursor = page_info.end_cursor
        raise SourceUnavailable(f"GraphQL {operation} of {self._host}: more than {MAX_PAGES} pages", is_down=False)

    async def snippet_attribution(self, snippet: str, first: int) -> SnippetAttribution:
        """Return up to ``first`` repositories that contain ``snippet``."""
        variables = {"snippet": snippet, "first": first}
        answer, data = await self._ask("SnippetAttribution", queries.SNIPPET_ATTRIBUTION, variables)
        found = self._structure(answer, _dig(answer, data, "snippetAttribution"), _Attribution)
        names = tuple(node.repository_name for node in found.nodes)
        return SnippetAttribution(names, found.total_count, found.limit_hit)

    async def _ask(
        self,
        operation: str,
        document: str,
        variables: Mapping[str, object],
        *,
        denials: Mapping[str, AccessTokenDenied] | None = None,
    ) -> tuple[WebAnswer, Mapping[str, Any]]:
        """Return the answer and its ``data``. An error whose code is a key of ``denials`` raises the value."""
        what = f"GraphQL {operation} of {self._host}"
        body = json.dumps({"operationName": operation, "query": document, "variables": variables}).encode("ascii")
        # The operation's name as the query, as the reference sends it: logs in between are readable.
        url = f"{self._url}?{operation}"
        answer = await self._web.post(what, url, headers=self._headers, body=body, span=f"GraphQL: {operation}")
        if answer.status in (401, 403):
            raise SourceUnavailable(f"{what}: answered {answer.status}: {LACKING_HELP}")
        if answer.status >= 400:
            raise answer.complain(f"has the status {answer.status}", is_down=answer.status == 404)
        document_read = await answer.decode()
        if not isinstance(document_read, dict):
            raise answer.complain("is not a JSON object")
        errors = document_read.get("errors")
        if errors:
            raise _build_error(answer, errors, denials or {}, [str(value) for value in variables.values()])
        data = document_read.get("data")
        if not isinstance(data, dict):
            raise answer.complain("lacks 'data'")
        return answer, data

    def _structure(self, answer: WebAnswer, value: Any, cls: type[T]) -> T:
        try:
            return structure(self._converter, value, cls)
        except AnswerProblem as problem:
            raise answer.complain(str(problem)) from None

    def _structure_nodes(self, nodes: Sequence[Any]) -> Sequence[DotcomSubscription | UnreadableSubscription]:
        return [self._structure_node(node) for node in nodes]

    def _structure_node(self, node: Any) -> DotcomSubscription | UnreadableSubscription:
        try:
            return structure(self._converter, node, DotcomSubscription)
        except AnswerProblem as problem:
            fields = node if isinstance(node, dict) else {}
            uuid, tokens = fields.get("uuid"), fields.get("sourcegraphAccessTokens")
            if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
                tokens = ()
            shown = uuid if isinstance(uuid, str) and uuid.isprintable() and len(uuid) <= 64 else "without uuid"
            return UnreadableSubscription(f"subscription {shown}: {problem}", tokens)


@frozen
class _AttributionNode:
    repository_name: str


@frozen
class _Attribution:
    total_count: int
    limit_hit: bool
    nodes: tuple[_AttributionNode, ...]


def _dig(answer: WebAnswer, data: Mapping[str, Any], *path: str) -> Any:
    """Return the object at ``path``."""
    value: Any = data
    for depth, key in enumerate(path, 1):
        value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            raise answer.complain(f"lacks {'.'.join(('data', *path[:depth]))!r}")
    return value


def _build_error(
    answer: WebAnswer, errors: Any, denials: Mapping[str, AccessTokenDenied], secrets: Sequence[str]
) -> AccessTokenDenied | SourceUnavailable:
    listed = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    for error in listed:
        extensions = error.get("extensions")
        code = extensions.get("code") if isinstance(extensions, dict) else None
        if isinstance(code, str) and code in denials:
            return denials[code]
    text = next((error["message"] for error in listed if isinstance(error.get("message"), str)), "without a message")
    if any(phrase in text.lower() for phrase in _LACKING):
        # As if it were down: no token can be asked about.
        return SourceUnavailable(f"{answer.what}: {LACKING_HELP}")
    for secret in secrets:
        text = text.replace(secret, "****") if secret else text
    shown = "".join(character if character.isprintable() else " " for character in text[:MAX_TEXT])
    return answer.complain(f"is an error: {shown}")
