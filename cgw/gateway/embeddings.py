"""The exchange of ``/v1/embeddings``: as every other one up to the admission, then answered from whole responses.

The upstream's numbers are passed on as they came; the response around them is cgw's own. Nothing is sent before all of
it is there, so a failure is always a status.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import trio

from cgw.errors import Headers, Refusal, UpstreamError, UpstreamTimeout
from cgw.gateway.admission import AdmittedRequest
from cgw.gateway.exchange import Exchange
from cgw.gateway.opening import tell_trace
from cgw.gateway.own_answers import build_failure_headers
from cgw.gateway.phases import Phase
from cgw.limits.tokens import estimate_tokens
from cgw.model import UsageEvent, UsageQuality
from cgw.providers.dialect import Caller, PreparedRequest
from cgw.providers.embeddings.embedder import MAX_NUMBER_BYTES, Describer, Embedder, explain_status
from cgw.providers.embeddings.route import MAX_INPUTS, EmbeddingsRequest, EmbeddingsRoute
from cgw.providers.embeddings.vectors import HollowBody, Vectors, build_pieces, find_lists
from cgw.transport.relay import RelayEnd, RelayOutcome
from cgw.transport.whole_response import WholeResponse, fetch_whole
from cgw.wire.messages import RequestHead, UpstreamRequest

MAX_DESCRIPTIONS = 15
"""The most descriptions of one request that are under way at once (the reference's §8.6)."""

RETRY_SECONDS = (0.001, 0.005)
"""The mean waits before a second and a third attempt (the reference's §8.5)."""

MAX_DESCRIPTION_BYTES = 256 * 1024
ANSWER_MARGIN_BYTES = 64 * 1024
"""What an answer may have besides its numbers."""

ROWS_PER_CHECKPOINT = 16
"""Vectors that are split off before other tasks get their turn: about a millisecond's work."""

T = TypeVar("T")

logger = logging.getLogger("cgw.upstream")

_CONTENT_TYPE = (b"content-type", b"application/json; charset=utf-8")


class EmbeddingsExchange(Exchange):
    """An exchange whose dialect is the embeddings route."""

    _tokens: int | None = None
    _quality = UsageQuality.ESTIMATED

    def _prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        route = self._dialect
        if not isinstance(route, EmbeddingsRoute):
            raise TypeError("an embeddings exchange needs the embeddings route")
        prepared = route.prepare(head, body, caller)
        self._dialect = route.of(prepared.embedder)  # limits, texts and events name the model's own provider
        return prepared

    async def _ask_upstream(self, admitted: AdmittedRequest) -> RelayOutcome | Refusal:
        self._scope.set_deadline(self._deadline)  # each request to an upstream has a deadline of its own
        request = _narrow(admitted.prepared)
        inputs, described = request.inputs, 0
        if request.embedder.describer is not None:
            inputs, described = await self._describe_all(request, request.embedder.describer)
        vectors = await self._embed(request, inputs)
        if vectors.token_count is not None:
            self._quality = UsageQuality.EXACT
        # KServe tells no tokens: an estimate is charged, instead of nothing at all.
        tokens = described + (vectors.token_count or estimate_tokens(sum(map(len, inputs)), 0))
        self._tokens = self.state.used_tokens = tokens
        return await self._send(admitted, build_pieces(vectors, request.embedder.dimensions), tokens)

    async def _send(self, admitted: AdmittedRequest, pieces: Sequence[bytes], tokens: int) -> RelayOutcome:
        """Send all of the answer but its last piece, which follows the usage event."""
        state, client = self.state, self._client
        state.status, state.is_upstream_complete = 200, True
        state.move(Phase.RELAYING)
        headers: Headers = [
            *build_failure_headers(admitted, client.head),
            _CONTENT_TYPE,
            (b"x-token-usage", b"%d" % tokens),
            (b"content-length", b"%d" % sum(map(len, pieces))),
        ]
        await client.send_head(200, headers, is_stream=False)
        for piece in pieces[:-1]:
            await client.send_chunk(piece)
        return RelayOutcome(RelayEnd.COMPLETE, held_back=pieces[-1])

    async def _embed(self, request: EmbeddingsRequest, inputs: Sequence[str]) -> Vectors:
        """Return the vectors of ``inputs``, after as many attempts as the model has."""
        embedder = request.embedder
        most = len(inputs) * embedder.dimensions * MAX_NUMBER_BYTES + ANSWER_MARGIN_BYTES

        async def attempt() -> Vectors:
            upstream = embedder.build_request(inputs, request.identifier)
            response = await self._fetch(upstream, most)
            vectors = await _read_vectors(embedder, response.body, len(inputs))
            self.state.is_charged = True
            return vectors

        return await _retry(attempt, embedder.attempts)

    async def _describe_all(self, request: EmbeddingsRequest, describer: Describer) -> tuple[list[str], int]:
        """Return the description of each input, and the tokens that they took."""
        spent: list[int] = []

        async def describe(text: str) -> str:
            response = await self._fetch(describer.build_request(text), MAX_DESCRIPTION_BYTES)
            description, tokens = describer.read_answer(response.body)
            spent.append(estimate_tokens(len(text) + len(description), 0) if tokens is None else tokens)
            return description

        return await map_in_parallel(describe, request.inputs, MAX_DESCRIPTIONS), sum(spent)

    async def _fetch(self, request: UpstreamRequest, max_body_bytes: int) -> WholeResponse:
        """Return a response with status 200. Raises :exc:`~cgw.errors.UpstreamError` for any other."""
        request = tell_trace(self._gateway, self._client.head.trace, request)
        response = await fetch_whole(self._gateway.pool, request, self._deadline, max_body_bytes, self._head_seconds)
        self.state.journal.answered(response.head.status)
        self.state.journal.first_chunk(trio.current_time())
        if response.head.status != 200:
            raise explain_status(response.head.status, response.body, self._dialect.provider, request.body)
        return response

    def _build_event(self, admitted: AdmittedRequest) -> UsageEvent:
        tokens = self._tokens if self.state.is_charged else None
        return self.state.build_embeddings_event(admitted, self._dialect.provider, tokens, self._quality)

    async def _refuse(self, refusal: Refusal) -> None:
        """Refuse; a failure always says when to come back: instances retry silently after shorter waits."""
        if refusal.status >= 500 and all(name != b"retry-after" for name, _ in refusal.headers):
            refusal.headers = (*refusal.headers, (b"retry-after", b"%d" % self._dialect.retry_after_seconds))
        await super()._refuse(refusal)


def _narrow(prepared: PreparedRequest) -> EmbeddingsRequest:
    if not isinstance(prepared, EmbeddingsRequest):
        raise TypeError("an embeddings exchange has embeddings requests only")
    return prepared


async def _retry(attempt: Callable[[], Awaitable[Vectors]], attempts: int) -> Vectors:
    """Return what the first of ``attempts`` that succeeds returns; raise the error of the last one.

    A timeout is not retried: the time of the request is over, or soon will be. Cancel-safe.
    """
    for wait in RETRY_SECONDS[: attempts - 1]:
        try:
            return await attempt()
        except UpstreamTimeout:
            raise
        except UpstreamError as error:
            logger.debug("asking again in about %g s: %s", wait, error)
            # Spread by half, so that the requests of one failure do not come back all at once.
            await trio.sleep(wait * random.uniform(0.5, 1.5))
    return await attempt()


async def _read_vectors(embedder: Embedder, body: bytes, count: int) -> Vectors:
    """Return the ``count`` vectors in the body of an answer. Raises :exc:`~cgw.errors.UpstreamError`."""
    spans = await _take(find_lists(body), MAX_INPUTS + 1)
    answer = embedder.read_answer(HollowBody(body, spans))
    rows = await _take(answer.rows, count + 1)
    if len(rows) != count:
        found = "more" if len(rows) > count else f"{len(rows)}"
        raise UpstreamError(f"the upstream's answer has {found} vectors for {count} texts")
    return Vectors(rows, answer.model, answer.token_count)


async def _take(items: Iterator[T], most: int) -> list[T]:
    """Return up to ``most`` of ``items``, each of which takes a while; other tasks get their turn in between."""
    taken: list[T] = []
    for item in islice(items, most):
        taken.append(item)
        if len(taken) % ROWS_PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()
    return taken


async def map_in_parallel(
    function: Callable[[str], Awaitable[str]], texts: Sequence[str], most_at_once: int
) -> list[str]:
    """Return ``function`` of each text, in order, with at most ``most_at_once`` calls under way.

    The first :exc:`~cgw.errors.UpstreamError` cancels the other calls, and is raised. Cancel-safe.
    """
    results = [""] * len(texts)
    failures: list[UpstreamError] = []
    remaining = iter(range(len(texts)))

    async def work() -> None:
        for index in remaining:
            try:
                results[index] = await function(texts[index])
            except UpstreamError as error:
                failures.append(error)
                call_nursery.cancel_scope.cancel()
                return

    try:
        async with trio.open_nursery() as call_nursery:
            for _ in range(min(most_at_once, len(texts))):
                call_nursery.start_soon(work)
    except BaseExceptionGroup:
        # Cancelled from outside, that is a group of one Cancelled per call; the exchange expects a single one.
        await trio.lowlevel.checkpoint_if_cancelled()
        raise
    if failures:
        raise failures[0]
    return results
