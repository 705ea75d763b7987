"""One log line per exchange, from its record."""

from __future__ import annotations

import logging

from cgw.telemetry.exchange_record import ExchangeRecord, RequestKind

exchange_logger = logging.getLogger("cgw.exchange")
request_logger = logging.getLogger("cgw.request")
"""Requests that are no exchanges have a logger of their own, so that they can be turned off."""


class ExchangeHandler(logging.Handler):
    """A handler that takes exchanges without a :class:`logging.LogRecord` around them, too."""

    def emit_exchange(self, record: ExchangeRecord, level: int) -> None:
        """Log ``record``, as :meth:`emit` does. Called from any thread."""
        raise NotImplementedError


def log_exchange(record: ExchangeRecord) -> None:
    """Log one exchange at its record's level, with the traceback of its bug if there is one.

    Nothing is formatted when the level is off.
    """
    level, error = record.level, record.bug
    logger = exchange_logger if record.kind is RequestKind.EXCHANGE else request_logger
    if not logger.isEnabledFor(level):
        return
    # A LogRecord and its way to the handler take 3 µs, a quarter of the whole line. They are spared where nothing else
    # would see the record. Errors take the general path: tools that hook into logging are after them.
    if level < logging.ERROR and error is None and logger is exchange_logger:
        handler = _find_only_handler(level)
        if handler is not None:
            handler.emit_exchange(record, level)
            return
    # A triple: only Logger.log(), which is not used here, makes one of an exception.
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    # Not logger.log(): it walks the stack to find its caller, which costs more than everything else here.
    logger.handle(logger.makeRecord(logger.name, level, "", 0, record, (), exc_info))


def _find_only_handler(level: int) -> ExchangeHandler | None:
    """Return the log's handler if no other handler would get an exchange's record of ``level``."""
    handlers = logging.root.handlers
    if len(handlers) > 1:  # one for error reports takes errors alone
        handlers = [handler for handler in handlers if handler.level <= level]
    if len(handlers) == 1 and not exchange_logger.handlers and exchange_logger.parent is logging.root:
        handler = handlers[0]
        return handler if isinstance(handler, ExchangeHandler) else None
    return None
