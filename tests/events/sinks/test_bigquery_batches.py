"""Any mixture of good and bad events, sent to a BigQuery with any faults."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgw.events.lines import render_line
from cgw.events.sinks.bigquery.sink import open_unchecked_sink
from cgw.events.sinks.bigquery.table import build_table_resource
from cgw.events.sinks.sink import RejectedEvent, SinkUnavailable
from cgw.model import EventName, UsageEvent
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_bigquery import ScriptedBigQuery, build_error, build_row_errors, open_scripted_bigquery
from tests.events.sinks.conftest import TABLE, build_settings

# How BigQuery takes an event: not at all for its row (`bad`), or not with anything else in the request (`poison`).
KINDS = ("good", "bad", "poison", "garbage")
FAULTS = (
    build_error(403, "quotaExceeded", "Quota exceeded"),
    build_error(503, "backendError", "try again"),
    build_row_errors({0: "stopped"}),
    build_row_errors({0: "internalError"}),
    JsonAnswer(b"<html>"),
    JsonAnswer(is_broken=True),
)


def build_line(number: int, kind: str) -> bytes:
    """Return the line of an event of this kind."""
    if kind == "garbage":
        return b'{"id":\n'
    moment = datetime(1990, 1, 1, tzinfo=UTC) if kind == "bad" else datetime.now(UTC)
    return render_line(UsageEvent(EventName.ACCESS_DENIED, "static", f"{kind}-{number}", {}, created_at=moment))


async def ship(kinds: list[str], faults: list[JsonAnswer]) -> tuple[list[str], list[RejectedEvent] | None]:
    """Send a batch until it is taken; return what BigQuery has, and what was rejected (``None``: never taken)."""
    async with open_scripted_bigquery() as bigquery:
        bigquery.tables[TABLE] = {"type": "TABLE", **build_table_resource(build_settings(bigquery))}
        bigquery.faults = deque(faults)
        bigquery.refuse_request = lambda rows: any(row["json"]["identifier"].startswith("poison") for row in rows)
        lines = [build_line(number, kind) for number, kind in enumerate(kinds)]
        return await send_until_taken(bigquery, lines, len(faults) + 1)


async def send_until_taken(
    bigquery: ScriptedBigQuery, lines: list[bytes], attempts: int
) -> tuple[list[str], list[RejectedEvent] | None]:
    """Send ``lines`` up to so many times."""
    rejected = None
    async with open_unchecked_sink(build_settings(bigquery)) as sink:
        for _ in range(attempts):
            try:
                rejected = list(await sink.send(lines, "batch"))
                break
            except SinkUnavailable:
                continue
    return [row["identifier"] for row in bigquery.rows], rejected


# The fixture of the folder only closes the way to the internet, for all examples alike.
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=9),
    st.lists(st.sampled_from(FAULTS), max_size=3),
)
def test_good_events_arrive_once_and_bad_ones_are_rejected(kinds: list[str], faults: list[JsonAnswer]) -> None:
    """After every fault, each event is there or rejected, and none is both; a fault rejects nothing."""
    inserted, rejected = trio.run(ship, kinds, faults)
    assert sorted(inserted) == sorted(f"good-{number}" for number, kind in enumerate(kinds) if kind == "good")
    if {kind for kind in kinds if kind != "garbage"} == {"poison"}:
        assert rejected is None  # BigQuery refuses everything: no event is to blame for that
    else:
        assert rejected is not None
        assert [event.index for event in rejected] == [number for number, kind in enumerate(kinds) if kind != "good"]
