"""Error reports in Sentry's form: what they are grouped by, what they may hold, how many of a kind are sent. Pure.

A report holds nothing that is not listed here: no request, no header, no local variable. Texts of exceptions can quote
what a client sent, so they are left out as in stack traces (:mod:`cgw.telemetry.stack_traces`).
https://develop.sentry.dev/sdk/data-model/event-payloads/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import define

from cgw.errors import explain_os_error
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome
from cgw.telemetry.stack_traces import WITHHELD, may_quote_caller

Event = dict[str, Any]
Fingerprint = tuple[str, ...]

MAX_TEXT_CHARACTERS = 500
MAX_FRAMES = 50
MAX_EXCEPTIONS = 10

REPORTS_PER_MINUTE = 5
"""Reports of one cause; what is more is counted, and told with the next one that is sent."""

ALL_REPORTS_PER_MINUTE = 60
MAX_CAUSES = 500
"""Causes that are counted apart. They are made of places in the code, so there are few."""

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{8,}\b|\d+")

_EVENT_KEYS = (
    *("event_id", "timestamp", "level", "platform", "logger", "release", "environment", "server_name", "sdk"),
    *("fingerprint", "transaction"),
)
_TAGS = frozenset(
    [
        *("trace_id", "outcome", "status", "upstream_status", "feature", "provider", "source", "cause"),
        "suppressed",
    ]
)
_FRAME_KEYS = ("filename", "function", "module", "lineno", "in_app", "context_line", "pre_context", "post_context")
_MECHANISM_KEYS = ("type", "handled", "exception_id", "parent_id", "is_exception_group")


def find_cause(error: BaseException) -> BaseException:
    """Return the exception inside of groups that is worth a report: the first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def fingerprint_exception(error: BaseException) -> Fingerprint:
    """Return what reports of ``error`` are grouped by: its type, and the innermost place in cgw that raised it.

    Without line numbers: a release that moves a line is no new cause.
    """
    error = find_cause(error)
    place, outermost = "", ""
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        outermost = f"{module}:{code.co_qualname}"
        if module.startswith("cgw"):
            place = outermost
        traceback = traceback.tb_next
    return (f"{type(error).__module__}.{type(error).__qualname__}", place or outermost)


def fingerprint_message(logger: str, template: object) -> Fingerprint:
    """Return what log lines without an exception are grouped by: the logger, and the text before its arguments."""
    # Also for texts that were put together before they were logged.
    text = _NUMBER.sub("#", template) if isinstance(template, str) else type(template).__qualname__
    return (logger, text[:MAX_TEXT_CHARACTERS])


def fingerprint_exchange(record: ExchangeRecord) -> Fingerprint:
    """Return what failed exchanges are grouped by: fault, provider and statuses, not their texts."""
    statuses = f"{record.status}", f"{record.upstream_status}"
    return ("exchange", record.outcome.value, record.provider or record.route or "-", *statuses)


def build_exchange_report(record: ExchangeRecord) -> Event:
    """Return the event of an exchange that was answered 5xx, or ended by a fault."""
    where = record.route or "a route that does not exist"
    message = f"{record.method} {where}: {record.status or 'no status'} {record.outcome}"
    return {
        "level": "error" if record.outcome is Outcome.INTERNAL_ERROR or record.status == 500 else "warning",
        "logger": "cgw.exchange",
        "transaction": f"{record.method} {where}",
        "logentry": {"formatted": f"{message}: {select_reason(record) or '-'}"},
        "tags": {
            "outcome": record.outcome.value,
            "status": record.status,
            "upstream_status": record.upstream_status,
            "feature": record.feature,
            "provider": record.provider,
            "source": record.source,
        },
    }


def select_reason(record: ExchangeRecord) -> str | None:
    """Return the part of an exchange's error that may leave the process by other ways than its log."""
    if record.error is None or record.outcome in (Outcome.UPSTREAM_UNREACHABLE, Outcome.TIMEOUT):
        return record.error
    # What follows a colon may be words of the upstream's answer, which may repeat a prompt.
    return record.error.partition(":")[0]


def select_text(error: BaseException | None, text: str) -> str:
    """Return the text of an exception that may be sent."""
    if isinstance(error, OSError) and error.errno is not None:
        return explain_os_error(error)
    if not text:
        return text
    return WITHHELD if error is None or may_quote_caller(error) else text


def scrub(event: Mapping[str, Any], mask: Callable[[str], str], errors: Mapping[str, BaseException]) -> Event:
    """Return the part of ``event`` that may be sent, masked and shortened.

    ``errors`` are the exceptions of the event, each by the type and text that Sentry's SDK wrote for it.
    """

    def clean(value: object) -> object:
        return mask(value)[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else value

    sent: Event = {key: event[key] for key in _EVENT_KEYS if key in event}
    tags = event.get("tags") or {}
    sent["tags"] = {name: clean(str(tags[name])) for name in _TAGS if tags.get(name) is not None}
    trace = (event.get("contexts") or {}).get("trace")
    if trace:
        sent["contexts"] = {"trace": {key: trace[key] for key in ("trace_id", "span_id") if key in trace}}
    entry = event.get("logentry")
    if entry:
        sent["logentry"] = {"formatted": clean(entry.get("formatted") or entry.get("message") or "")}
    values = (event.get("exception") or {}).get("values")
    if values:
        sent["exception"] = {"values": [_scrub_exception(value, clean, errors) for value in values[-MAX_EXCEPTIONS:]]}
    return sent


def _scrub_exception(
    value: Mapping[str, Any], clean: Callable[[object], object], errors: Mapping[str, BaseException]
) -> Event:
    text = str(value.get("value") or "")
    sent: Event = {key: value[key] for key in ("type", "module") if value.get(key)}
    sent["value"] = clean(select_text(errors.get(f"{value.get('type')}:{text}"), text))
    mechanism = value.get("mechanism") or {}
    sent["mechanism"] = {key: mechanism[key] for key in _MECHANISM_KEYS if key in mechanism}
    frames = (value.get("stacktrace") or {}).get("frames")
    if frames:
        sent["stacktrace"] = {
            "frames": [{key: frame[key] for key in _FRAME_KEYS if key in frame} for frame in frames[-MAX_FRAMES:]]
        }
    return sent


def list_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` with its causes, contexts and members of groups; each once, at most 100."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < 100:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]


@define
class _Cause:
    minute: int
    sent: int = 0
    suppressed: int = 0


class StormFilter:
    """Lets some reports of each cause pass in a minute, and some of all causes together; counts the others."""

    def __init__(self) -> None:
        self._causes: dict[Fingerprint, _Cause] = {}
        self._minute = 0
        self._sent = 0
        self.suppressed = 0

    def admit(self, fingerprint: Fingerprint, now: float) -> int | None:
        """Return how many of this cause were suppressed since the last that passed; ``None`` to suppress this one.

        ``now`` is in seconds, by a clock that never goes back.
        """
        minute = int(now // 60)
        if minute != self._minute:
            self._minute, self._sent = minute, 0
        cause = self._causes.get(fingerprint)
        if cause is None:
            if len(self._causes) >= MAX_CAUSES:
                self._causes.pop(next(iter(self._causes)))  # the oldest
            cause = self._causes[fingerprint] = _Cause(minute)
        if cause.minute != minute:
            cause.minute, cause.sent = minute, 0
        if cause.sent >= REPORTS_PER_MINUTE or self._sent >= ALL_REPORTS_PER_MINUTE:
            cause.suppressed += 1
            self.suppressed += 1
            return None
        cause.sent += 1
        self._sent += 1
        suppressed, cause.suppressed = cause.suppressed, 0
        return suppressed
