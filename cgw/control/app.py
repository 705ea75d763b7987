"""The ASGI app: routes for operators and instances, and exchanges on connections that Hypercorn serves."""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import trio
from attrs import field, frozen

from cgw.actors.authorization import extract_token
from cgw.actors.refresh import RefreshFailed
from cgw.actors.source import AccessTokenDenied, ActorRecentlyUpdated, SourceUnavailable
from cgw.actors.sync import SyncWorker
from cgw.control.attribution import Attribution
from cgw.control.log_level import PATH as LOG_LEVEL_PATH
from cgw.control.log_level import answer_log_level
from cgw.control.maintenance import PREFIX, Maintenance
from cgw.control.metrics import MetricsRoute
from cgw.control.model_lists import ModelLists, ModelRoute, answer_models
from cgw.control.responses import JSON, TEXT, ControlResponse
from cgw.control.scopes import build_request_head, run_lifespan
from cgw.control.source_sync import sync_all_sources
from cgw.control.status import ServiceStatus
from cgw.control.stored_responses import StoredRoute, answer_stored, find_stored_route
from cgw.durations import format_go_duration
from cgw.errors import CgwError, Headers, Refusal, StoreUnavailable
from cgw.gateway.admission import authenticate, check_actor, count_free
from cgw.gateway.answer import allowed_methods
from cgw.gateway.parts import Gateway
from cgw.gateway.request_log import build_control_record
from cgw.gateway.routes import Routes
from cgw.model import Actor, Feature
from cgw.providers.dialect import Dialect
from cgw.providers.embeddings.models import MODELS
from cgw.providers.embeddings.route import EmbeddingsRoute
from cgw.providers.models import evaluate_allowed_models
from cgw.telemetry.current_request import served_trace
from cgw.telemetry.exchange_record import Outcome, begin_times
from cgw.telemetry.log_level import LogLevel
from cgw.transport.asgi_host import TRACE_EXTENSION, Receive, Scope, Send
from cgw.wire.messages import RequestHead
from cgw.wire.trace_context import add_trace


@frozen
class ControlRequest:
    """A request: its head, the address of its client, and the ASGI callable that receives its body.

    ``is_admin``: it came to the admin port.
    """

    head: RequestHead
    client: str
    receive: Receive = field(repr=False)
    is_admin: bool = False


Handler = Callable[[ControlRequest], Awaitable[ControlResponse]]


@frozen
class ControlApp:
    """Everything but exchanges, under any ASGI server: on the public port and on the admin port.

    ``routes`` tell the shape of refusals. ``check_store`` raises
    :exc:`~cgw.errors.StoreUnavailable` when Redis does not answer. Without ``diagnostics_secret``, ``/-/healthz`` is
    open: it tells nothing but whether the service works. ``/-/readyz`` is always open: load balancers have no secret,
    and it tells them nothing but ``status``. ``sync_worker`` is ``None`` where no source can be synced,
    ``maintenance`` where cgw is no client of SAMS.
    """

    gateway: Gateway
    routes: Routes
    version: str
    diagnostics_secret: str | None = field(repr=False)
    check_store: Callable[[], Awaitable[None]]
    status: ServiceStatus
    attribution: Attribution
    sync_worker: SyncWorker | None
    maintenance: Maintenance | None
    metrics: MetricsRoute
    log_level: LogLevel
    model_lists: ModelLists

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection of the public port, HTTP or WebSocket."""
        await self._serve(scope, receive, send, is_admin=False)

    async def serve_admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection of the admin port."""
        await self._serve(scope, receive, send, is_admin=True)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, *, is_admin: bool) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
            return
        head = build_request_head(scope)
        dialect = self.routes.find(head.path)
        client = scope.get("client")
        request = ControlRequest(head, "" if client is None else client[0], receive, is_admin)
        if TRACE_EXTENSION in (scope.get("extensions") or {}):
            # The public port's engine reports the request, and its client's side adds the ids to the answer.
            answer = await self._answer(request, dialect)
            await _send_answer(send, answer.status, answer.headers, answer.body)
            return
        await self._serve_and_report(request, dialect, send)

    async def _serve_and_report(self, request: ControlRequest, dialect: Dialect | None, send: Send) -> None:
        """Serve a request of the admin port, whose server has neither ids nor lines for it."""
        head, times, sent_bytes = request.head, begin_times(trio.current_time()), 0
        outcome, status = Outcome.SHUTDOWN, None
        served_trace.set(head.trace)
        try:
            answer = await self._answer(request, dialect)
            status, sent_bytes = answer.status, len(answer.body)
            await _send_answer(send, status, add_trace(answer.headers, head.trace), answer.body)
            outcome = Outcome.OK if status < 400 else Outcome.REFUSED
        except Exception:
            outcome = Outcome.INTERNAL_ERROR  # Hypercorn answers 500, and logs the bug
            raise
        finally:
            record = build_control_record(head, request.client, outcome, status, times, sent_bytes)
            self.gateway.readers(record)

    async def _answer(self, request: ControlRequest, dialect: Dialect | None) -> ControlResponse:
        errors = self.routes.find_errors(request.head.path)
        try:
            return await self._route(request, dialect)
        except Refusal as refusal:
            headers, body = errors.render(refusal, request.head.trace.trace_id)
            return ControlResponse(refusal.status, (*headers, *refusal.headers), body)

    async def _route(self, request: ControlRequest, dialect: Dialect | None) -> ControlResponse:
        head = request.head
        path = head.path.decode("latin-1")
        reads: dict[str, Handler] = {
            "/v1/limits": self._limits,
            "/-/healthz": self._healthz,
            "/-/readyz": self._readyz,
            "/-/__version": self._version,
            "/-/metrics": self._metrics,
        }
        if self._find_embeddings() is not None:
            reads[EmbeddingsRoute.models_path] = self._list_embeddings_models
        writes: dict[str, Handler] = {"/v1/limits/refresh": self._refresh_limits, "/v1/attribution": self._attribute}
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
        elif path == "/-/actor/sync-all-sources":
            # GET is the reference's, although it changes something; POST is what it should be.
            handler, methods = self._sync_all_sources, ["GET", "POST"]
        elif path == LOG_LEVEL_PATH:
            handler, methods = self._log_level, ["GET", "HEAD", "POST"]
        elif path.startswith(PREFIX):
            handler, methods = self._maintain, ["GET", "HEAD"]
        elif (models := self.model_lists.find(path)) is not None:
            handler, methods = partial(self._list_models, models), ["GET", "HEAD"]
        elif (stored := find_stored_route(self.routes.dialects, path)) is not None:
            handler, methods = partial(self._answer_stored, stored), stored.methods
        else:
            raise _no_route(head)
        if head.method.decode("latin-1") not in methods:
            raise _wrong_method(head, methods)
        return await handler(request)

    async def _list_models(self, route: ModelRoute, request: ControlRequest) -> ControlResponse:
        actor = await self._find_actor(request)
        return answer_models(route, actor, request.head, await self._count_free(actor, request))

    async def _answer_stored(self, route: StoredRoute, request: ControlRequest) -> ControlResponse:
        actor = await self._find_actor(request)
        headers = await self._count_free(actor, request)
        return await answer_stored(self.gateway, route, actor, request.head, headers)

    async def _count_free(self, actor: Actor, request: ControlRequest) -> Headers:
        errors = self.routes.find_errors(request.head.path)
        return await count_free(self.gateway, actor, Feature.CHAT_COMPLETIONS, errors, request.head)

    async def _version(self, request: ControlRequest) -> ControlResponse:
        return ControlResponse(200, TEXT, self.version.encode("utf-8"))

    async def _healthz(self, request: ControlRequest) -> ControlResponse:
        """Report whether requests are served; a line for each part that does not work as it should follows."""
        if self.diagnostics_secret is not None and not _has_secret(request, self.diagnostics_secret):
            return ControlResponse(401, TEXT, b"")
        limiter = self.gateway.limiter
        try:
            await self.check_store()
        except StoreUnavailable as error:
            limiter.outage.failed(error)
        event_log = self.gateway.event_log
        outage = limiter.outage.describe()
        serves = event_log.is_accepting and (outage is None or limiter.serves_without_redis)
        troubles = [outage, event_log.describe(), *self.gateway.sources.describe()]
        lines = ["healthz: ok" if serves else "healthz: err", *troubles]
        return ControlResponse(200 if serves else 500, TEXT, "\n".join(filter(None, lines)).encode())

    async def _metrics(self, request: ControlRequest) -> ControlResponse:
        """Answer a scrape. The numbers tell how the service is used: without a secret, only to the admin port."""
        if self.diagnostics_secret is not None:
            if not _has_secret(request, self.diagnostics_secret):
                return ControlResponse(401, TEXT, b"")
        elif not request.is_admin:
            text = "set CODY_GATEWAY_DIAGNOSTICS_SECRET to use this route, or scrape CODY_GATEWAY_ADMIN_PORT"
            raise Refusal(403, text, code="no_secret")
        return await self.metrics.answer((request.head.header(b"accept") or b"").decode("latin-1"))

    async def _sync_all_sources(self, request: ControlRequest) -> ControlResponse:
        # Unlike healthz never open: each call makes Sourcegraph.com list all its subscriptions.
        return self._check_secret(request) or await sync_all_sources(self.sync_worker)

    async def _log_level(self, request: ControlRequest) -> ControlResponse:
        # Never open either: debug lines fill disks, and a level above WARNING hides what goes wrong.
        return self._check_secret(request) or await answer_log_level(self.log_level, request.head, request.receive)

    def _check_secret(self, request: ControlRequest) -> ControlResponse | None:
        """Return the response to a request that does not present the secret; raise 403 where there is no secret."""
        if self.diagnostics_secret is None:
            raise Refusal(403, "set CODY_GATEWAY_DIAGNOSTICS_SECRET to use this route", code="no_secret")
        return None if _has_secret(request, self.diagnostics_secret) else ControlResponse(401, TEXT, b"")

    async def _maintain(self, request: ControlRequest) -> ControlResponse:
        if self.maintenance is None:
            raise _no_route(request.head)
        return await self.maintenance.answer(request.head)

    async def _attribute(self, request: ControlRequest) -> ControlResponse:
        return await self.attribution.answer(await self._find_actor(request), request.head, request.receive)

    async def _readyz(self, request: ControlRequest) -> ControlResponse:
        """Answer load balancers: 503 while the service starts or drains, although it still serves."""
        if self.status.is_ready:
            return ControlResponse(200, TEXT, b"readyz: ok")
        return ControlResponse(503, TEXT, f"readyz: {self.status.phase.value}".encode())

    async def _find_actor(self, request: ControlRequest) -> Actor:
        """Return the request's actor. Raises :exc:`~cgw.errors.Refusal`, as exchanges do (the reference's §4)."""
        errors = self.routes.find_errors(request.head.path)
        actor = await authenticate(self.gateway, request.head, request.client, errors)
        await check_actor(self.gateway, actor, request.head)
        return actor

    async def _refresh_limits(self, request: ControlRequest) -> ControlResponse:
        """Fetch the actor from its source again, so that changed limits take effect at once (the reference's §5)."""
        actor = await self._find_actor(request)
        try:
            await self.gateway.refresher.refresh(actor, extract_token(request.head.header))
        except ActorRecentlyUpdated as error:
            retry_after = (b"retry-after", b"%d" % math.ceil(error.retry_after_seconds))
            raise Refusal(429, str(error), code="recently_updated", headers=[retry_after]) from None
        except AccessTokenDenied as error:  # since it was fetched last
            raise Refusal(401, str(error)) from None
        except RefreshFailed as error:
            raise Refusal(503, str(error), headers=[(b"retry-after", b"1")]) from None
        except SourceUnavailable as error:
            retry_after = (b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_seconds)))
            raise Refusal(503, "the actor's source cannot be asked right now", headers=[retry_after]) from None
        except CgwError:
            # The refresher has logged the error; its text may have details that are not for clients.
            raise Refusal(500, "the actor could not be refreshed: its source failed") from None
        return ControlResponse(200, TEXT, b"")

    async def _limits(self, request: ControlRequest) -> ControlResponse:
        """Return the state of each feature's quota in the reference's shape, for features that have one."""
        actor = await self._find_actor(request)
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

    async def _list_embeddings_models(self, request: ControlRequest) -> ControlResponse:
        """Return all embeddings models, and which of them the actor may use here (the reference's §8.2)."""
        actor, route = await self._find_actor(request), self._find_embeddings()
        rate_limit = actor.rate_limits.get(Feature.EMBEDDINGS)
        allowed: Sequence[str] = ()
        if rate_limit is not None and route is not None:
            allowed = evaluate_allowed_models(rate_limit.allowed_models, route.models, route.provider)
        models = [
            {"name": name, "dimensions": dimensions, "enabled": name in allowed, "deprecated": False}
            for name, dimensions in MODELS.items()
        ]
        return ControlResponse(200, JSON, json.dumps(models).encode("utf-8"))


def _has_secret(request: ControlRequest, secret: str) -> bool:
    token = extract_token(request.head.header)
    # In constant time, so that the time does not tell how much of a guess is right.
    return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), secret.encode("utf-8"))


async def _send_answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    fields = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _no_route(head: RequestHead) -> Refusal:
    return Refusal(404, f"there is no route {head.path.decode('latin-1')!r}", code="not_found")


def _wrong_method(head: RequestHead, allowed: list[str]) -> Refusal:
    method = head.method.decode("latin-1")
    text = f"method {method} is not allowed here, allowed: {', '.join(allowed)}"
    return Refusal(405, text, headers=allowed_methods(allowed))
