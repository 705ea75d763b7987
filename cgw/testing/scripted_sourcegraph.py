"""A scripted Sourcegraph.com: its GraphQL API as far as gateways use it, with the real shapes of answers and errors."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, evolve, field, frozen

from cgw.testing.json_server import JsonAnswer, JsonCall, open_json_server

SERVICE_TOKEN = "sgp_scripted-service-account"
"""The access token of the service account that may read."""

DAY_SECONDS = 86_400


def build_limit(limit: int | str = 100, interval_seconds: int = DAY_SECONDS, models: Any = ("*",)) -> dict[str, Any]:
    """Return a rate limit as GraphQL writes it: its limit is a ``BigInt``, a string."""
    return {
        "allowedModels": models if models is None else list(models),
        "source": "PLAN",
        "limit": str(limit),
        "intervalSeconds": interval_seconds,
    }


@frozen
class ScriptedUser:
    """A user of Sourcegraph.com. ``limits`` are by the API's name of the feature; ``id`` replaces the relay id."""

    number: int
    username: str = "alice"
    enabled: bool = True
    limits: Mapping[str, Any] = field(
        factory=lambda: {"chatCompletions": build_limit(), "codeCompletions": build_limit(1000)}
    )
    id: str | None = None

    def render(self) -> dict[str, Any]:
        """Return the ``CodyGatewayDotcomUser``."""
        relay_id = base64.b64encode(f"User:{self.number}".encode()).decode() if self.id is None else self.id
        access = _render_access(self.enabled, self.limits)
        return {"id": relay_id, "username": self.username, "codyGatewayAccess": access, "avatarURL": None}


@frozen
class ScriptedSubscription:
    """A product subscription. ``tags`` are those of its active licence; ``None``: no licence is active."""

    uuid: str
    tokens: tuple[str, ...] = ()
    username: str | None = "acme-admin"
    tags: tuple[str, ...] | None = ("plan:enterprise-1", "customer:Acme Inc.")
    is_archived: bool = False
    enabled: bool = True
    limits: Mapping[str, Any] = field(
        factory=lambda: {"chatCompletions": build_limit(), "codeCompletions": build_limit(1000)}
    )
    overrides: Mapping[str, Any] = field(factory=dict)
    """Fields of the answer that replace the right ones."""

    def render(self, *, is_listed: bool) -> dict[str, Any]:
        """Return the ``ProductSubscription``."""
        return {
            "id": base64.b64encode(f'ProductSubscription:"{self.uuid}"'.encode()).decode(),
            "uuid": self.uuid,
            "account": None if self.username is None else {"username": self.username},
            "isArchived": self.is_archived,
            "codyGatewayAccess": _render_access(self.enabled, self.limits),
            "activeLicense": None if self.tags is None else {"info": {"tags": list(self.tags)}},
            **({"sourcegraphAccessTokens": list(self.tokens)} if is_listed else {}),
            **self.overrides,
        }


def _render_access(enabled: bool, limits: Mapping[str, Any]) -> dict[str, Any]:
    features = ("chatCompletions", "codeCompletions", "embeddings")
    # Where access is off, the API has no limits.
    return {
        "enabled": enabled,
        **{f"{feature}RateLimit": limits.get(feature) if enabled else None for feature in features},
    }


@define(eq=False)
class ScriptedSourcegraph:
    """The state of the scripted API, which may be changed while it runs.

    ``answer_next``, if set, is asked for the answer to each call first (``None``: the usual one). ``delay_seconds`` is
    before each answer, and ``wait_before`` can hold it back until something happens. A listing
    has ``page_size`` nodes a page (``None``: all of them).
    """

    url: str = ""
    users: dict[str, ScriptedUser] = field(factory=dict, repr=False)
    """By token (``sgd_…``)."""
    subscriptions: list[ScriptedSubscription] = field(factory=list)
    attribution: tuple[str, ...] = ("github.com/acme/one", "github.com/acme/two")
    delay_seconds: float = 0.0
    page_size: int | None = None
    has_reader_flag: bool = True
    """Whether the service account's feature flag ``product-subscriptions-reader-service-account`` is on."""
    answer_next: Callable[[JsonCall], JsonAnswer | None] | None = None
    wait_before: Callable[[JsonCall], Awaitable[None]] | None = None
    calls: list[JsonCall] = field(factory=list, repr=False)
    counts: Counter[str] = field(factory=Counter)
    """Calls by operation."""

    async def handle(self, call: JsonCall) -> JsonAnswer:
        """Answer one call."""
        self.calls.append(call)
        self.counts[call.target.partition("?")[2]] += 1
        if self.wait_before is not None:
            await self.wait_before(call)
        answer = self.answer_next(call) if self.answer_next is not None else None
        if answer is None:
            answer = self._answer(call)
        return evolve(answer, delay_seconds=answer.delay_seconds or self.delay_seconds)

    def _answer(self, call: JsonCall) -> JsonAnswer:
        if call.header("authorization") != f"token {SERVICE_TOKEN}":
            return JsonAnswer(b"Invalid access token.\n", 401, ((b"content-type", b"text/plain; charset=utf-8"),))
        request = call.json()
        operation, variables = call.target.partition("?")[2], request["variables"]
        assert f" {operation}" in request["query"], "the query string names the operation"
        if operation == "SnippetAttribution":
            return JsonAnswer({"data": {"snippetAttribution": self._attribute(variables["first"])}})
        if not self.has_reader_flag:
            return build_error("must be site admin")
        if operation == "CheckDotcomUserAccessToken":
            user = self.users.get(variables["token"])
            if user is None:
                return build_error("dotcom user not found: access token not found", "ErrDotcomUserNotFound")
            return JsonAnswer({"data": {"dotcom": {"codyGatewayDotcomUserByToken": user.render()}}})
        if operation == "CheckAccessToken":
            return self._check(variables["token"])
        assert operation == "ListProductSubscriptions"
        return JsonAnswer({"data": {"dotcom": {"productSubscriptions": self._list(variables.get("after"))}}})

    def _check(self, token: str) -> JsonAnswer:
        for subscription in self.subscriptions:
            if token in subscription.tokens:
                found = subscription.render(is_listed=False)
                return JsonAnswer({"data": {"dotcom": {"productSubscriptionByAccessToken": found}}})
        return build_error("product subscription not found", "ErrProductSubscriptionNotFound")

    def _list(self, after: str | None) -> dict[str, Any]:
        start = 0 if after is None else int(after)
        end = len(self.subscriptions) if self.page_size is None else start + self.page_size
        has_more = end < len(self.subscriptions)
        return {
            "totalCount": len(self.subscriptions),
            "pageInfo": {"endCursor": str(end) if has_more else None, "hasNextPage": has_more},
            "nodes": [subscription.render(is_listed=True) for subscription in self.subscriptions[start:end]],
        }

    def _attribute(self, first: int) -> dict[str, Any]:
        names = self.attribution
        nodes = [{"repositoryName": name} for name in names[:first]]
        return {"totalCount": len(names), "limitHit": len(names) > first, "nodes": nodes}


def build_error(message: str, code: str | None = None) -> JsonAnswer:
    """Return a GraphQL error: status 200, ``data`` null, and ``extensions.code`` if there is a code."""
    error: dict[str, Any] = {"message": message, "path": ["dotcom"]}
    if code is not None:
        error["extensions"] = {"code": code}
    return JsonAnswer({"errors": [error], "data": None})


@asynccontextmanager
async def open_scripted_sourcegraph() -> AsyncIterator[ScriptedSourcegraph]:
    """Run a scripted Sourcegraph.com while the block runs; its ``url`` is the GraphQL API's."""
    sourcegraph = ScriptedSourcegraph()
    async with open_json_server(sourcegraph.handle) as url:
        sourcegraph.url = f"{url}/.api/graphql"
        yield sourcegraph
