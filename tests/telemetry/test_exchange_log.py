"""The line of an exchange: its level, its text, and its cost when the level is off."""

from __future__ import annotations

import io
import json
import logging

import pytest

from cgw.telemetry.exchange_log import log_exchange
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome, RequestKind
from cgw.telemetry.logs import open_logging
from tests.support.records import build_record


@pytest.mark.parametrize(
    ("record", "level"),
    [
        (build_record(upstream_status=200), logging.INFO),
        (build_record(status=400, upstream_status=400), logging.INFO),
        (build_record(status=500, upstream_status=500), logging.WARNING),
        (build_record(status=503, upstream_status=429), logging.WARNING),
        (build_record(Outcome.REFUSED, status=429), logging.INFO),
        (build_record(Outcome.REFUSED, status=503), logging.WARNING),
        (build_record(Outcome.REFUSED, status=500), logging.ERROR),
        (build_record(Outcome.CLIENT_GONE, status=None), logging.INFO),
        (build_record(Outcome.UPSTREAM_UNREACHABLE, status=502), logging.WARNING),
        (build_record(Outcome.UPSTREAM_BROKE), logging.WARNING),
        (build_record(Outcome.TIMEOUT, status=504), logging.WARNING),
        (build_record(Outcome.SHUTDOWN), logging.WARNING),
        (build_record(Outcome.INTERNAL_ERROR, status=500), logging.ERROR),
    ],
)
def test_level_fits_the_outcome(record: ExchangeRecord, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """Clients' faults are INFO, the upstream's faults and our overload WARNING, our bugs ERROR; one line each."""
    caplog.set_level(logging.DEBUG)
    log_exchange(record)
    assert [(entry.name, entry.levelno) for entry in caplog.records] == [("cgw.exchange", level)]


ID = "request_id=0af7651916cd43dd8448eb211c80319c"


def test_text_has_all_known_fields() -> None:
    """The readable line has the known fields by name, in a fixed order, and the error at its end."""
    assert str(build_record()) == f"POST /v1/completions/openai status=200 outcome=ok ms=12.4 {ID}"
    record = build_record(
        Outcome.UPSTREAM_BROKE,
        actor="acme",
        feature="chat_completions",
        model="openai/gpt-4o",
        stream=True,
        stale=True,
        upstream_status=201,
        first_byte_ms=3.2,
        upstream_ms=11.1,
        prompt_tokens=9,
        completion_tokens=3,
        response_bytes=77,
        warning="X-Timeout-Ms is no number",
        error='the body ended "before" its end',
    )
    assert str(record) == (
        "POST /v1/completions/openai status=200 outcome=upstream_broke upstream_status=201 actor=acme stale=true"
        " feature=chat_completions model=openai/gpt-4o stream=true ms=12.4 first_byte_ms=3.2 overhead_ms=1.3"
        f' tokens_in=9 tokens_out=3 bytes=77 {ID} warning="X-Timeout-Ms is no number"'
        ' error="the body ended \\"before\\" its end"'
    )
    gone = build_record(Outcome.CLIENT_GONE, status=None)
    assert str(gone) == f"POST /v1/completions/openai status=– outcome=client_gone ms=12.4 {ID}"


def test_the_upstreams_status_is_never_taken_for_the_clients() -> None:
    """A 503 that was made of the upstream's 429 names both, and is not ``ok``."""
    text = str(build_record(Outcome.REFUSED, status=503, upstream_status=429))
    assert " status=503 outcome=refused upstream_status=429 " in text


def test_error_is_attached(caplog: pytest.LogCaptureFixture) -> None:
    """The exception of an internal error is attached to the record, so that its traceback can be reported."""
    error = ValueError("odd")
    log_exchange(build_record(Outcome.INTERNAL_ERROR, status=500, bug=error))
    (entry,) = caplog.records
    assert entry.exc_info is not None
    assert entry.exc_info[1] is error


def test_nothing_is_formatted_below_the_level(caplog: pytest.LogCaptureFixture) -> None:
    """With the level off, not even a log record is made."""
    with caplog.at_level(logging.WARNING, logger="cgw.exchange"):
        log_exchange(build_record())
    assert caplog.records == []


class NotingHandler(logging.Handler):
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep ``record``."""
        self.records.append(record)


@pytest.mark.parametrize("name", ["", "cgw.exchange"])
@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.INTERNAL_ERROR])
def test_other_handlers_get_the_record(name: str, outcome: Outcome) -> None:
    """A handler besides the log's, at the root or at the logger, gets each exchange, and the log writes it once."""
    stream = io.StringIO()
    handler = NotingHandler()
    with open_logging(stream):
        log_exchange(build_record(path="/before"))
        logging.getLogger(name).addHandler(handler)
        try:
            log_exchange(build_record(outcome, path="/between"))
        finally:
            logging.getLogger(name).removeHandler(handler)
        log_exchange(build_record(path="/after"))
    assert [record.getMessage().split()[1] for record in handler.records] == ["/between"]
    paths = [json.loads(line)["httpRequest"]["requestUrl"] for line in stream.getvalue().splitlines()]
    assert paths == ["/before", "/between", "/after"]


def test_error_of_a_harmless_outcome_keeps_its_traceback() -> None:
    """An exception that came with an outcome below error level is written with its traceback."""
    stream = io.StringIO()
    with open_logging(stream):
        log_exchange(build_record(bug=TypeError("odd")))
    assert "TypeError: odd" in stream.getvalue()


def test_what_the_control_app_answered_well_is_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    """Requests that are no exchanges have a logger of their own: DEBUG if they were answered, INFO if refused."""
    caplog.set_level(logging.DEBUG)
    log_exchange(build_record(kind=RequestKind.CONTROL))
    log_exchange(build_record(Outcome.REFUSED, kind=RequestKind.CONTROL, status=404))
    found = [(entry.name, entry.levelno) for entry in caplog.records]
    assert found == [("cgw.request", logging.DEBUG), ("cgw.request", logging.INFO)]
