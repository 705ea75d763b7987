"""One log line per exchange: what it says, and how serious it is."""

from __future__ import annotations

import enum
import logging

from attrs import frozen

logger = logging.getLogger("cgw.exchange")


class Outcome(enum.StrEnum):
    """How an exchange ended. Whose fault it was stands in the name."""

    OK = "ok"
    """The upstream's answer was passed on as a whole, whatever its status."""
    REFUSED = "refused"
    """Answered by cgw itself: not authorised, over a limit, malformed, overloaded."""
    CLIENT_GONE = "client_gone"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_BROKE = "upstream_broke"
    """The upstream's answer is no valid HTTP, or ended before its end."""
    TIMEOUT = "timeout"
    """The upstream was silent for too long, or took too long in total."""
    SHUTDOWN = "shutdown"
    """Cut off by the end of the drain time."""
    INTERNAL_ERROR = "internal_error"
    """A mistake of ours."""


_WARNINGS = {Outcome.UPSTREAM_UNREACHABLE, Outcome.UPSTREAM_BROKE, Outcome.TIMEOUT, Outcome.SHUTDOWN}


@frozen(kw_only=True)
class ExchangeRecord:
    """What is logged of one exchange; ``None`` where unknown or not reached. As text, it is the line for people.

    ``path`` has no query (that may hold a key). ``status`` is what the client was sent. ``duration_ms`` is the whole
    exchange, ``upstream_ms`` the part from the upstream's request to the end of its answer, ``first_byte_ms`` the
    time from the request to the first byte of the answer's body. ``trace`` is
    ``projects/<project>/traces/<trace id>``, as Cloud Logging wants it.
    """

    method: str
    path: str
    outcome: Outcome
    duration_ms: float
    status: int | None = None
    protocol: str = "HTTP/1.1"
    actor: str | None = None
    source: str | None = None
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
    trace: str | None = None

    @property
    def level(self) -> int:
        """INFO; WARNING for faults of the upstream and our own 503; ERROR for what is our mistake."""
        if self.outcome is Outcome.INTERNAL_ERROR:
            return logging.ERROR
        if self.outcome in _WARNINGS:
            return logging.WARNING
        if self.outcome is Outcome.REFUSED:
            status = self.status or 0
            return logging.INFO if status < 500 else logging.ERROR if status == 500 else logging.WARNING
        upstream_status = self.upstream_status or 0
        # 401 and 403 are about our key: the client's own token was good.
        is_fault = upstream_status >= 500 or upstream_status in (401, 403, 429)
        return logging.WARNING if is_fault else logging.INFO

    def __str__(self) -> str:
        words = [self.method, self.path, "–" if self.status is None else str(self.status), self.outcome.value]
        words += [word for word in (self.actor, self.feature, self.model) if word]
        if self.stream:
            words.append("stream")
        words.append(f"{self.duration_ms:.0f} ms")
        if self.first_byte_ms is not None:
            words.append(f"first byte {self.first_byte_ms:.0f} ms")
        if self.upstream_status is not None and self.upstream_status != self.status:
            words.append(f"upstream {self.upstream_status}")
        if self.response_bytes is not None:
            words.append(f"{self.response_bytes} bytes")
        line = " ".join(words)
        return f"{line}: {self.error}" if self.error else line


def log_exchange(record: ExchangeRecord, error: BaseException | None = None) -> None:
    """Log the one line of an exchange, at the level that fits its outcome, with ``error``'s traceback if given.

    The text is put together by the log's own thread, and not at all when the level is off.
    """
    level = record.level
    if logger.isEnabledFor(level):
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        # Not logger.log(): it walks the stack to find its caller, which costs more than all the rest.
        logger.handle(logger.makeRecord(logger.name, level, "", 0, record, (), exc_info))
