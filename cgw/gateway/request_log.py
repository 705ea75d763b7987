"""Log lines of requests that are no exchanges: those that the control app answers, and those refused on their heads."""

from __future__ import annotations

import logging
from collections import Counter

import trio

from cgw.telemetry.exchange_log import ExchangeRecord, Outcome
from cgw.transport.client_side import ClientSide, RefusedHead

LINES_PER_SECOND = 20
"""Refused heads with a line of their own; the others of a second share one. They cost a client next to nothing."""

PROBE_PREFIX = b"/-/"
"""Probes of load balancers, each second or more often: their lines are for debugging."""

MAX_PATH_CHARACTERS = 200
"""The part of a refused path that is logged: it may be as long as a whole head."""

logger = logging.getLogger("cgw.request")


def log_answered(client: ClientSide, outcome: Outcome, status: int | None, started: float) -> None:
    """Log a request that was not an exchange: these lines show which routes clients look for."""
    head = client.head
    record = ExchangeRecord(
        method=head.method.decode("latin-1"),
        path=head.path.decode("latin-1"),
        protocol=f"HTTP/{head.http_version.decode('latin-1')}",
        outcome=outcome,
        status=status,
        duration_ms=(trio.current_time() - started) * 1000,
        response_bytes=client.bytes_sent,
        remote_ip=client.peer,
        user_agent=(head.header(b"user-agent") or b"").decode("utf-8", "replace") or None,
    )
    # The line has the same fields as an exchange's, under another logger.
    logger.log(logging.DEBUG if head.path.startswith(PROBE_PREFIX) else record.level, record)


class RefusalLog:
    """Logs requests that were refused on their heads: :data:`LINES_PER_SECOND` one by one, the rest as a count.

    :meth:`run` must run beside it. A flood of malformed heads costs a line per second more, and about 1 µs for
    each. Requests that are shed are counted by :mod:`cgw.transport.overload`.
    """

    def __init__(self) -> None:
        self._second_ends_at = 0.0
        self._lines_left = 0
        self._uncounted: Counter[int | None] = Counter()
        self._overflow = trio.Event()

    def note(self, refused: RefusedHead) -> None:
        """Log one refusal, or count it."""
        if self._lines_left <= 0 and not self._begin_second():
            self._uncounted[refused.status] += 1
            self._overflow.set()
            return
        self._lines_left -= 1
        record = ExchangeRecord(
            method=refused.method.decode("latin-1") or "-",
            path=refused.path[:MAX_PATH_CHARACTERS].decode("latin-1") or "-",
            outcome=Outcome.REFUSED,
            status=refused.status,
            duration_ms=0,
            remote_ip=refused.peer,
            error=refused.reason,
        )
        logger.log(record.level, record)

    async def run(self) -> None:
        """Log the counts at the end of each second that has any, until cancelled; then what is left."""
        try:
            while True:
                await self._overflow.wait()
                await trio.sleep_until(self._second_ends_at)
                self._log_counts()
        finally:
            self._log_counts()

    def _begin_second(self) -> bool:
        now = trio.current_time()
        if now < self._second_ends_at or self._uncounted:
            return False
        self._second_ends_at = now + 1
        self._lines_left = LINES_PER_SECOND
        return True

    def _log_counts(self) -> None:
        counts, self._uncounted = self._uncounted, Counter()
        self._overflow = trio.Event()
        if counts:
            parts = (f"{count} with {status or 'a stream error'}" for status, count in counts.most_common())
            logger.warning("%d more requests were refused on their heads: %s", counts.total(), ", ".join(parts))
