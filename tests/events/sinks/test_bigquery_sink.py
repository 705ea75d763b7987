"""The BigQuery sink: Google's own client against a stand-in for the service."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cgw.errors import ConfigError
from cgw.events.lines import render_line
from cgw.events.sinks.bigquery import inserting
from cgw.events.sinks.bigquery.client import TableClient, require_client
from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.bigquery.sink import MAX_THREADS, BigQuerySink, open_bigquery_sink, open_unchecked_sink
from cgw.events.sinks.sink import Sink, SinkUnavailable
from cgw.model import EventName, UsageEvent
from cgw.testing.json_server import JsonAnswer, JsonCall, open_json_server
from cgw.testing.scripted_bigquery import (
    ScriptedBigQuery,
    build_error,
    build_row_errors,
    open_scripted_bigquery,
)
from tests.events.sinks.conftest import PROJECT, TABLE, build_settings
from tests.support.waiting import wait_until


@pytest.fixture
async def sink(bigquery: ScriptedBigQuery) -> AsyncIterator[BigQuerySink]:
    """The sink of the stand-in's table."""
    async with open_unchecked_sink(build_settings(bigquery)) as sink:
        yield sink


def build_line(number: int = 0, **metadata: Any) -> bytes:
    """Return the line of an event whose identifier has ``number``."""
    return render_line(UsageEvent(EventName.COMPLETIONS_FINISHED, "static", f"acme-{number}", metadata))


def build_bad_line(number: int = 0) -> bytes:
    """Return the line of an event that BigQuery never takes: its table has no room for the time."""
    moment = datetime(1990, 1, 1, tzinfo=UTC)
    return render_line(UsageEvent(EventName.COMPLETIONS_FINISHED, "static", f"bad-{number}", {}, created_at=moment))


def list_identifiers(bigquery: ScriptedBigQuery) -> list[str]:
    """Return the identifiers of the rows that were inserted."""
    return [row["identifier"] for row in bigquery.rows]


@asynccontextmanager
async def open_scripted(fault: JsonAnswer | None = None) -> AsyncIterator[tuple[BigQuerySink, ScriptedBigQuery]]:
    """Open a sink with short deadlines, and its BigQuery, which answers inserts with ``fault``."""
    async with open_scripted_bigquery() as bigquery:
        bigquery.fault = fault
        client = TableClient(build_settings(bigquery), read_seconds=1.0)
        await trio.to_thread.run_sync(require_client, client.settings)  # takes longer than the deadline below
        yield BigQuerySink(client, send_seconds=0.2 if fault is None else 5), bigquery


@asynccontextmanager
async def open_answering(answer: JsonAnswer) -> AsyncIterator[str]:
    """Open a server that gives ``answer`` to everybody; yield its URL."""

    async def handle(call: JsonCall) -> JsonAnswer:
        await trio.lowlevel.checkpoint()
        return answer

    async with open_json_server(handle) as url:
        yield url


def generate_private_key() -> str:
    """Return a new RSA key, as in the key file of a service account."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


async def send_in_vain(sink: Sink, *lines: bytes) -> SinkUnavailable:
    """Send ``lines``, which must fail for now."""
    with pytest.raises(SinkUnavailable) as caught:
        await sink.send(lines, "batch")
    # What it came from may hold an answer or a login: it is not part of a traceback.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


# --- inserting -------------------------------------------------------------------------------------------------------


async def test_an_event_becomes_a_row_with_the_references_columns(
    sink: BigQuerySink, bigquery: ScriptedBigQuery
) -> None:
    """Metadata is text of JSON, as the reference writes it; the id is a column, and what BigQuery deduplicates by."""
    event = UsageEvent(EventName.RATE_LIMITED, "static", "acme", {"error": 'é"\n😀', "count": 3, "deep": {"a": [1.5]}})
    assert await sink.send([render_line(event)], "batch") == []
    (row,) = bigquery.rows
    assert json.loads(row.pop("metadata")) == event.metadata
    assert datetime.fromisoformat(row.pop("created_at")) == event.created_at
    assert row == {"name": "RateLimited", "source": "static", "identifier": "acme", "id": event.id}
    assert bigquery.authorizations == {""}  # no login for an emulator


async def test_a_batch_that_is_sent_again_at_once_is_there_once(sink: BigQuerySink, bigquery: ScriptedBigQuery) -> None:
    """BigQuery drops rows whose insert id, the event's, it has just seen."""
    lines = [build_line(number) for number in range(3)]
    for _ in range(2):
        assert await sink.send(lines, "batch") == []
    assert list_identifiers(bigquery) == ["acme-0", "acme-1", "acme-2"]


async def test_one_bad_event_does_not_stop_the_others(sink: BigQuerySink, bigquery: ScriptedBigQuery) -> None:
    """BigQuery inserts none of a request with a bad row: the sink takes that one out, and sends the others again."""
    lines = [build_line(0), b"garbage\n", build_bad_line(), build_line(3)]
    rejected = await sink.send(lines, "batch")
    assert [event.index for event in rejected] == [1, 2]
    assert "is not a line of the event log" in rejected[0].reason
    assert rejected[1].reason == "invalid: The destination table's partition is outside the allowed bounds."
    assert list_identifiers(bigquery) == ["acme-0", "acme-3"]
    assert bigquery.insert_calls == 2


async def test_a_batch_of_nothing_but_bad_events(sink: BigQuerySink, bigquery: ScriptedBigQuery) -> None:
    """All are rejected if the table is as it should be, without a call for no rows."""
    assert [event.index for event in await sink.send([build_bad_line(), build_bad_line()], "batch")] == [0, 1]
    assert [event.index for event in await sink.send([b"{}\n"], "batch")] == [0]
    assert (bigquery.rows, bigquery.insert_calls) == ([], 1)


async def test_the_largest_batch_is_within_the_limits_of_a_request(
    sink: BigQuerySink, bigquery: ScriptedBigQuery
) -> None:
    """Text that grows most, escaped twice or out of ASCII, fits: the stand-in refuses what BigQuery would."""
    for text in ("\\" * 2000, "é" * 2000, "😀" * 1000):
        count = min(sink.max_batch_events, sink.max_batch_bytes // len(build_line(0, text=text)))
        assert await sink.send([build_line(number, text=text) for number in range(count)], "batch") == []
        assert json.loads(bigquery.rows[-1]["metadata"]) == {"text": text}


# --- refusals that may pass ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reasons", [{0: "backendError"}, {0: "invalid", 1: "timeout"}, {0: "stopped", 1: "stopped"}])
async def test_rows_that_are_not_to_blame_are_not_rejected(
    sink: BigQuerySink, bigquery: ScriptedBigQuery, reasons: dict[int, str]
) -> None:
    """Unless every reason is the row's own and for ever, the batch is sent again as it is."""
    lines = [build_line(0), build_line(1)]
    bigquery.faults.append(build_row_errors(reasons))
    await send_in_vain(sink, *lines)
    assert await sink.send(lines, "batch") == []
    assert list_identifiers(bigquery) == ["acme-0", "acme-1"]


@pytest.mark.parametrize(
    ("answer", "text", "seconds"),
    [
        (build_error(403, "quotaExceeded", "Quota exceeded: too many rows"), "a quota of BigQuery is used up", 10),
        (build_error(403, "rateLimitExceeded", "Exceeded rate limits"), "a quota of BigQuery is used up", 10),
        (build_error(429, "rateLimitExceeded", "slow down", retry_after=7), "429 slow down", 7),
        (build_error(403, "accessDenied", "Access Denied: Table"), "grant it roles/bigquery.dataEditor", 0),
        (build_error(403, "billingNotEnabled", "not in the free tier"), "has no billing", 0),
        (build_error(404, "notFound", "Not found: Table x"), "run `cgw events create-table`", 0),
        (build_error(404, "notFound", "Not found: Dataset x"), "create the dataset, then run", 0),
        (build_error(400, "invalid", "no such thing"), "400 no such thing", 0),
        (build_error(500, "internalError", "An internal error"), "BigQuery has a failure", 0),
        (build_error(503, "backendError", "try again", retry_after=9_999_999), "BigQuery has a failure", 300),
        (build_error(401, "authError", "Invalid Credentials"), "wants a login", 0),
        (JsonAnswer(b"<html>bad gateway</html>", 502), "502 <html>bad gateway</html>", 0),
        (JsonAnswer(b"<html>welcome</html>"), "what answers is not the BigQuery emulator", 0),
        (JsonAnswer(b""), "what answers is not the BigQuery emulator", 0),
        (JsonAnswer([]), "what answers is not the BigQuery emulator", 0),
        (JsonAnswer({"insertErrors": [{"index": "x"}]}), "what answers is not the BigQuery emulator", 0),
        (JsonAnswer({"insertErrors": [{"index": 0, "errors": ["x"]}]}), "what answers is not the BigQuery emulator", 0),
        (JsonAnswer(is_broken=True), "no connection to the BigQuery emulator", 0),
    ],
)
async def test_a_failure_that_may_pass_is_said_in_an_operators_words(
    sink: BigQuerySink, bigquery: ScriptedBigQuery, answer: JsonAnswer, text: str, seconds: float
) -> None:
    """What is wrong and what to do, once: the shipper retries, not Google's client. Nothing is lost."""
    line = build_line()
    bigquery.faults.append(answer)
    error = await send_in_vain(sink, line)
    assert text in str(error)
    assert error.retry_after_seconds == seconds
    assert bigquery.insert_calls == 1
    assert await sink.send([line], "batch") == []
    assert len(bigquery.rows) == 1


async def test_a_long_answer_is_cut() -> None:
    """An error page of a proxy does not fill the log."""
    error = build_error(503, "backendError", "x\n" * 10_000)
    async with open_scripted(error) as (sink, _):
        assert len(str(await send_in_vain(sink, build_line()))) < 500


async def test_no_answer_within_the_deadline() -> None:
    """A BigQuery that hangs costs a batch its deadline; no call follows in the thread that is left behind."""
    async with open_scripted() as (sink, bigquery):
        bigquery.hang()
        with trio.fail_after(5):
            assert "did not answer within 0.2 s" in str(await send_in_vain(sink, build_line(0), build_line(1)))
        # The answer that comes now would be followed by two more calls, if anybody waited for it.
        bigquery.fault = build_error(400, "invalid", "no")
        bigquery.answer()
        with trio.fail_after(5):
            await sink.wait_idle()
        assert bigquery.insert_calls == 1


async def test_threads_are_bounded_whatever_hangs() -> None:
    """Calls that are left behind keep their slots until they time out, so that no more threads begin."""
    async with open_scripted() as (sink, bigquery):
        bigquery.hang()
        before = threading.active_count()
        async with trio.open_nursery() as nursery:
            for number in range(3 * MAX_THREADS):
                nursery.start_soon(send_in_vain, sink, build_line(number))
        assert bigquery.calls == MAX_THREADS
        assert threading.active_count() <= before + MAX_THREADS
        with trio.fail_after(5):
            await sink.wait_idle()  # each has timed out by itself


async def test_closing_does_not_wait_for_a_bigquery_that_hangs(bigquery: ScriptedBigQuery) -> None:
    """The end of the service is not held up by the check of the table either."""
    bigquery.hang()
    with trio.fail_after(4):
        async with open_bigquery_sink(build_settings(bigquery)):
            await wait_until(lambda: bigquery.calls == 1)
    bigquery.answer()


async def test_a_port_where_nobody_listens() -> None:
    """A refused connection and a name that is unknown are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    for address, text in ((url, "(Connection refused)"), ("http://bigquery.invalid", "must not be looked up")):
        sink = BigQuerySink(TableClient(BigQuerySettings(project_id=PROJECT, emulator_url=address)))
        assert text in str(await send_in_vain(sink, build_line()))


# --- requests that are refused as a whole ----------------------------------------------------------------------------


async def test_an_event_for_which_a_whole_request_is_refused_is_found(
    sink: BigQuerySink, bigquery: ScriptedBigQuery
) -> None:
    """Without a word on the row to blame, halves are sent, until what is refused stands alone beside what is not."""
    poison = "poison-1"
    bigquery.refuse_request = lambda rows: any(row["json"]["identifier"] == poison for row in rows)
    lines = [build_line(number) for number in range(200)]
    lines[137] = lines[137].replace(b"acme-137", poison.encode())
    (rejected,) = await sink.send(lines, "batch")
    assert rejected.index == 137
    assert "400" in rejected.reason
    assert sorted(list_identifiers(bigquery)) == sorted(f"acme-{number}" for number in range(200) if number != 137)
    assert bigquery.insert_calls < 20


async def test_no_event_is_blamed_if_every_request_is_refused(sink: BigQuerySink, bigquery: ScriptedBigQuery) -> None:
    """Then it is not for what is in one: the batch stays, and the calls are bounded."""
    bigquery.fault = build_error(400, "invalid", "no")
    error = await send_in_vain(sink, *(build_line(number) for number in range(200)))
    assert "400 no" in str(error)
    assert bigquery.insert_calls <= inserting.MAX_CALLS
    bigquery.fault = None
    bigquery.tables[TABLE]["type"] = "VIEW"
    await send_in_vain(sink, build_line(0), build_line(1))


# --- the table -------------------------------------------------------------------------------------------------------


async def test_no_event_is_set_aside_for_what_the_table_is_to_blame_for(
    sink: BigQuerySink, bigquery: ScriptedBigQuery
) -> None:
    """All rows are `invalid` for a column that is missing, of another type, or required by others: they wait."""
    fields = bigquery.tables[TABLE]["schema"]["fields"]
    line = build_line()
    dropped = fields.pop()
    assert "no such field: id" in str(await send_in_vain(sink, line))
    fields.append({**dropped, "type": "INTEGER"})
    assert "its column id is INTEGER, not STRING" in str(await send_in_vain(sink, line))
    fields[-1] = dropped
    fields.append({"name": "region", "type": "STRING", "mode": "REQUIRED"})
    assert "Missing required field" in str(await send_in_vain(sink, line))
    fields.pop()
    assert await sink.send([line], "batch") == []


async def test_a_column_that_was_just_added_rejects_nothing(sink: BigQuerySink, bigquery: ScriptedBigQuery) -> None:
    """Inserts say `no such field` for some minutes more, when the table has it already."""
    error = {"reason": "invalid", "location": "id", "message": "no such field: id."}
    bigquery.faults.append(JsonAnswer({"insertErrors": [{"index": 0, "errors": [error]}]}))
    assert "wait some minutes" in str(await send_in_vain(sink, build_line()))


async def test_a_table_of_the_reference_is_used_as_it_is(sink: BigQuerySink, bigquery: ScriptedBigQuery) -> None:
    """Metadata may be a column of text; what has no value in an event may be there, if it need not be filled."""
    fields = bigquery.tables[TABLE]["schema"]["fields"]
    fields[4]["type"] = "STRING"
    fields.append({"name": "region", "type": "STRING"})
    assert await sink.find_problems() == []
    assert await sink.send([build_line(a=1)], "batch") == []
    assert bigquery.rows[0]["metadata"] == '{"a":1}'


async def check_at_start(bigquery: ScriptedBigQuery, caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
    """Open the sink until it has said something of the table; return the level and the line."""
    caplog.set_level(logging.INFO, "cgw.events")
    caplog.clear()
    async with open_bigquery_sink(build_settings(bigquery)) as sink:
        assert isinstance(sink, BigQuerySink)
        await wait_until(lambda: bool(caplog.records))
    (record,) = caplog.records
    return record.levelno, record.getMessage()


async def test_the_table_is_checked_at_start(bigquery: ScriptedBigQuery, caplog: pytest.LogCaptureFixture) -> None:
    """One line says what is wrong with it and which command mends it; the sink is open meanwhile."""
    assert await check_at_start(bigquery, caplog) == (
        logging.INFO,
        "usage events are shipped to the BigQuery table acme-events.cody_gateway.events",
    )
    fields = bigquery.tables[TABLE]["schema"]["fields"]
    fields[3]["type"] = "STRING"
    fields.pop()
    assert await check_at_start(bigquery, caplog) == (
        logging.ERROR,
        "the table acme-events.cody_gateway.events does not take events: it has no column id: run `cgw events "
        "create-table`, which adds what is missing; its column created_at is STRING, not TIMESTAMP: name another table "
        "in CODY_GATEWAY_BIGQUERY_TABLE and run `cgw events create-table`",
    )
    del bigquery.tables[TABLE]
    level, text = await check_at_start(bigquery, caplog)
    assert level == logging.WARNING
    assert "run `cgw events create-table`" in text


# --- logins ----------------------------------------------------------------------------------------------------------


async def test_a_machine_without_a_login_says_so() -> None:
    """The sink opens all the same: credentials may come while it runs."""
    async with open_unchecked_sink(BigQuerySettings(project_id=PROJECT)) as sink:
        assert "there are no Google credentials" in str(await send_in_vain(sink, build_line()))


async def test_a_login_that_is_refused_leaks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key of a service account that Google does not know: the code of the refusal is told, its text is not."""
    private_key = await trio.to_thread.run_sync(generate_private_key)
    answer = {"error": "invalid_grant", "error_description": "Invalid JWT of canary-in-the-answer"}
    async with open_answering(JsonAnswer(answer, 400)) as url:
        key = {
            "type": "service_account",
            "client_email": "cgw@acme-events.iam.gserviceaccount.com",
            "private_key": private_key,
            "private_key_id": "canary-key-id",
            "token_uri": f"{url}/token",
            "project_id": PROJECT,
        }
        path = tmp_path / "key.json"
        path.write_text(json.dumps(key))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        async with open_unchecked_sink(BigQuerySettings(project_id=PROJECT)) as sink:
            text = str(await send_in_vain(sink, build_line()))
    assert text.startswith("Google refuses the credentials (invalid_grant): check that the service account")
    assert "canary" not in text


async def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Google's client there is one problem, which says what to install."""
    monkeypatch.setitem(sys.modules, "google.cloud.bigquery", None)
    with pytest.raises(ConfigError) as caught:
        async with open_bigquery_sink(BigQuerySettings(project_id=PROJECT)):
            pass
    (problem,) = caught.value.problems
    assert problem.startswith("CODY_GATEWAY_BIGQUERY_PROJECT_ID: ")
    assert ": pip install 'cgw[bigquery]', or " in problem
