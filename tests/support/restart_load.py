"""Clients that send request after request while gateways are replaced, and count what fails.

A connection error is a failure, with one exception: a kept connection that ends before a byte of the response may be
retried on a new one (RFC 9112 §9.3.1), as every client does.
"""

from __future__ import annotations

import trio
from attrs import define, field

from tests.support.raw_client import Answer, AnswerCut, RawClient

PAUSE_SECONDS = 0.005


@define
class RestartLoad:
    """Figures: whole responses, retries on a new connection, and failures with what happened."""

    port: int
    request: bytes
    answered: int = 0
    retried: int = 0
    failures: list[str] = field(factory=list)
    is_stopping: bool = False

    async def send_on_fresh_connections(self) -> None:
        """Send each request on a connection of its own, until stopped."""
        while not self.is_stopping:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", self.port)
                async with stream:
                    self._count(await RawClient(stream).ask(self.request))
            except (OSError, AnswerCut, trio.BrokenResourceError) as error:
                self.failures.append(f"fresh connection: {error!r}")
            await trio.sleep(PAUSE_SECONDS)

    async def send_on_kept_connections(self) -> None:
        """Send requests on one connection for as long as the gateway keeps it, until stopped."""
        while not self.is_stopping:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", self.port)
            except OSError as error:
                self.failures.append(f"connecting: {error!r}")
                continue
            async with stream:
                await self._use(RawClient(stream))

    async def _use(self, client: RawClient) -> None:
        requests = 0
        while not self.is_stopping:
            try:
                answer = await client.ask(self.request)
            except (AnswerCut, trio.BrokenResourceError) as error:
                has_begun = isinstance(error, AnswerCut) and (error.status is not None or bool(error.body))
                if requests and not has_begun:
                    self.retried += 1
                else:
                    self.failures.append(f"request {requests} of a kept connection: {error!r}")
                return
            requests += 1
            self._count(answer)
            if answer.headers.get("connection") == "close":
                return
            await trio.sleep(PAUSE_SECONDS)

    def _count(self, answer: Answer) -> None:
        if answer.status == 200:
            self.answered += 1
        else:
            self.failures.append(f"status {answer.status}: {answer.body[:200]!r}")
