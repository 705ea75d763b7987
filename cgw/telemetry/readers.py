"""Reports of exchanges: records are gathered, and each kind of report is made of a batch of them.

::

    Trio thread: an exchange ends ──▶ gathered ──┬── the first after a quiet time, and every BATCH-th ──┐
                                                 ├── every GATHER_SECONDS while records come ───────────┼─▶ readers
                                                 └── flush(): another line of the log, a scrape, the end┘

One by one, between other code that has taken the processor's caches, reports cost two to three times as much.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from cgw.telemetry.exchange_log import PassiveHandler, log_exchanges
from cgw.telemetry.exchange_record import ExchangeRecord

BATCH = 32
"""The records that are reported at once, in some 0.3 ms: few enough for a pause of the Trio thread that no stream
feels. It bounds the records that wait, too; a record may hold a head of 64 KiB."""

GATHER_SECONDS = 0.1
"""The longest time that a record waits for others."""

Reader = Callable[[Sequence[ExchangeRecord]], None]
"""Takes records of exchanges whose answers are out, in the order of their ends. Runs on the Trio thread, for some
microseconds for each: what takes longer belongs into a thread, behind a bounded queue that drops and counts."""

logger = logging.getLogger("cgw.telemetry")


class Readers:
    """Hands records to all readers, in order, a batch at a time while :meth:`run` runs, and otherwise one by one.

    A reader that fails costs its own reports of that batch, and no exchange. Belongs to one thread.
    """

    def __init__(self, readers: Sequence[Reader] = (log_exchanges,)) -> None:
        self._readers = tuple(readers)
        self._failed: set[Reader] = set()
        self._gathered: list[ExchangeRecord] = []
        self._full_at = 1
        self._reported = 0
        self._is_reporting = False
        self._awaited: trio.Event | None = None  # the next record, while run() waits for it

    def __call__(self, record: ExchangeRecord) -> None:
        """Report one exchange, within :data:`GATHER_SECONDS`. Never raises."""
        gathered = self._gathered
        gathered.append(record)
        # A bug does not wait: it is to be seen at once, and its traceback keeps the request's body alive.
        if len(gathered) >= self._full_at or record.bug is not None:
            if self._awaited is not None:
                self._awaited.set()
                self._awaited, self._full_at = None, BATCH
            self.flush()

    def flush(self) -> None:
        """Report what has gathered. Never raises."""
        gathered = self._gathered
        # A reader that logs comes here again, and so do signal handlers and finalizers that log.
        if not gathered or self._is_reporting:
            return
        self._is_reporting = True
        batch = gathered.copy()
        del gathered[: len(batch)]
        self._reported += len(batch)
        try:
            for reader in self._readers:
                try:
                    reader(batch)
                except Exception:  # the boundary between reports and exchanges
                    if reader not in self._failed:  # a reader that fails once fails for every exchange
                        self._failed.add(reader)
                        logger.exception("a reader of exchanges failed; it is reported once")
        finally:
            # Whatever a reader raises: otherwise nothing would be reported any more, and records would gather for ever.
            self._is_reporting = False

    async def run(self) -> None:
        """Let records gather until cancelled; then what has gathered is reported."""
        try:
            while True:
                # Idle: no wake-ups. The first record after a quiet time is reported at once.
                self._full_at, self._awaited = 1, (awaited := trio.Event())
                await awaited.wait()
                seen = 0
                while seen != self._reported:
                    seen = self._reported
                    await trio.sleep(GATHER_SECONDS)
                    self.flush()
        finally:
            self._full_at, self._awaited = 1, None
            self.flush()

    @contextmanager
    def precede_log(self) -> Iterator[None]:
        """Have what has gathered reported before any other line of this thread is logged, so that the log is in order.

        Lines of other threads are not waited for: their time tells the order. At its end the block leaves nothing.
        """
        handler = _FlushFirst(self)
        logging.root.handlers.insert(0, handler)
        try:
            yield
        finally:
            self.flush()
            logging.root.removeHandler(handler)


class _FlushFirst(PassiveHandler):
    """Writes nothing: it is the first handler of the root logger, and has the readers come before the others."""

    def __init__(self, readers: Readers) -> None:
        super().__init__()
        self._readers = readers
        self._thread_id = threading.get_ident()

    def handle(self, record: logging.LogRecord) -> bool:
        """Report what has gathered; ``record`` itself is for the other handlers."""
        self.flush()
        return True

    def flush(self) -> None:
        """Report what has gathered."""
        if threading.get_ident() == self._thread_id:  # records belong to the thread that serves
            self._readers.flush()
