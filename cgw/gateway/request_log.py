"""Records of requests that are no exchanges: those that the control app answers, and those refused on their heads."""

from __future__ import annotations

import logging
import time
from collections import Counter

import trio

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind, Times, begin_times
from cgw.telemetry.readers import Readers
from cgw.transport.client_side import RefusedHead
from cgw.wire.messages import RequestHead

LINES_PER_SECOND = 20
"""Refused heads with a line of their own; the others of a second share one. They cost a client next to nothing."""

MAX_PATH_CHARACTERS = 200
"""The part of a refused path that is logged: it may be as long as a whole head."""

logger = logging.getLogger("cgw.request")


def build_control_record(
    head: RequestHead, peer: str, outcome: Outcome, status: int | None, times: Times, sent_bytes: int
) -> ExchangeRecord:
    """Return the record of a request that was not an exchange, which ends now. ``peer`` is its client's address."""
    times[Moment.ENDED] = now = trio.current_time()
    return ExchangeRecord(
        trace=head.trace,
        kind=RequestKind.CONTROL,
        method=head.method.decode("latin-1"),
        path=head.path.decode("latin-1"),
        protocol=f"HTTP/{head.http_version.decode('latin-1')}",
        outcome=outcome,
        status=status,
        started_at=time.time() - (now - (times[Moment.STARTED] or now)),
        times=times,
        response_bytes=sent_bytes,
        remote_ip=peer,
        user_agent=(head.header(b"user-agent") or b"").decode("utf-8", "replace") or None,
    )


class RefusalLog:
    """Reports requests that were refused on their heads: :data:`LINES_PER_SECOND` one by one, the rest as a count.

    :meth:`run` must run beside it. A flood of malformed heads costs a line per second more, and about 1 µs for
    each. Requests that are shed are counted by :mod:`cgw.transport.overload`.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
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
        times = begin_times(trio.current_time())
        times[Moment.ENDED] = times[Moment.STARTED]
        record = ExchangeRecord(
            trace=refused.trace,
            kind=RequestKind.REFUSED_HEAD,
            method=refused.method.decode("latin-1") or "-",
            path=refused.path[:MAX_PATH_CHARACTERS].decode("latin-1") or "-",
            outcome=Outcome.REFUSED,
            status=refused.status,
            started_at=time.time(),
            times=times,
            remote_ip=refused.peer,
            error=refused.reason,
        )
        self._readers(record)

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
