"""One log line per exchange: its fields, its level, and its text for a terminal."""

from __future__ import annotations

import enum
import logging

import msgspec

logger = logging.getLogger("cgw.exchange")


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


# Not cgw's fault, but operators may have to act.
_WARNINGS = {Outcome.UPSTREAM_UNREACHABLE, Outcome.UPSTREAM_BROKE, Outcome.TIMEOUT, Outcome.SHUTDOWN}


# A Struct, because building one takes 0.8 µs, a frozen attrs class 2 µs. It cannot be part of a cycle: gc=False.
class ExchangeRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The log's fields for one exchange; ``None`` where unknown or not reached. ``str()`` gives the terminal's line.

    ``path`` has no query, because a query may hold a key. ``status`` is the one that the client was sent.
    ``duration_ms`` is the length of the whole exchange, ``upstream_ms`` the time from sending the upstream's request
    to the end of its response, ``first_byte_ms`` the time from the client's request to the first byte of the
    response's body. ``warning`` is a part of the request that was ignored. ``stale`` is true where the actor's source
    could not be asked lately, otherwise ``None``.
    """

    method: str
    path: str
    outcome: Outcome
    duration_ms: float
    status: int | None = None
    protocol: str = "HTTP/1.1"
    actor: str | None = None
    source: str | None = None
    stale: bool | None = None
    feature: str | None = None
    model: str | None = None
    stream: bool | None = None
    upstream_status: int | None = None
    upstream_ms: float | None = None
    first_byte_ms: float | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    remote_ip: str | None = None
    user_agent: str | None = None
    error: str | None = None
    warning: str | None = None

    @property
    def level(self) -> int:
        """INFO; WARNING for faults of the upstream and our own 503; ERROR for our own bugs."""
        if self.outcome is Outcome.INTERNAL_ERROR:
            return logging.ERROR
        if self.outcome in _WARNINGS:
            return logging.WARNING
        if self.outcome is Outcome.REFUSED:
            status = self.status or 0
            # 500 is a bug of cgw. Other 5xx are overload, or Redis that is unavailable: they end by themselves.
            return logging.INFO if status < 500 else logging.ERROR if status == 500 else logging.WARNING
        upstream_status = self.upstream_status or 0
        # The client's token was accepted before, so a 401 or 403 from the upstream is about the provider's key.
        # A 429 is about the gateway's quota at the provider: cgw's own limits refuse before the upstream is asked.
        is_fault = upstream_status >= 500 or upstream_status in (401, 403, 429)
        return logging.WARNING if is_fault else logging.INFO

    def __str__(self) -> str:
        # Appended to one text, and not joined from a list: half the time. Joining two texts with + raises TypeError
        # for anything else, which keeps bytes out of the log.
        line = self.method + " " + self.path
        line += f" – {self.outcome}" if self.status is None else f" {self.status} {self.outcome}"
        if self.actor:
            line += " " + self.actor
            if self.stale:
                line += " (stale)"
        if self.feature:
            line += " " + self.feature
        if self.model:
            line += " " + self.model
        line += f" stream {self.duration_ms:.0f} ms" if self.stream else f" {self.duration_ms:.0f} ms"
        if self.first_byte_ms is not None:
            line += f" first byte {self.first_byte_ms:.0f} ms"
        if self.upstream_status is not None and self.upstream_status != self.status:
            # Only where it differs: an upstream's 429 reaches the client as 503, for example.
            line += f" upstream {self.upstream_status}"
        if self.response_bytes is not None:
            line += f" {self.response_bytes} bytes"
        if self.warning:
            line += f" ({self.warning})"
        return f"{line}: {self.error}" if self.error else line


class ExchangeHandler(logging.Handler):
    """A handler that takes exchanges without a :class:`logging.LogRecord` around them, too."""

    def emit_exchange(self, record: ExchangeRecord, level: int) -> None:
        """Log ``record``, as :meth:`emit` does. Called from any thread."""
        raise NotImplementedError


def log_exchange(record: ExchangeRecord, error: BaseException | None = None) -> None:
    """Log one exchange at the level that fits its outcome, with the traceback of ``error`` if it is given.

    Nothing is formatted when the level is off.
    """
    level = record.level
    if not logger.isEnabledFor(level):
        return
    # A LogRecord and its way to the handler take 3 µs, a quarter of the whole line. They are spared where nothing else
    # would see the record. Errors take the general path: tools that hook into logging are after them.
    if level < logging.ERROR and error is None and (handler := _find_only_handler()) is not None:
        handler.emit_exchange(record, level)
        return
    # A triple: only Logger.log(), which is not used here, makes one of an exception.
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    # Not logger.log(): it walks the stack to find its caller, which costs more than everything else here.
    logger.handle(logger.makeRecord(logger.name, level, "", 0, record, (), exc_info))


def _find_only_handler() -> ExchangeHandler | None:
    """Return the log's handler if no other handler would get an exchange's record."""
    handlers = logging.root.handlers
    if len(handlers) == 1 and not logger.handlers and logger.parent is logging.root:
        handler = handlers[0]
        return handler if isinstance(handler, ExchangeHandler) else None
    return None
