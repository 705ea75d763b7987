"""The readers of exchange records: each makes one kind of report of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from cgw.telemetry.exchange_log import log_exchange
from cgw.telemetry.exchange_record import ExchangeRecord

Reader = Callable[[ExchangeRecord], None]
"""Takes the record of an exchange whose answer is out. Runs on the Trio thread, for some microseconds: what takes
longer belongs into a thread, behind a bounded queue that drops and counts."""

logger = logging.getLogger("cgw.telemetry")


class Readers:
    """Hands each record to all readers, in order. A reader that fails costs its own report, and no exchange."""

    def __init__(self, readers: Sequence[Reader] = (log_exchange,)) -> None:
        self._readers = tuple(readers)
        self._failed: set[Reader] = set()

    def __call__(self, record: ExchangeRecord) -> None:
        """Report one exchange. Never raises."""
        for reader in self._readers:
            try:
                reader(record)
            except Exception:  # the boundary between reports and the exchange
                if reader not in self._failed:  # a reader that fails once fails for every exchange
                    self._failed.add(reader)
                    logger.exception("a reader of exchanges failed; it is reported once")
