"""The sink that ships usage events to BigQuery, by ``tabledata.insertAll`` in threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio
from attrs import define, field

from cgw.events.sinks.bigquery.client import TableClient, require_client
from cgw.events.sinks.bigquery.inserting import insert
from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.bigquery.table import TableProblem, describe_problems
from cgw.events.sinks.sink import RejectedEvent, SinkUnavailable
from cgw.lifetime import open_background_task

SEND_SECONDS = 30.0
"""The deadline of a batch, with all its calls."""

CLOSE_SECONDS = 1.0
"""The time that calls which are still running get at the end; they end later, in threads that keep no process alive."""

MAX_THREADS = 10
"""As many as the client keeps connections for."""

MAX_BATCH_EVENTS = 500
"""Google's recommendation for ``insertAll``; its limit is 50,000."""

MAX_BATCH_BYTES = 2**20
"""Lines grow up to 3 times in the request (escaped text in text, in ASCII), whose limit is 10 MB. It could be more, but
a thread that encodes JSON holds up all others: 1 MiB takes about 5 ms."""

T = TypeVar("T")
logger = logging.getLogger("cgw.events")


@define
class BigQuerySink:
    """See :class:`~cgw.events.sinks.sink.Sink`. At least once: a view removes duplicates by the events' ids."""

    client: TableClient
    send_seconds: float = SEND_SECONDS
    name: str = field(default="bigquery", init=False)
    max_batch_events: int = field(default=MAX_BATCH_EVENTS, init=False)
    max_batch_bytes: int = field(default=MAX_BATCH_BYTES, init=False)
    # Of its own, so that a BigQuery that hangs takes no thread that others need.
    _limiter: trio.CapacityLimiter = field(factory=partial(trio.CapacityLimiter, MAX_THREADS), init=False)

    async def send(self, lines: Sequence[bytes], batch_id: str) -> Sequence[RejectedEvent]:
        """Insert ``lines``; see :meth:`~cgw.events.sinks.sink.Sink.send`. ``batch_id`` is not used: rows have ids.

        A call that is running when this is cancelled, or late, goes on in its thread until it is answered or times out,
        and is followed by none.
        """
        is_over = threading.Event()
        try:
            return await self._run(partial(insert, self.client, lines, is_over))
        finally:
            is_over.set()

    async def find_problems(self) -> list[TableProblem]:
        """Return each reason why the table cannot take events. Raises :exc:`SinkUnavailable`. Cancel-safe."""
        return await self._run(self.client.find_problems)

    async def wait_idle(self) -> None:
        """Wait until no thread is running."""
        for _ in range(MAX_THREADS):
            await self._limiter.acquire_on_behalf_of(object())

    async def _run(self, function: Callable[[], T]) -> T:
        try:
            with trio.fail_after(self.send_seconds):
                # Abandoned when it is late. Its slot is free again only when the thread has ended, so that threads
                # are bounded whatever BigQuery does.
                return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._limiter)
        except trio.TooSlowError:
            wrong = (
                f"BigQuery, or the server that has this machine's login, did not answer within {self.send_seconds:g} s"
            )
            raise SinkUnavailable(f"{wrong}: check the network, or set GOOGLE_APPLICATION_CREDENTIALS") from None


@asynccontextmanager
async def open_bigquery_sink(settings: BigQuerySettings) -> AsyncIterator[BigQuerySink]:
    """Open the sink for the length of the block, and check the table meanwhile: what is wrong is one line in the log.

    Raises :exc:`~cgw.errors.ConfigError` only where Google's client is not installed. Closing takes up to
    :data:`CLOSE_SECONDS`.
    """
    async with open_unchecked_sink(settings) as sink, open_background_task(partial(_report_problems, sink)):
        yield sink


@asynccontextmanager
async def open_unchecked_sink(
    settings: BigQuerySettings, *, send_seconds: float = SEND_SECONDS
) -> AsyncIterator[BigQuerySink]:
    """Open the sink as :func:`open_bigquery_sink` does, without a look at the table."""
    await trio.to_thread.run_sync(require_client, settings)
    sink = BigQuerySink(TableClient(settings), send_seconds)
    try:
        yield sink
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await sink.wait_idle()
        sink.client.close()


async def _report_problems(sink: BigQuerySink) -> None:
    settings = sink.client.settings
    try:
        problems = await sink.find_problems()
    except SinkUnavailable as error:
        logger.warning("the BigQuery table %s cannot be checked now: %s", settings.table_name, error)
        return
    if problems:
        logger.error("%s", describe_problems(settings, problems))
    else:
        logger.info("usage events are shipped to the BigQuery table %s", settings.table_name)
