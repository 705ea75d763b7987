"""Tokens of Sourcegraph Accounts (SAMS), by the OAuth client-credentials grant (RFC 6749 §4.4)."""

from __future__ import annotations

import base64
import logging
from urllib.parse import quote_plus, urlencode, urlsplit

import trio
from attrs import field, frozen

from cgw.actors.source import SourceUnavailable
from cgw.actors.web import WebClient

SCOPES = ("enterprise_portal::codyaccess::read", "enterprise_portal::subscription::read")

EARLY_SECONDS = 60.0
"""A token is replaced so long before it expires, or when a tenth of its life is left if that is less."""

UNTOLD_SECONDS = 300.0
"""The life of a token that does not tell when it expires."""

LONGEST_SECONDS = 24 * 3600.0

logger = logging.getLogger("cgw.actors")


@frozen
class _Token:
    value: str = field(repr=False)
    renew_at: float


class SamsTokens:
    """The present token for the Enterprise Portal: fetched when it is needed, and kept until shortly before its end."""

    def __init__(self, web: WebClient, url: str, *, client_id: str, client_secret: str) -> None:
        """``url`` is that of SAMS, without a path."""
        self._web = web
        self._url = f"{url}/oauth/token"
        self._what = f"SAMS token of {urlsplit(url).hostname}"
        self._authorization = build_basic_authorization(client_id, client_secret)
        self._token: _Token | None = None
        # Callers that need a new token wait for the first one's request.
        self._fetching = trio.Lock()
        self._has_complained = False

    def __repr__(self) -> str:
        return f"<SamsTokens: {self._what}>"

    async def get(self) -> str:
        """Return a valid token. Raises :exc:`~cgw.actors.source.SourceUnavailable`. Cancel-safe."""
        async with self._fetching:
            token = self._token
            if token is None or trio.current_time() >= token.renew_at:
                token = self._token = await self._fetch()
            return token.value

    def discard(self, value: str) -> None:
        """Do not use the token ``value`` any more: it was refused."""
        if self._token is not None and self._token.value == value:
            self._token = None

    async def _fetch(self) -> _Token:
        form = urlencode({"grant_type": "client_credentials", "scope": " ".join(SCOPES)}).encode("ascii")
        headers = {"authorization": self._authorization, "content-type": "application/x-www-form-urlencoded"}
        answer = await self._web.post(self._what, self._url, headers=headers, body=form)
        if answer.status in (400, 401, 403):
            raise SourceUnavailable(
                f"{self._what}: answered {answer.status}: check SAMS_CLIENT_ID, SAMS_CLIENT_SECRET, and that the "
                f"client may have the scopes {' '.join(SCOPES)}"
            )
        if answer.status != 200:
            raise answer.complain(f"has the status {answer.status}", is_down=True)
        document = await answer.decode()
        value = document.get("access_token") if isinstance(document, dict) else None
        if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable():
            raise answer.complain("lacks 'access_token'", is_down=True)
        seconds = self._read_lifetime(document.get("expires_in"))
        return _Token(value, trio.current_time() + seconds - min(EARLY_SECONDS, seconds / 10))

    def _read_lifetime(self, told: object) -> float:
        # Not a bool, which is an int; RFC 6749 only recommends the field.
        if type(told) in (int, float) and 0 < told < float("inf"):  # type: ignore[operator]
            return min(float(told), LONGEST_SECONDS)  # type: ignore[arg-type]
        if not self._has_complained:
            self._has_complained = True
            logger.warning("%s: no usable 'expires_in'; tokens are used for %g s", self._what, UNTOLD_SECONDS)
        return UNTOLD_SECONDS


def build_basic_authorization(client_id: str, client_secret: str) -> str:
    """Return the ``Authorization`` of an OAuth client."""
    # Encoded first, as RFC 6749 §2.3.1 wants it.
    login = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return f"Basic {base64.b64encode(login.encode()).decode('ascii')}"
