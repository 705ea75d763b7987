"""The exchange of pass routes: neither the request's body nor the answer is read, and both may stream at once.

A small body is received whole, as everywhere. A larger one, or one of unknown size, goes up while it comes::

    client ── receive_chunk ──> _send_up ── send_piece ──> upstream      a task of its own; each waits for the other
    client <────────────── relay (fallback path) <──────── upstream      begins as soon as the answer does

An answer that is complete ends an upload that is not; a client that leaves ends both.
"""

from __future__ import annotations

import trio

from cgw.errors import ClientGone, Refusal, UpstreamError, UpstreamTimeout
from cgw.gateway.admission import AdmittedRequest, check_feature
from cgw.gateway.exchange import Exchange
from cgw.gateway.opening import tell_trace
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.providers.dialect import PreparedRequest
from cgw.providers.model_patterns import compile_allow_list
from cgw.transport.relay import RelayOutcome
from cgw.transport.upstream_connection import UpstreamConnection

SMALL_BODY_BYTES = 64 * 1024
"""Up to this size a body is received whole: it fits into one read, and a kept connection can carry it."""


class PassExchange(Exchange):
    """An exchange whose dialect is a :class:`~cgw.providers.pass_routes.PassRoute`."""

    _is_upload = False
    _has_head = False
    _failure: Exception | None = None  # of an upload: what the exchange fails with

    async def _receive_body(self) -> bytes:
        head = self._client.head
        length = head.header(b"content-length")
        is_open = head.header(b"transfer-encoding") is not None or (
            length is None and head.http_version == b"2" and head.method not in (b"GET", b"DELETE")
        )
        self._is_upload = is_open or int(length or 0) > SMALL_BODY_BYTES
        return b"" if self._is_upload else await super()._receive_body()

    def _await_head(self) -> None:
        if self._is_upload:
            self._scope.set_deadline(self._deadline)  # the head has its time from the end of the upload on
        else:
            super()._await_head()

    def _check_access(self, actor: Actor, feature: Feature, prepared: PreparedRequest) -> RateLimit:
        """Raise :exc:`~cgw.errors.Refusal` 403 for actors whose limits an unread request could get around."""
        rate_limit = check_feature(actor, feature)
        provider = self._dialect.provider
        if not compile_allow_list(tuple(rate_limit.allowed_models), provider).admits(prepared.model):
            text = f"this route is not read, so it is for callers whose models include all of {provider}'s"
            raise Refusal(403, f"{text}, or {prepared.model}", code="access_not_granted")
        if rate_limit.unit is LimitUnit.TOKENS:
            text = "this route is not read, so it is not for callers whose quota counts tokens"
            raise Refusal(403, text, code="access_not_granted")
        return rate_limit

    async def _ask_upstream(self, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        # Neither fallback nor load tracking: those are about models.
        pool = self._gateway.pool
        request = tell_trace(self._gateway, self._client.head.trace, admitted.prepared.upstream)
        if not self._is_upload:
            self._response = await pool.open(request)
            return await self._pass_on_and_keep(admitted)
        length = self._client.head.header(b"content-length")
        connection = await pool.open_upload(request, None if length is None else int(length))
        connected_at = trio.current_time()
        answer: RelayOutcome | Refusal | None = None
        try:
            # The fast path reads the upstream's connection in another thread, beside which nothing may be sent on it.
            self._relay = None
            async with trio.open_nursery() as upload_nursery:
                upload_nursery.start_soon(self._send_up, connection, upload_nursery.cancel_scope)
                try:
                    self._response = await pool.receive_response(connection, connected_at)
                    self._has_head = True
                    answer = await self._pass_on_and_keep(admitted)
                except (UpstreamError, ClientGone) as error:
                    self._failure = self._failure or error
                upload_nursery.cancel_scope.cancel()
        except BaseExceptionGroup:
            # Cancelled from outside, that is a group; the exchange expects a single Cancelled.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        finally:
            if self._response is None:
                connection.close()
        return answer or self._explain_failure()

    def _explain_failure(self) -> Refusal:
        """Return what to refuse an upload with that failed; raise it where it is no refusal, or comes too late."""
        failure = self._failure
        if isinstance(failure, Refusal):
            if not self._client.is_response_started:
                self.state.note_refusal(failure)
                return failure
            failure = UpstreamError(failure.message)  # the answer breaks off
        raise failure or UpstreamError("the upload ended without an answer")

    async def _pass_on_and_keep(self, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        response = self._response
        if response is None:
            raise RuntimeError("there is no response to pass on")
        answer = await self._pass_on(response, admitted)
        if isinstance(answer, Refusal) or answer.resume is None:
            self._give_back()
        return answer

    async def _send_up(self, connection: UpstreamConnection, scope: trio.CancelScope) -> None:
        """Pass the body on up to its end, or until the upstream takes no more of it: its answer says why then."""
        seconds = self._gateway.pool.deadlines.silence_seconds
        try:
            is_open = True
            while is_open and (chunk := await self._client.receive_chunk()) is not None:
                with trio.fail_after(seconds):
                    is_open = await connection.send_piece(chunk)
            if is_open:
                with trio.fail_after(seconds):
                    await connection.end_upload()
            self._relay = self._gateway.relay
            if not self._has_head:
                super()._await_head()
        except trio.TooSlowError:
            self._fail(UpstreamTimeout(f"the upstream took nothing of the request for {seconds:g} seconds"), scope)
        except (ClientGone, Refusal) as error:
            self._fail(error, scope)

    def _fail(self, error: Exception, scope: trio.CancelScope) -> None:
        self._failure = error
        scope.cancel()
