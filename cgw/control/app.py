"""The ASGI app: routes for operators and instances, and exchanges on connections that Hypercorn serves."""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from attrs import field, frozen

from cgw.actors.authorization import build_denied, build_unauthorized, check_access, extract_token
from cgw.actors.refresh import RefreshFailed
from cgw.actors.source import AccessTokenDenied, ActorRecentlyUpdated, NotFromSource
from cgw.control.scopes import build_request_head, run_lifespan
from cgw.control.status import ServiceStatus
from cgw.durations import format_go_duration
from cgw.errors import CgwError, Headers, Refusal, StoreUnavailable
from cgw.gateway.answer import allowed_methods
from cgw.gateway.parts import Gateway
from cgw.gateway.routes import Routes
from cgw.model import Actor, Feature
from cgw.providers.dialect import Dialect
from cgw.providers.embeddings.models import MODELS
from cgw.providers.embeddings.route import EmbeddingsRoute
from cgw.providers.models import evaluate_allowed_models
from cgw.transport.asgi_host import Receive, Scope, Send
from cgw.wire.messages import RequestHead

JSON: Headers = ((b"content-type", b"application/json"),)
TEXT: Headers = ((b"content-type", b"text/plain; charset=utf-8"),)


@frozen
class ControlResponse:
    """A response that is held in memory as a whole."""

    status: int
    headers: Headers
    body: bytes


Handler = Callable[[RequestHead], Awaitable[ControlResponse]]


@frozen
class ControlApp:
    """Everything but exchanges, under any ASGI server: on the public port and on the admin port.

    ``routes`` tell the shape of refusals. ``check_store`` raises
    :exc:`~cgw.errors.StoreUnavailable` when Redis does not answer. Without ``diagnostics_secret``, ``/-/healthz`` is
    open: it tells nothing but whether the service works. ``/-/readyz`` is always open: load balancers have no secret,
    and it tells them nothing but ``status``.
    """

    gateway: Gateway
    routes: Routes
    version: str
    diagnostics_secret: str | None = field(repr=False)
    check_store: Callable[[], Awaitable[None]]
    status: ServiceStatus

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection, HTTP or WebSocket."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
            return
        head = build_request_head(scope)
        dialect = self.routes.find(head.path)
        answer = await self._answer(head, dialect)
        await _send_answer(send, answer)

    async def _answer(self, head: RequestHead, dialect: Dialect | None) -> ControlResponse:
        errors = self.routes.find_errors(head.path)
        try:
            return await self._route(head, dialect)
        except Refusal as refusal:
            headers, body = errors.render(refusal)
            return ControlResponse(refusal.status, (*headers, *refusal.headers), body)

    async def _route(self, head: RequestHead, dialect: Dialect | None) -> ControlResponse:
        path = head.path.decode("latin-1")
        reads: dict[str, Handler] = {
            "/v1/limits": self._limits,
            "/-/healthz": self._healthz,
            "/-/readyz": self._readyz,
            "/-/__version": self._version,
        }
        if self._find_embeddings() is not None:
            reads[EmbeddingsRoute.models_path] = self._list_embeddings_models
        writes: dict[str, Handler] = {"/v1/limits/refresh": self._refresh_limits}
        if dialect is not None and head.method == b"POST":
            port = "" if self.status.public_port is None else f" {self.status.public_port}"
            text = f"requests to providers are served on the public port{port} (PORT), not on the admin port"
            raise Refusal(404, text, code="not_found")
        if dialect is not None:
            raise _wrong_method(head, ["POST"])
        if path in reads:
            handler, methods = reads[path], ["GET", "HEAD"]
        elif path in writes:
            handler, methods = writes[path], ["POST"]
        else:
            raise Refusal(404, f"there is no route {path!r}", code="not_found")
        if head.method.decode("latin-1") not in methods:
            raise _wrong_method(head, methods)
        return await handler(head)

    async def _version(self, head: RequestHead) -> ControlResponse:
        return ControlResponse(200, TEXT, self.version.encode("utf-8"))

    async def _healthz(self, head: RequestHead) -> ControlResponse:
        """Report whether requests are served; further lines say why Redis or the event log is not well."""
        if self.diagnostics_secret is not None:
            token = extract_token(head.header)
            # In constant time, so that the time does not tell how much of a guess is right.
            if not hmac.compare_digest(
                token.encode("utf-8", "surrogateescape"), self.diagnostics_secret.encode("utf-8")
            ):
                return ControlResponse(401, TEXT, b"")
        limiter = self.gateway.limiter
        try:
            await self.check_store()
        except StoreUnavailable as error:
            limiter.outage.failed(error)
        event_log = self.gateway.event_log
        outage = limiter.outage.describe()
        serves = event_log.is_accepting and (outage is None or limiter.serves_without_redis)
        lines = ["healthz: ok" if serves else "healthz: err", outage, event_log.describe()]
        return ControlResponse(200 if serves else 500, TEXT, "\n".join(filter(None, lines)).encode())

    async def _readyz(self, head: RequestHead) -> ControlResponse:
        """Answer load balancers: 503 while the service starts or drains, although it still serves."""
        if self.status.is_ready:
            return ControlResponse(200, TEXT, b"readyz: ok")
        return ControlResponse(503, TEXT, f"readyz: {self.status.phase.value}".encode())

    async def _find_actor(self, head: RequestHead) -> Actor:
        token = extract_token(head.header)
        try:
            actor = await self.gateway.sources.get(token)
        except NotFromSource:
            raise build_unauthorized(has_token=bool(token)) from None
        except AccessTokenDenied as error:
            raise build_denied(error) from None
        check_access(actor, head.path.decode("latin-1"))
        return actor

    async def _refresh_limits(self, head: RequestHead) -> ControlResponse:
        """Fetch the actor from its source again, so that changed limits take effect at once (the reference's §5)."""
        actor = await self._find_actor(head)
        try:
            await self.gateway.refresher.refresh(actor)
        except ActorRecentlyUpdated as error:
            retry_after = (b"retry-after", b"%d" % math.ceil(error.retry_after_seconds))
            raise Refusal(429, str(error), code="recently_updated", headers=[retry_after]) from None
        except RefreshFailed as error:
            raise Refusal(503, str(error), headers=[(b"retry-after", b"1")]) from None
        except CgwError:
            # The refresher has logged the error; its text may have details that are not for clients.
            raise Refusal(500, "the actor could not be refreshed: its source failed") from None
        return ControlResponse(200, TEXT, b"")

    async def _limits(self, head: RequestHead) -> ControlResponse:
        """Return the state of each feature's quota in the reference's shape, for features that have one."""
        actor = await self._find_actor(head)
        try:
            states = await self.gateway.limiter.peek(actor)
        except StoreUnavailable:
            retry_after = (b"retry-after", b"1")
            raise Refusal(503, "limits cannot be read right now, please retry", headers=[retry_after]) from None
        now = datetime.now(UTC)
        answer: dict[str, object] = {}
        for feature in Feature:
            rate_limit, state = actor.rate_limits.get(feature), states.get(feature)
            if rate_limit is None or state is None:
                continue
            entry: dict[str, object] = {
                "limit": rate_limit.limit,
                "interval": format_go_duration(rate_limit.interval_ms),
                "usage": state.usage,
                "remaining": state.remaining,
                "unit": rate_limit.unit.value,
                "allowedModels": list(rate_limit.allowed_models),
            }
            if state.usage:
                expiry = now + timedelta(milliseconds=state.reset_ms)
                entry["expiry"] = expiry.isoformat(timespec="seconds").replace("+00:00", "Z")
            answer[feature.value] = entry
        return ControlResponse(200, JSON, json.dumps(answer).encode("utf-8"))

    def _find_embeddings(self) -> EmbeddingsRoute | None:
        route = self.routes.find(EmbeddingsRoute.path.encode("ascii"))
        return route if isinstance(route, EmbeddingsRoute) else None

    async def _list_embeddings_models(self, head: RequestHead) -> ControlResponse:
        """Return all embeddings models, and which of them the actor may use here (the reference's §8.2)."""
        actor, route = await self._find_actor(head), self._find_embeddings()
        rate_limit = actor.rate_limits.get(Feature.EMBEDDINGS)
        allowed: Sequence[str] = ()
        if rate_limit is not None and route is not None:
            allowed = evaluate_allowed_models(rate_limit.allowed_models, route.models, route.provider)
        models = [
            {"name": name, "dimensions": dimensions, "enabled": name in allowed, "deprecated": False}
            for name, dimensions in MODELS.items()
        ]
        return ControlResponse(200, JSON, json.dumps(models).encode("utf-8"))


async def _send_answer(send: Send, answer: ControlResponse) -> None:
    fields = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": fields})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _wrong_method(head: RequestHead, allowed: list[str]) -> Refusal:
    method = head.method.decode("latin-1")
    text = f"method {method} is not allowed here, allowed: {', '.join(allowed)}"
    return Refusal(405, text, headers=allowed_methods(allowed))
