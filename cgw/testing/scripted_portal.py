"""A scripted Enterprise Portal and SAMS on one address, with the real shapes of answers and errors."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from attrs import define, evolve, field, frozen

from cgw.testing.json_server import JsonAnswer, JsonCall, open_json_server

CLIENT_ID = "sams_cid_scripted"
CLIENT_SECRET = "sams_cs_scripted-secret"
SERVICE = "/enterpriseportal.codyaccess.v1.CodyAccessService/"
TOKEN_PATH = "/oauth/token"
INTROSPECTION_PATH = "/oauth/introspect"
SCOPES = {"enterprise_portal::codyaccess::read", "enterprise_portal::subscription::read"}


def build_portal_limit(limit: int | str = 100, interval: str = "86400s") -> dict[str, Any]:
    """Return a rate limit as Protobuf's JSON writes it: an ``int64`` is a string, a duration ends in ``s``."""
    return {"source": "CODY_GATEWAY_RATE_LIMIT_SOURCE_PLAN", "limit": str(limit), "intervalDuration": interval}


@frozen
class ScriptedAccess:
    """The access of one subscription. ``overrides`` are fields of the answer; ``None`` leaves the field out."""

    uuid: str
    tokens: tuple[str, ...] = field(default=(), repr=False)
    display_name: str = "Acme Inc."
    enabled: bool = True
    limits: Mapping[str, Any] = field(
        factory=lambda: {"chatCompletions": build_portal_limit(), "codeCompletions": build_portal_limit(1000)}
    )
    overrides: Mapping[str, Any] = field(factory=dict)

    def render(self) -> dict[str, Any]:
        """Return the ``CodyGatewayAccess``, without the fields that have their default value."""
        fields: dict[str, Any] = {
            "subscriptionId": f"es_{self.uuid}",
            "subscriptionDisplayName": self.display_name or None,
            "enabled": self.enabled or None,
            **{f"{feature}RateLimit": limit for feature, limit in self.limits.items()},
            "accessTokens": [{"token": token} for token in self.tokens] or None,
            **self.overrides,
        }
        return {name: value for name, value in fields.items() if value is not None}


@define(eq=False)
class ScriptedPortal:
    """The state of portal and SAMS, which may be changed while they run.

    ``answer_next``, if set, is asked for the answer to each call first (``None``: the usual one). ``expires_in`` is the
    life of SAMS's tokens in seconds (``None``: it does not tell). A listing has ``page_size`` accesses a page.
    """

    url: str = ""
    accesses: list[ScriptedAccess] = field(factory=list)
    expires_in: int | None = 3600
    delay_seconds: float = 0.0
    page_size: int | None = None
    answer_next: Callable[[JsonCall], JsonAnswer | None] | None = None
    valid_tokens: set[str] = field(factory=set, repr=False)
    introspected: dict[str, Mapping[str, Any]] = field(factory=dict, repr=False)
    """What introspection says of a token; unknown ones are not active."""
    calls: list[JsonCall] = field(factory=list, repr=False)
    counts: Counter[str] = field(factory=Counter)
    """Calls by the last part of their path: ``token``, ``GetCodyGatewayAccess``, …."""

    async def handle(self, call: JsonCall) -> JsonAnswer:
        """Answer one call."""
        self.calls.append(call)
        self.counts[call.target.rpartition("/")[2]] += 1
        answer = self.answer_next(call) if self.answer_next is not None else None
        if answer is None:
            if call.target == INTROSPECTION_PATH:
                answer = self._introspect(call)
            else:
                answer = self._issue(call) if call.target == TOKEN_PATH else self._answer(call)
        return evolve(answer, delay_seconds=answer.delay_seconds or self.delay_seconds)

    def _introspect(self, call: JsonCall) -> JsonAnswer:
        if not _is_client(call):
            return JsonAnswer({"error": "invalid_client"}, 401)
        (token,) = parse_qs(call.body.decode())["token"]
        return JsonAnswer(self.introspected.get(token, {"active": False}))

    def _issue(self, call: JsonCall) -> JsonAnswer:
        form = parse_qs(call.body.decode())
        if not _is_client(call):
            return JsonAnswer({"error": "invalid_client"}, 401)
        if form.get("grant_type") != ["client_credentials"] or set(form.get("scope", [""])[0].split()) != SCOPES:
            return JsonAnswer({"error": "invalid_scope"}, 400)
        token = f"sams_at_scripted-{self.counts['token']}"
        self.valid_tokens.add(token)
        answer = {"access_token": token, "token_type": "bearer", "scope": " ".join(SCOPES)}
        return JsonAnswer(answer if self.expires_in is None else {**answer, "expires_in": self.expires_in})

    def _answer(self, call: JsonCall) -> JsonAnswer:
        if (call.header("authorization") or "").removeprefix("Bearer ") not in self.valid_tokens:
            return build_connect_error(401, "unauthenticated")
        if call.header("connect-protocol-version") != "1" or call.header("content-type") != "application/json":
            return JsonAnswer(b"", 415, ())
        message = call.json()
        if call.target == f"{SERVICE}GetCodyGatewayAccess":
            for access in self.accesses:
                if message["accessToken"] in access.tokens:
                    return JsonAnswer({"access": access.render()})
            return build_connect_error(404, "not_found")
        if call.target == f"{SERVICE}ListCodyGatewayAccesses":
            return self._list(message)
        return build_connect_error(404, "unimplemented")

    def _list(self, message: Mapping[str, Any]) -> JsonAnswer:
        if self.page_size is None and message:
            return build_connect_error(501, "unimplemented")  # as the real one: it does not page
        start = int(message.get("pageToken", "0"))
        end = len(self.accesses) if self.page_size is None else start + self.page_size
        answer: dict[str, Any] = {"accesses": [access.render() for access in self.accesses[start:end]]}
        return JsonAnswer({**answer, "nextPageToken": str(end)} if end < len(self.accesses) else answer)


def _is_client(call: JsonCall) -> bool:
    login = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    return call.header("authorization") == f"Basic {login}"


def build_connect_error(status: int, code: str) -> JsonAnswer:
    """Return an error of the Connect protocol."""
    return JsonAnswer({"code": code, "message": f"scripted: {code}"}, status)


@asynccontextmanager
async def open_scripted_portal() -> AsyncIterator[ScriptedPortal]:
    """Run a scripted portal, and SAMS beside it, while the block runs."""
    portal = ScriptedPortal()
    async with open_json_server(portal.handle) as url:
        portal.url = url
        yield portal
