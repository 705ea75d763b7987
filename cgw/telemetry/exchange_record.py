"""The record of one exchange, which every report of it is made from: log line, metrics, spans, error report.

It is built once, after the answer is out; nothing that reports runs before that. Requests that are no exchanges (those
of the control app, and those that were refused on their heads) leave the same record, with less in it.
"""

from __future__ import annotations

import enum
import logging

import msgspec

from cgw.telemetry.exchange_text import describe_exchange
from cgw.wire.trace_context import RequestTrace


class Outcome(enum.StrEnum):
    """The end of an exchange; the name says whose fault it was."""

    OK = "ok"
    """The upstream's whole response was relayed, whatever its status."""
    REFUSED = "refused"
    """cgw answered instead of the upstream: not authorised, over a limit, malformed, overloaded."""
    CLIENT_GONE = "client_gone"
    """The client disconnected, or stopped reading, before the end of its response."""
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    """No connection to the upstream could be opened."""
    UPSTREAM_BROKE = "upstream_broke"
    """The upstream's response is not valid HTTP, or is incomplete."""
    TIMEOUT = "timeout"
    """The upstream sent nothing for too long, or took too long in total."""
    SHUTDOWN = "shutdown"
    """Cut off when the drain timeout was over."""
    INTERNAL_ERROR = "internal_error"
    """A bug in cgw."""


class RequestKind(enum.StrEnum):
    """The kind of request that a record is of."""

    EXCHANGE = "exchange"
    """A request to a provider route."""
    CONTROL = "control"
    """A request that cgw answers itself: limits, lists, health, a route that does not exist."""
    REFUSED_HEAD = "refused_head"
    """A request that was refused before its head was looked at: malformed, too large, too slow."""


class Moment(enum.IntEnum):
    """The moments of an exchange that are noted, in their order; the index of each in ``ExchangeRecord.times``."""

    STARTED = 0
    """The first bytes of the request have come."""
    AUTHENTICATED = 1
    """The actor is known."""
    RECEIVED = 2
    """The request's body is whole."""
    PREPARED = 3
    """The body is checked, and the upstream's request built from it."""
    ADMITTED = 4
    """The limits let it through, and the upstream is asked, or first a connection to it is opened."""
    CONNECTED = 5
    """A new connection to the upstream is open; not noted where a kept one was used."""
    ANSWERED = 6
    """The head of the upstream's response has come."""
    FIRST_CHUNK = 7
    """The first bytes of the response's body have come."""
    RELAYED = 8
    """The upstream's response has ended, or never came."""
    RECORDED = 9
    """The usage event is written."""
    SETTLED = 10
    """The limits know what was used."""
    ENDED = 11
    """Nothing of it runs any more."""


Times = list[float | None]

_NOT_REACHED = (None,) * (len(Moment) - 1)


def begin_times(now: float) -> Times:
    """Return the times of an exchange that starts ``now`` (Trio's clock), for its moments to be noted in."""
    return [now, *_NOT_REACHED]


# Not cgw's fault, but operators may have to act.
_WARNINGS = {Outcome.UPSTREAM_UNREACHABLE, Outcome.UPSTREAM_BROKE, Outcome.TIMEOUT, Outcome.SHUTDOWN}


# A Struct, because building one takes a third of what an attrs class takes. Not frozen: an exchange notes in it what it
# learns, which is half the work of collecting that and building the record from it in the end. Seen by the garbage
# collector, as a bug's traceback leads back to its exchange, and so to its record.
class ExchangeRecord(msgspec.Struct):
    """One exchange; ``None`` where unknown or not reached. ``str()`` gives the terminal's line.

    It is filled while the exchange runs; from its end on, when readers have it, it is not changed.

    ``trace`` has its ids. ``started_at`` is in seconds since the epoch; ``times`` are by Trio's clock, see
    :class:`Moment`, and not to be changed. ``path`` has no query, because a query may hold a key; ``route`` is the
    route that it belongs to, of which there are a bounded number. ``status`` is the one that the client was sent.
    ``model`` is ``provider/model``, and checked: a model that is not served has no name here. ``chunks`` are pieces in
    which the response's body came. ``prompt_tokens`` and so on are the usage event's. ``event_id`` is that of the usage
    event. ``is_reused`` tells whether a kept connection carried the request. ``warning`` is a part of the request that
    was ignored. ``stale`` is true where the actor's source could not be asked lately, otherwise ``None``. ``bug`` is
    the exception behind an internal error.
    """

    trace: RequestTrace
    kind: RequestKind
    method: str
    path: str
    outcome: Outcome
    started_at: float
    times: Times
    route: str | None = None
    status: int | None = None
    protocol: str = "HTTP/1.1"
    actor: str | None = None
    source: str | None = None
    stale: bool | None = None
    feature: str | None = None
    provider: str | None = None
    model: str | None = None
    stream: bool | None = None
    upstream_status: int | None = None
    is_reused: bool | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    chunks: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cache_read_tokens: int | None = None
    usage_quality: str | None = None
    event_id: str | None = None
    remote_ip: str | None = None
    user_agent: str | None = None
    error: str | None = None
    warning: str | None = None
    bug: BaseException | None = None

    @property
    def request_id(self) -> str:
        """The id that the client was told: that of the trace."""
        return self.trace.trace_id

    @property
    def ended_at(self) -> float:
        """The end, in seconds since the epoch."""
        return self.started_at + self.measure()[0]

    def measure(self) -> tuple[float, float | None, float | None, float | None]:
        """Return the seconds of the whole, to the first byte of the body, of the upstream, and of cgw.

        The upstream's are those from asking it to the arrival of the end of its response, cgw's are all others.
        ``None`` where that was not reached.
        """
        # The order of Moment. Unpacked, because that is a third of looking five of them up.
        start, _, _, _, asked, _, _, first, relayed, _, _, end = self.times
        if start is None:
            return 0.0, None, None, None
        seconds = 0.0 if end is None else end - start
        first_byte = None if first is None else first - start
        if asked is None or relayed is None:
            return seconds, first_byte, None, None
        upstream = relayed - asked
        return seconds, first_byte, upstream, seconds - upstream

    @property
    def level(self) -> int:
        """The log's level: WARNING for faults of the upstream and our own 503, ERROR for our own bugs, else INFO.

        DEBUG for what the control app answered well: probes and scrapes come each second.
        """
        outcome, upstream_status = self.outcome, self.upstream_status or 0
        if outcome is Outcome.OK and upstream_status < 400:  # nearly all
            return logging.INFO if self.kind is not RequestKind.CONTROL else logging.DEBUG
        if outcome is Outcome.INTERNAL_ERROR:
            return logging.ERROR
        if outcome in _WARNINGS:
            return logging.WARNING
        if outcome is Outcome.REFUSED:
            status = self.status or 0
            # 500 is a bug of cgw. Other 5xx are overload, or Redis that is unavailable: they end by themselves.
            return logging.INFO if status < 500 else logging.ERROR if status == 500 else logging.WARNING
        # The client's token was accepted before, so a 401 or 403 from the upstream is about the provider's key.
        # A 429 is about the gateway's quota at the provider: cgw's own limits refuse before the upstream is asked.
        is_fault = upstream_status >= 500 or upstream_status in (401, 403, 429)
        return logging.WARNING if is_fault else logging.INFO

    def __str__(self) -> str:
        return describe_exchange(self)
