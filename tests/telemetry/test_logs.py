"""Logging as a whole: one stream, one line for each record, no secrets, and no blocking."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypercorn.config
import hypercorn.logging
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.telemetry.current_request import served_trace
from cgw.telemetry.exchange_log import log_exchange
from cgw.telemetry.exchange_record import Outcome
from cgw.telemetry.json_lines import JsonLines
from cgw.telemetry.log_lines import MAX_MESSAGE_CHARACTERS, LogEntry, TerminalLines
from cgw.telemetry.logs import open_logging
from cgw.telemetry.masking import SecretMask
from tests.support.records import TRACE, build_record

CANARY = "C4n4ry0123456789abcdef"
logger = logging.getLogger("cgw.test")


def read_json(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_exchange_is_one_line_in_cloud_logging_field_names() -> None:
    """An exchange's JSON has the names and forms that Cloud Logging reads: latency in seconds, size as string."""
    stream = io.StringIO()
    with open_logging(stream, version="1.2.3"):
        log_exchange(
            build_record(
                duration_ms=1234.5678,
                actor="acme",
                source="static",
                feature="chat_completions",
                model="openai/gpt-4o",
                stream=True,
                upstream_status=200,
                upstream_ms=1200.5,
                first_byte_ms=99.25,
                request_bytes=10,
                response_bytes=20,
                remote_ip="192.0.2.7",
                user_agent="curl/8",
                warning="a header field was ignored",
            )
        )
    (line,) = read_json(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", line.pop("time"))
    assert line.pop("message").startswith("POST /v1/completions/openai status=200 outcome=ok upstream_status=200 ")
    assert line == {
        "severity": "INFO",
        "logger": "cgw.exchange",
        "serviceContext": {"service": "cgw", "version": "1.2.3"},
        "logging.googleapis.com/trace": "0af7651916cd43dd8448eb211c80319c",
        "logging.googleapis.com/spanId": "b7ad6b7169203331",
        "request_id": "0af7651916cd43dd8448eb211c80319c",
        "httpRequest": {
            "requestMethod": "POST",
            "requestUrl": "/v1/completions/openai",
            "status": 200,
            "responseSize": "20",
            "userAgent": "curl/8",
            "remoteIp": "192.0.2.7",
            "latency": "1.234568s",
            "protocol": "HTTP/1.1",
        },
        "exchange": {
            "outcome": "ok",
            "actor": "acme",
            "source": "static",
            "feature": "chat_completions",
            "model": "openai/gpt-4o",
            "stream": True,
            "duration_ms": 1234.568,
            "first_byte_ms": 99.25,
            "upstream_ms": 1200.5,
            "overhead_ms": 34.068,
            "upstream_status": 200,
            "request_bytes": 10,
            "response_bytes": 20,
            "warning": "a header field was ignored",
        },
    }


def test_error_has_error_reportings_form() -> None:
    """An error with its exception is a ReportedErrorEvent with a stack trace; a warning with one has the trace only."""
    stream = io.StringIO()
    with open_logging(stream):
        try:
            raise TypeError("odd")
        except TypeError:
            logger.exception("it failed")
            logger.warning("it nearly failed", exc_info=True)
    error, warning = read_json(stream)
    assert error["severity"] == "ERROR"
    assert error["message"] == "it failed"
    assert error["@type"].endswith("ReportedErrorEvent")
    assert error["stack_trace"].startswith("Traceback (most recent call last):")
    assert error["stack_trace"].endswith("TypeError: odd")
    assert "@type" not in warning
    assert "stack_trace" in warning


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_canary_reaches_the_log(is_terminal: bool) -> None:
    """Keys are masked in messages, arguments, exceptions and their causes, groups, paths, agents and error texts."""
    stream = io.StringIO()
    known = "a/provider's key"
    with open_logging(stream, is_terminal=is_terminal, secrets=[known, f"known {CANARY}"]):
        logger.warning("Authorization: Bearer %s", CANARY)
        logger.warning("headers %r", [(b"x-api-key", CANARY.encode())])
        logger.warning("two values: %s and known %s", known, CANARY)
        try:
            try:
                raise RuntimeError(f"bad key sk-ant-{CANARY}")
            except RuntimeError as cause:
                members = [RuntimeError(known), TypeError(f"sgp_{CANARY}"), KeyError(CANARY)]
                raise ExceptionGroup(f"redis://:{CANARY}@h", members) from cause
        except ExceptionGroup as group:
            logger.exception("failed with sk-%s", CANARY)
            log_exchange(build_record(Outcome.INTERNAL_ERROR, error=f"api_key={CANARY}", bug=group))
        log_exchange(build_record(path=f"/v1?key={CANARY}", user_agent=f"Bearer {CANARY}"))
        log_exchange(build_record(user_agent=f"sgd_{CANARY}", model=f"sk-{CANARY}", source=known))
    text = stream.getvalue()
    assert CANARY not in text
    assert known not in text
    assert text.count("[masked]") >= 14
    assert "Traceback" in text


def test_terminal_line_cannot_be_forged() -> None:
    """Line ends and control characters in a path or message are escaped; a traceback's lines stay indented."""
    stream = io.StringIO()
    with open_logging(stream, is_terminal=True, has_colour=False):
        log_exchange(build_record(path="/a\n13:00:00.000 ERROR forged\x1b[2J\u202e\x85"))
        try:
            raise RuntimeError("odd\n13:00:00.000 ERROR forged too\r")
        except RuntimeError:
            logger.exception("failed")
    first, second, *traceback_lines = stream.getvalue().splitlines()
    assert r'"/a\n13:00:00.000 ERROR forged\u001b[2J\u202e\x85" status=200' in first
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} ERROR    failed", second)
    assert all(line.startswith("  | ") for line in traceback_lines)
    assert traceback_lines[-1] == r"  | 13:00:00.000 ERROR forged too\r"


@pytest.mark.parametrize(("has_colour", "escapes"), [(None, True), (True, True), (False, False)])
def test_colour_can_be_switched_off(has_colour: bool | None, escapes: bool) -> None:
    """A terminal gets colour unless it is switched off, as under NO_COLOR."""
    stream = io.StringIO()
    with open_logging(stream, is_terminal=True, has_colour=has_colour):
        logger.info("hello")
    assert ("\x1b[32mINFO" in stream.getvalue()) is escapes
    assert stream.getvalue().endswith(" hello\n")


@given(message=st.text(), path=st.text())
def test_any_text_is_one_line(message: str, path: str) -> None:
    """Whatever the text, each entry is one line of valid JSON, and one printable line on a terminal."""
    mask = SecretMask()
    for content in (message, build_record(path=path, error=message)):
        entry = LogEntry(logging.INFO, 0, "x", content)
        line = JsonLines(mask, "1").render(entry)
        assert json.loads(line)["severity"] == "INFO"
        assert line.count(b"\n") == 1
        assert TerminalLines(mask, has_colour=False).render(entry)[:-1].decode().isprintable()


def test_lone_surrogates_do_not_stop_the_log() -> None:
    """Text that cannot be UTF-8 is written with a replacement."""
    stream = io.StringIO()
    with open_logging(stream):
        logger.info("a\ud800b")
    assert [line["message"] for line in read_json(stream)] == ["a?b"]


def test_long_message_is_cut() -> None:
    """A message of a megabyte is cut, and its full length is added."""
    stream = io.StringIO()
    with open_logging(stream):
        logger.info("x" * 10**6)
    (line,) = read_json(stream)
    assert len(line["message"]) < MAX_MESSAGE_CHARACTERS + 50
    assert line["message"].endswith("… (1000000 characters)")


def test_level_is_kept() -> None:
    """Records below the level are not written."""
    stream = io.StringIO()
    with open_logging(stream, level="WARNING"):
        logger.info("quiet")
        log_exchange(build_record())
        logger.warning("loud")
    assert [line["message"] for line in read_json(stream)] == ["loud"]


def test_wrong_log_calls_are_reported_not_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """A log call whose arguments do not fit, or an entry that cannot be written, costs one line and nothing else."""
    stream = io.StringIO()
    with open_logging(stream):
        logger.info("%d", "no number")
        log_exchange(build_record(path=b"bytes"))
        logger.info("next")
    lines = read_json(stream)
    assert "cannot be formatted" in lines[0]["message"]
    assert "cannot be written" in lines[1]["message"]
    assert lines[2]["message"] == "next"
    assert capsys.readouterr().err == ""


def test_libraries_log_into_the_same_stream_once() -> None:
    """Records of Hypercorn, Trio and the warnings module are written once; httpx's line for each request is not."""
    stream = io.StringIO()
    with open_logging(stream):
        config = hypercorn.config.Config()
        config.errorlog = logging.getLogger("hypercorn.error")
        error_logger = hypercorn.logging.Logger(config).error_logger
        assert error_logger is not None
        error_logger.warning("from hypercorn")
        logging.getLogger("trio.serve_listeners").error("from trio")
        logging.getLogger("httpx").info("HTTP Request: …")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)
            logging.captureWarnings(capture=True)  # catch_warnings() put the original function back
            warnings.warn("from python", UserWarning, stacklevel=1)
    messages = [line["message"] for line in read_json(stream)]
    assert messages[:2] == ["from hypercorn", "from trio"]
    assert len(messages) == 3
    assert "UserWarning: from python" in messages[2]


def test_former_handlers_come_back() -> None:
    """After the block the root logger is as it was."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("httpx").level)
    with open_logging(io.StringIO(), level="DEBUG"):
        assert root.level == logging.DEBUG
        assert root.handlers != before[0]
    assert (root.handlers[:], root.level, logging.getLogger("httpx").level) == before


def test_file_gets_every_line_in_order(tmp_path: Path) -> None:
    """Lines reach a real file in the order of their calls, and all of them before the block is left."""
    with (tmp_path / "log").open("w") as file, open_logging(file) as logs:
        for number in range(2000):
            logger.info("line %d", number)
    messages = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
    assert messages == [f"line {number}" for number in range(2000)]
    assert logs.statistics().written == 2000


@pytest.fixture
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The reading end of a pipe, as a descriptor, and its writing end, as a text stream."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def read_until(reader: int, marker: bytes) -> bytes:
    data = b""
    while marker not in data:
        data += os.read(reader, 65536)
    return data


@pytest.mark.parametrize("is_blocking", [True, False])
def test_stuck_reader_costs_lines_not_time(pipe: tuple[int, io.TextIOWrapper], is_blocking: bool) -> None:
    """While the reader does not read, log calls return at once, further lines are dropped, and a line counts them."""
    reader, stream = pipe
    os.set_blocking(stream.fileno(), is_blocking)
    with open_logging(stream, max_pending=100) as logs:
        for number in range(5000):
            logger.info("line %d %s", number, "x" * 100)
        dropped = logs.statistics().dropped
        assert dropped > 3000
        data = b""
        while sum(map(int, re.findall(rb"(\d+) log lines were dropped", data))) < dropped:
            data += os.read(reader, 65536)
        logger.info("the end")
        data += read_until(reader, b"the end")
    lines = data.decode().splitlines()
    assert sum("were dropped" not in line for line in lines) == 5000 - dropped + 1
    assert json.loads(lines[0])["message"].startswith("line 0 ")
    assert logs.statistics().pending == 0


def test_stuck_reader_does_not_hold_up_the_end(pipe: tuple[int, io.TextIOWrapper]) -> None:
    """Leaving the block waits for a stuck reader no longer than the flush timeout."""
    reader, stream = pipe
    start = time.monotonic()
    with open_logging(stream, flush_timeout_seconds=0.05):
        for _ in range(2000):
            logger.info("x" * 100)
        logger.info("the end")
    assert time.monotonic() - start < 1.5
    read_until(reader, b"the end")


def test_broken_stream_is_counted(pipe: tuple[int, io.TextIOWrapper]) -> None:
    """When the reader has closed the pipe, lines are lost and counted, and the process goes on."""
    reader, stream = pipe
    spare = os.dup(reader)
    os.close(reader)
    with open_logging(stream) as logs:
        os.close(spare)
        logger.info("lost")
    os.dup2(os.open(os.devnull, os.O_RDONLY), reader)
    assert logs.statistics().write_errors == 1


def test_lines_tell_their_request() -> None:
    """A line that is logged while a request is served has its id, and its trace as Cloud Logging names it."""
    stream = io.StringIO()
    with open_logging(stream, project_id="acme-prod", labels={"environment": "prod"}):
        token = served_trace.set(TRACE)
        logger.warning("during")
        served_trace.reset(token)
        logger.warning("after")
    during, after = read_json(stream)
    assert during["logging.googleapis.com/trace"] == "projects/acme-prod/traces/0af7651916cd43dd8448eb211c80319c"
    assert during["request_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert during["logging.googleapis.com/spanId"] == "b7ad6b7169203331"
    assert during["logging.googleapis.com/labels"] == after["logging.googleapis.com/labels"] == {"environment": "prod"}
    assert not {"request_id", "logging.googleapis.com/trace"} & set(after)


@pytest.mark.parametrize("is_sampled", [True, False])
def test_lines_tell_whether_their_trace_is_sent(is_sampled: bool) -> None:
    """Cloud Logging links to the trace then; of an exchange, and of a line that is logged while it is served."""
    stream = io.StringIO()
    with open_logging(stream, is_traced=lambda trace: is_sampled and trace is TRACE):
        log_exchange(build_record())
        token = served_trace.set(TRACE)
        logger.warning("during")
        served_trace.reset(token)
        logger.warning("after")
    *lines, after = read_json(stream)
    assert [line["logging.googleapis.com/trace_sampled"] for line in lines] == [is_sampled, is_sampled]
    assert "logging.googleapis.com/trace_sampled" not in after


def test_the_terminal_tells_the_request_too() -> None:
    """The id ends the line."""
    stream = io.StringIO()
    with open_logging(stream, is_terminal=True, has_colour=False):
        token = served_trace.set(TRACE)
        logger.warning("during")
        served_trace.reset(token)
    assert stream.getvalue().endswith(" WARNING  during request_id=0af7651916cd43dd8448eb211c80319c\n")


def test_an_error_without_a_stack_trace_has_its_place() -> None:
    """Error Reporting groups it by file, line and function; the text may have numbers in it."""
    stream = io.StringIO()
    with open_logging(stream):
        logger.error("%d were lost", 17)
        logger.warning("nothing was")
    error, warning = read_json(stream)
    assert error["@type"].endswith("ReportedErrorEvent")
    location = error["context"]["reportLocation"]
    assert location["filePath"].endswith("test_logs.py")
    assert location["lineNumber"] > 0
    assert location["functionName"] == "test_an_error_without_a_stack_trace_has_its_place"
    assert not {"@type", "context"} & set(warning)


def test_an_error_of_a_request_tells_it_in_error_reportings_names() -> None:
    """An exchange that failed by a bug has the request, and the actor as the user that was affected."""
    stream = io.StringIO()
    with open_logging(stream):
        log_exchange(build_record(Outcome.INTERNAL_ERROR, status=500, actor="acme", bug=TypeError("odd")))
    (error,) = read_json(stream)
    assert error["context"]["user"] == "acme"
    request = error["context"]["httpRequest"]
    assert (request["method"], request["responseStatusCode"]) == ("POST", 500)
    assert request["url"] == error["httpRequest"]["requestUrl"]


def test_debug_lines_of_libraries_are_left_out() -> None:
    """They may hold what a library sends; cgw's own are written."""
    stream = io.StringIO()
    with open_logging(stream, level="DEBUG"):
        logging.getLogger("urllib3.connectionpool").debug('https://o1.example:443 "POST /secret" 200')
        logging.getLogger("urllib3.connectionpool").info("shown")
        logging.getLogger("cgw.test").debug("shown, too")
    assert [line["message"] for line in read_json(stream)] == ["shown", "shown, too"]
