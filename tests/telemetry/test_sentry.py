"""Error reports: what reaches Sentry, what does not, and what a Sentry that is away costs."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cgw.errors import ConfigError
from cgw.telemetry.current_request import served_trace
from cgw.telemetry.error_events import (
    ALL_REPORTS_PER_MINUTE,
    MAX_CAUSES,
    REPORTS_PER_MINUTE,
    StormFilter,
    fingerprint_exception,
    fingerprint_message,
)
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome, RequestKind, begin_times
from cgw.telemetry.masking import SecretMask
from cgw.telemetry.sentry import FLUSH_SECONDS, MAX_PENDING, ErrorReports, open_error_reports
from cgw.telemetry.stack_traces import WITHHELD
from cgw.wire.trace_context import begin_trace
from tests.support.collectors import Receiver, open_receiver

KEY = "canarykey0123456789"
SECRET = "sk-ant-canary-0123456789"
PROMPT = "CANARY PROMPT the quick brown fox"

logger = logging.getLogger("cgw.something")


@contextlib.contextmanager
def open_reports(receiver: Receiver) -> Iterator[ErrorReports]:
    """Open reports to ``receiver``."""
    dsn = receiver.url.replace("http://", f"http://{KEY}@") + "/42"
    with open_error_reports(dsn, environment="test", mask=SecretMask([SECRET]), release="1.2.3") as reports:
        assert reports is not None
        yield reports


@pytest.fixture
def sentry() -> Iterator[Receiver]:
    """A Sentry that accepts everything."""
    with open_receiver() as receiver:
        yield receiver


def build_record(**changes: object) -> ExchangeRecord:
    """Build the record of an exchange that an upstream failed."""
    values: dict[str, object] = {
        "trace": begin_trace(),
        "kind": RequestKind.EXCHANGE,
        "method": "POST",
        "path": "/v1/completions/openai",
        "route": "/v1/completions/openai",
        "outcome": Outcome.UPSTREAM_BROKE,
        "started_at": 1.8e9,
        "times": begin_times(1.0),
        "status": 502,
        "provider": "openai",
        "feature": "chat_completions",
        "actor": "someone",
        "error": f"the response is not HTTP: {PROMPT}",
    }
    return ExchangeRecord(**{**values, **changes})  # type: ignore[arg-type]


def crash(text: str) -> None:
    """Raise an error with local variables that must not be sent."""
    body = f"{PROMPT} {SECRET}"
    raise ValueError(f"{text} {body}")


def test_an_error_in_the_log_is_reported_with_its_place_and_without_its_data(sentry: Receiver) -> None:
    """The report has type, frames, release, environment and trace; neither prompt nor key, nor local variables."""
    with open_reports(sentry):
        trace = begin_trace()
        served_trace.set(trace)
        try:
            crash("bad")
        except ValueError:
            logger.exception("a part of cgw failed at %s with %s", "somewhere", SECRET)
        served_trace.set(None)
    (event,) = sentry.events()
    assert event["release"] == "cgw@1.2.3"
    assert event["environment"] == "test"
    assert event["logger"] == "cgw.something"
    assert event["tags"]["trace_id"] == event["contexts"]["trace"]["trace_id"] == trace.trace_id
    (error,) = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("ValueError", WITHHELD)
    assert [frame["function"] for frame in error["stacktrace"]["frames"]][-1] == "crash"
    assert event["logentry"]["formatted"] == "a part of cgw failed at somewhere with [masked]"
    for post in sentry.posts:
        assert SECRET.encode() not in post.body
        assert PROMPT.encode() not in post.body
        assert b'"vars"' not in post.body
        assert b"modules" not in post.body


def test_texts_that_the_interpreter_or_cgw_wrote_are_sent(sentry: Receiver) -> None:
    """The text of a TypeError, of cgw's own errors, and the reason of a system call are in the report."""
    with open_reports(sentry):
        errors: list[Exception] = [ConfigError(["PORT: is wrong"]), TypeError("no len()"), OSError(28, "x", "/a/b")]
        for error in errors:
            logger.error("failed", exc_info=error)
    texts = [event["exception"]["values"][-1]["value"] for event in sentry.events()]
    assert texts == ["PORT: is wrong", "no len()", "No space left on device"]


def test_an_exchange_answered_5xx_is_reported_by_its_cause(sentry: Receiver) -> None:
    """A 502 is a warning with provider, statuses and trace, grouped by them; the upstream's words are not sent."""
    records = [build_record(actor="a", path="/v1/1"), build_record(actor="b", path="/v1/2")]
    with open_reports(sentry) as reports:
        for record in records:
            reports([record])
        reports([build_record(status=429, outcome=Outcome.REFUSED)])
        reports([build_record(status=200, outcome=Outcome.OK)])
    one, other = sentry.events()
    assert one["fingerprint"] == other["fingerprint"] == ["exchange", "upstream_broke", "openai", "502", "None"]
    assert one["level"] == "warning"
    assert one["tags"]["trace_id"] == records[0].trace.trace_id
    assert one["tags"]["provider"] == "openai"
    assert one["logentry"]["formatted"] == ("POST /v1/completions/openai: 502 upstream_broke: the response is not HTTP")
    assert not any(PROMPT.encode() in post.body or b"someone" in post.body for post in sentry.posts)


def test_a_bug_of_an_exchange_is_reported_once(sentry: Receiver) -> None:
    """The exchange's report has the exception; its line in the log is no second report."""
    with pytest.raises(ValueError, match="bug") as caught:
        crash("bug")
    record = build_record(outcome=Outcome.INTERNAL_ERROR, status=500, bug=caught.value)
    with open_reports(sentry) as reports:
        reports([record])
        logging.getLogger("cgw.exchange").error(record, exc_info=caught.value)
    (event,) = sentry.events()
    assert event["level"] == "error"
    assert event["exception"]["values"][0]["type"] == "ValueError"


def test_errors_group_by_cause_and_not_by_their_numbers() -> None:
    """Exceptions group by type and place, lines by logger and template, whatever numbers they have."""
    fingerprints = set()
    for text in ("1", "2"):
        try:
            crash(text)
        except ValueError as error:
            fingerprints.add(fingerprint_exception(ExceptionGroup("x", [ExceptionGroup("y", [error])])))
    assert fingerprints == {("builtins.ValueError", f"{__name__}:crash")}
    assert fingerprint_message("a", "%d lost") == ("a", "%d lost")
    assert fingerprint_message("a", "17 lost at 0xdeadbeef") == fingerprint_message("a", "4 lost at 0x12")
    assert fingerprint_message("a", "lost") != fingerprint_message("b", "lost")


def test_a_storm_of_one_error_is_sampled_and_its_size_told(sentry: Receiver) -> None:
    """Of 10,000 equal errors a few are sent, another cause still is, and the statistics have the rest."""
    with open_reports(sentry) as reports:
        for number in range(10_000):
            logger.error("number %d failed", number)
        logger.error("something else failed")
        statistics = reports.statistics()
    assert len(sentry.events()) == REPORTS_PER_MINUTE + 1
    assert statistics.suppressed == 10_000 - REPORTS_PER_MINUTE
    assert statistics.sent == REPORTS_PER_MINUTE + 1


def test_the_storm_filter_tells_what_it_suppressed_and_is_bounded() -> None:
    """After a minute one passes with the number of suppressed ones; causes and all reports together have bounds."""
    storms = StormFilter()
    assert [storms.admit(("a",), 0.0) for _ in range(REPORTS_PER_MINUTE + 2)] == [0] * REPORTS_PER_MINUTE + [None] * 2
    assert storms.admit(("a",), 60.0) == 2
    admitted = [storms.admit((str(number),), 120.0) for number in range(10 * MAX_CAUSES)]
    assert len([one for one in admitted if one is not None]) == ALL_REPORTS_PER_MINUTE
    assert len(storms._causes) == MAX_CAUSES


def test_crashes_are_reported_and_still_raised(sentry: Receiver) -> None:
    """What leaves the block, a thread or a finalizer is reported as fatal, before the block is left."""

    class Noisy:
        def __del__(self) -> None:
            raise AttributeError("finalizer")

    def fail() -> None:
        raise TypeError("thread")

    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = (lambda arguments: None), (lambda arguments: None)
    try:
        with pytest.raises(ExceptionGroup), open_reports(sentry):  # noqa: PT012 - the hooks live within it
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
            Noisy()
            raise ExceptionGroup("nursery", [NameError("crash")])
    finally:
        threading.excepthook, sys.unraisablehook = hooks
    events = sentry.events()
    assert {(event["tags"]["cause"], event["exception"]["values"][-1]["value"]) for event in events} == {
        ("thread", "thread"),
        ("unraisable", "finalizer"),
        ("crash", "crash"),
    }
    assert {event["level"] for event in events} == {"fatal"}


def test_what_is_said_to_the_operator_is_no_crash(sentry: Receiver) -> None:
    """A wrong setting, and Ctrl-C, leave no report."""
    for error in (ConfigError(["PORT: is wrong"]), KeyboardInterrupt()):
        with pytest.raises(type(error)), open_reports(sentry):
            raise error
    assert sentry.events() == []


@pytest.mark.parametrize("kind", ["hangs", "refuses", "limits", "dead"])
def test_a_sentry_that_does_not_take_reports_costs_a_bounded_queue(kind: str) -> None:
    """Reports to a Sentry that hangs, refuses, limits or is away are dropped and counted; closing is bounded."""
    with open_receiver() as receiver:
        receiver.hangs = kind == "hangs"
        receiver.status = {"refuses": 503, "limits": 429}.get(kind, 200)
        others = set(threading.enumerate())
        with open_reports(Receiver("http://127.0.0.1:9") if kind == "dead" else receiver) as reports:
            for number in range(3 * MAX_PENDING):
                # Past the storm filter, so that the queue's own bound is what counts.
                reports._send({"level": "error", "logentry": {"formatted": "x"}}, (str(number),), 0, None, None, "x")
            own = [thread for thread in set(threading.enumerate()) - others if "sentry" in thread.name]
            assert len(own) == 1
            assert reports._transport._worker._queue.qsize() <= MAX_PENDING
            receiver.wait_for(lambda: reports.statistics().dropped > 0)
            started = time.monotonic()
        # Generous, because the machine may be busy: what counts is that it is no longer than the SDK's own timeouts.
        assert time.monotonic() - started < FLUSH_SECONDS + 10
        assert reports.statistics().sent == 3 * MAX_PENDING


def test_an_answer_without_an_end_is_not_read_into_memory(sentry: Receiver) -> None:
    """The next report goes out after a little of it."""
    sentry.has_end = False
    with open_reports(sentry):
        for number in range(3):
            logger.error("failed at %s", number)
        sentry.wait_for(lambda: len(sentry.posts) >= 3)
    assert sentry.sent_bytes < 3 * 32 * 2**20  # the kernel's buffers


def test_a_redirect_gets_no_report(sentry: Receiver) -> None:
    """The key of the DSN would go where the redirect points."""
    with open_receiver() as other:
        sentry.status, sentry.headers = 307, {"location": f"{other.url}/api/42/envelope/"}
        with open_reports(sentry) as reports:
            logger.error("failed")
            sentry.wait_for(lambda: reports.statistics().dropped == 1)
        assert sentry.posts
        assert not other.posts


def test_a_connection_is_used_again(sentry: Receiver) -> None:
    """An answer that was read to its end leaves it open."""
    sentry.answer = b'{"id":"1"}'
    with open_reports(sentry) as reports:
        for number in range(3):
            logger.error("failed at %s", number)
        sentry.wait_for(lambda: len(sentry.posts) == 3)
        pools = reports._transport._pool.pools
        assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118 - it has no iterator


def test_reporting_does_not_report_itself(sentry: Receiver) -> None:
    """Errors of the SDK, of its HTTP client, and of exporters are no reports: they would never end."""
    with open_reports(sentry):
        for name in ("sentry_sdk.errors", "urllib3.connectionpool", "cgw.telemetry"):
            logging.getLogger(name).error("failed")
    assert sentry.events() == []


def test_without_a_dsn_nothing_is_imported_and_nothing_hooked() -> None:
    """No DSN, no handler and no hooks."""
    before = logging.root.handlers[:], threading.excepthook, sys.unraisablehook
    with open_error_reports(None, environment="test", mask=SecretMask()) as reports:
        assert reports is None
        assert (logging.root.handlers[:], threading.excepthook, sys.unraisablehook) == before
