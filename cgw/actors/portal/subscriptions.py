"""Product subscriptions as the Enterprise Portal knows them (the reference's §2.7, late backend).

The Connect protocol over HTTP and JSON (https://connectrpc.com/docs/protocol, unary requests); the messages are those
of ``enterpriseportal.codyaccess.v1``. Protobuf's JSON leaves out fields that have their default value.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import trio
from attrs import field, frozen

from cgw.actors.fetched.backend import ListedActor, Report
from cgw.actors.fetched.fetched_actor import FetchedActor, FetchedLimit, LimitProblem, check_actor_id, check_limit
from cgw.actors.fetched.limits import collect_limits
from cgw.actors.policies import PRODUCT_SUBSCRIPTION, SUBSCRIPTION_ENDPOINT_ACCESS
from cgw.actors.portal.sams import SamsTokens
from cgw.actors.source import AccessTokenDenied, SourceUnavailable
from cgw.actors.structuring import AnswerProblem, BigInt, build_converter, structure
from cgw.actors.tokens import clean_name
from cgw.actors.web import WebAnswer, WebClient
from cgw.model import ANY_MODEL, Feature

SERVICE = "enterpriseportal.codyaccess.v1.CodyAccessService"
MAX_PAGES = 1000
ID_PREFIX = "es_"

_ZERO = BigInt(0)
_DURATION = re.compile(r"(-?[0-9]{1,12})(\.[0-9]{1,9})?s")


@frozen
class _PortalLimit:
    limit: BigInt = _ZERO
    interval_duration: str = "0s"


@frozen
class _PortalToken:
    token: str = field(default="", repr=False)


@frozen
class _PortalAccess:
    subscription_id: str
    subscription_display_name: str = ""
    enabled: bool = False
    chat_completions_rate_limit: _PortalLimit | None = None
    code_completions_rate_limit: _PortalLimit | None = None
    embeddings_rate_limit: _PortalLimit | None = None
    access_tokens: tuple[_PortalToken, ...] = ()


class PortalSubscriptions:
    """Asks the Enterprise Portal. A :class:`~cgw.actors.fetched.backend.ListingBackend`."""

    def __init__(self, web: WebClient, url: str, tokens: SamsTokens) -> None:
        """``url`` is the portal's, without a path."""
        self._web = web
        self._url = url
        self._host = urlsplit(url).hostname or ""
        self._tokens = tokens
        self._converter = build_converter()

    async def fetch(self, token: str, report: Report) -> FetchedActor:
        """See :class:`~cgw.actors.fetched.backend.Backend`."""
        answer = await self._call("GetCodyGatewayAccess", {"accessToken": token})
        document = await self._decode(answer)
        if answer.status == 404 and document.get("code") == "not_found":
            raise AccessTokenDenied("associated product subscription not found", PRODUCT_SUBSCRIPTION)
        _check_status(answer, document)
        try:
            actor = self._read(document.get("access"), report)
        except AnswerProblem as problem:
            raise answer.complain(str(problem)) from None
        return actor

    async def list_all(self, report: Report) -> AsyncGenerator[Sequence[ListedActor], None]:
        """See :class:`~cgw.actors.fetched.backend.ListingBackend`."""
        page_token = ""
        for _ in range(MAX_PAGES):
            # The portal refuses a page size, and a token that it did not give.
            answer = await self._call("ListCodyGatewayAccesses", {"pageToken": page_token} if page_token else {})
            document = await self._decode(answer)
            _check_status(answer, document)
            accesses, following = document.get("accesses", []), document.get("nextPageToken", "")
            if not isinstance(accesses, list) or not isinstance(following, str):
                raise answer.complain("has no usable 'accesses' or 'nextPageToken'")
            # In a thread: thousands of subscriptions take a second.
            problems: list[str] = []
            yield await trio.to_thread.run_sync(self._read_listed, accesses, problems.append)
            for problem in problems:
                report(problem)
            if not following:
                return
            if following == page_token:
                raise answer.complain("has its own page as the next one")
            page_token = following
        raise SourceUnavailable(f"Enterprise Portal {self._host}: lists more than {MAX_PAGES} pages", is_down=False)

    async def _call(self, method: str, message: Mapping[str, str]) -> WebAnswer:
        what = f"Enterprise Portal {method} of {self._host}"
        body = json.dumps(message).encode("ascii")
        for _ in range(2):
            token = await self._tokens.get()
            headers = {
                "authorization": f"Bearer {token}",
                "content-type": "application/json",
                "connect-protocol-version": "1",
            }
            answer = await self._web.post(what, f"{self._url}/{SERVICE}/{method}", headers=headers, body=body)
            if answer.status != 401:
                return answer
            # Revoked, or expired by another clock: once more with a new one.
            self._tokens.discard(token)
        raise SourceUnavailable(f"{what}: answered 401 to a new token of SAMS: check the client's scopes")

    async def _decode(self, answer: WebAnswer) -> Mapping[str, Any]:
        document = await answer.decode()
        if not isinstance(document, dict):
            raise answer.complain("is not a JSON object")
        return document

    def _read_listed(self, accesses: Sequence[Any], report: Report) -> Sequence[ListedActor]:
        listed = []
        for access in accesses:
            tokens = _list_tokens(access)
            try:
                listed.append(ListedActor(self._read(access, report), tokens))
            except AnswerProblem as problem:
                report(f"Enterprise Portal {self._host}: a listed access {problem}; it stays as it was")
                listed.append(ListedActor(None, tokens))
        return listed

    def _read(self, value: Any, report: Report) -> FetchedActor:
        """Return the actor of an access. Raises :exc:`~cgw.actors.structuring.AnswerProblem`."""
        if value is None:
            raise AnswerProblem("lacks 'access'")
        access = structure(self._converter, value, _PortalAccess)
        uuid = access.subscription_id.removeprefix(ID_PREFIX)
        if not check_actor_id(uuid):
            raise AnswerProblem(f"has the subscriptionId {clean_name(access.subscription_id)[:40]!r}, which is no id")
        return FetchedActor(
            id=uuid,
            name=clean_name(access.subscription_display_name) or uuid,
            access_enabled=access.enabled,
            fetched_at_ms=round(time.time() * 1000),
            limits=_read_limits(access, f"subscription {uuid}", report),
            endpoint_access=SUBSCRIPTION_ENDPOINT_ACCESS,
        )


def _check_status(answer: WebAnswer, document: Mapping[str, Any]) -> None:
    if answer.status == 200:
        return
    code = document.get("code")
    shown = code if isinstance(code, str) and re.fullmatch("[a-z_]{1,40}", code) else "no code"
    # A refusal of the client as a whole is as if it were down: no token can be asked about.
    is_down = code in ("permission_denied", "unauthenticated", "unavailable", "resource_exhausted")
    raise answer.complain(f"is an error: {answer.status} {shown}", is_down=is_down)


def _list_tokens(access: Any) -> list[str]:
    tokens = access.get("accessTokens") if isinstance(access, dict) else None
    listed = [token.get("token") for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    return [token for token in listed if isinstance(token, str)]


def _read_limits(access: _PortalAccess, name: str, report: Report) -> dict[str, FetchedLimit]:
    told = {
        Feature.CODE_COMPLETIONS: access.code_completions_rate_limit,
        Feature.CHAT_COMPLETIONS: access.chat_completions_rate_limit,
        Feature.EMBEDDINGS: access.embeddings_rate_limit,
    }
    return collect_limits(
        told,
        lambda limit: check_limit(limit.limit, parse_protobuf_duration(limit.interval_duration), (ANY_MODEL,)),
        name,
        report,
    )


def parse_protobuf_duration(text: str) -> float:
    """Return the seconds of a ``google.protobuf.Duration`` in JSON (``86400s``, ``0.5s``).

    Raises :exc:`~cgw.actors.fetched.fetched_actor.LimitProblem` for anything else.
    """
    if _DURATION.fullmatch(text) is None:
        raise LimitProblem(f"has the interval {clean_name(text)[:24]!r}, which is no duration such as 86400s")
    return float(text.removesuffix("s"))
