"""Parts of the tour: its client, its measurement of overhead, its reading of the event log, its choice of a port."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cgw.demo.recorded_events import count_completions, read_last_completion
from cgw.demo.tour import choose_port
from cgw.demo.tour_client import RequestFailed, TourRequest, measure_overhead, open_tour_client
from cgw.errors import ConfigError
from cgw.events.event_log import open_event_log
from cgw.model import EventName, UsageEvent
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream

BODY = b'{"model": "claude-3-haiku-20240307", "max_tokens": 9, "stream": true, "messages": [{"role": "user"}]}'
HEADERS = {"x-api-key": "sk-right", "anthropic-version": "2023-06-01"}


async def test_the_client_reads_answer_after_answer_on_one_connection() -> None:
    """The connection is reused after a whole response, whether its status is 200 or not."""
    script = Script(answer="One two", tokens_per_second=0, api_key="sk-right")
    async with open_scripted_upstream(script) as upstream, open_tour_client(upstream.url) as client:
        for _ in range(2):
            await client.send("/v1/messages", HEADERS, BODY)
            head = await client.receive_head()
            body = b""
            while chunk := await client.receive_chunk():
                body += chunk
            assert head.status == 200
            assert body.endswith(b'data: {"type":"message_stop"}\n\n')
            await client.send("/v1/messages", {"anthropic-version": "2023-06-01"}, BODY)
            with pytest.raises(RequestFailed, match=r"status 401.*authentication_error"):
                await client.receive_head()
        assert upstream.connection_count == 1


async def test_overhead_is_the_difference_of_medians_measured_in_turn() -> None:
    """The delay of the slower target is measured, and both targets get equally many requests."""
    fast = Script(answer="One", tokens_per_second=0, api_key="sk-right")
    slow = Script(answer="One", tokens_per_second=0, api_key="sk-right", head_delay_seconds=0.1)
    async with open_scripted_upstream(fast) as direct, open_scripted_upstream(slow) as through:
        overhead = await measure_overhead(
            TourRequest(through.url, "/v1/messages", HEADERS, BODY),
            TourRequest(direct.url, "/v1/messages", HEADERS, BODY),
            rounds=5,
            warm_up_rounds=2,
        )
        assert (len(direct.requests), len(through.requests)) == (7, 7)
        assert direct.connection_count == through.connection_count == 1
        starts = sorted(
            [(seen.received_at, "direct") for seen in direct.requests]
            + [(seen.received_at, "through") for seen in through.requests]
        )
        assert [way for _, way in starts] == ["direct", "through"] * 7
    assert overhead.rounds == 5
    assert overhead.through_seconds >= 0.1 > overhead.direct_seconds > 0
    assert overhead.through_seconds == pytest.approx(overhead.direct_seconds + overhead.added_seconds)


async def test_the_event_log_is_read_while_the_gateway_writes_it(tmp_path: Path) -> None:
    """The newest completion of an actor is found, and completions are counted."""
    path = tmp_path / "events"

    def event(name: EventName, identifier: str, **metadata: object) -> UsageEvent:
        return UsageEvent(name=name, source="static", identifier=identifier, metadata=metadata)

    async with open_event_log(path) as event_log:
        assert read_last_completion(path, "demo") is None
        event_log.record(event(EventName.COMPLETIONS_FINISHED, "demo", model="a"))
        event_log.record(event(EventName.COMPLETIONS_FINISHED, "demo", model="b", stream=True))
        event_log.record(event(EventName.COMPLETIONS_FINISHED, "other", model="c"))
        event_log.record(event(EventName.RATE_LIMITED, "demo", error="too many"))
        found = read_last_completion(path, "demo")
        assert found is not None
        assert (found.name, found.source) == ("CompletionsFinished", "static")
        assert found.metadata == {"model": "b", "stream": True}
        assert count_completions(path) == 3


def test_a_port_that_is_taken_is_refused_in_one_sentence() -> None:
    """A requested port that is taken or out of range is refused with a sentence that names ``--port``."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^port {port} cannot be used \(Address already in use\); --port"):
            choose_port(port)
    assert choose_port(port) == port
    with pytest.raises(ConfigError, match="port 70000 cannot be used"):
        choose_port(70000)
