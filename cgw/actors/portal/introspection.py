"""Tokens that others present to cgw, checked at Sourcegraph Accounts (SAMS) by OAuth token introspection (RFC 7662)."""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit

from attrs import frozen

from cgw.actors.portal.sams import build_basic_authorization
from cgw.actors.web import WebClient


@frozen
class Introspection:
    """A token as SAMS describes it; one that is unknown, revoked or over is not active."""

    is_active: bool
    scopes: frozenset[str]


class SamsIntrospection:
    """Asks SAMS about tokens, each time: they may be revoked at any moment, and few are presented."""

    def __init__(self, web: WebClient, url: str, *, client_id: str, client_secret: str) -> None:
        """``url`` is that of SAMS, without a path."""
        self._web = web
        self._url = f"{url}/oauth/introspect"
        self._what = f"introspection by {urlsplit(url).hostname}"
        self._authorization = build_basic_authorization(client_id, client_secret)

    async def introspect(self, token: str) -> Introspection:
        """Return what SAMS says of ``token``. Raises :exc:`~cgw.actors.source.SourceUnavailable`. Cancel-safe."""
        headers = {"authorization": self._authorization, "content-type": "application/x-www-form-urlencoded"}
        answer = await self._web.post(
            self._what, self._url, headers=headers, body=urlencode({"token": token}).encode("ascii")
        )
        if answer.status != 200:
            raise answer.complain(f"has the status {answer.status}: check SAMS_CLIENT_ID and SAMS_CLIENT_SECRET")
        document = await answer.decode()
        is_active = document.get("active") if isinstance(document, dict) else None
        if not isinstance(is_active, bool):
            raise answer.complain("lacks 'active'")
        scope = document.get("scope")
        return Introspection(is_active, frozenset(scope.split()) if isinstance(scope, str) else frozenset())
