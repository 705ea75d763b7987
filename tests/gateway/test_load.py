"""Models that fail all the time are refused without being asked; one request at a time finds out when they are back."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from cgw.gateway.load import MAX_MODELS, PROBE_SECONDS, PROBE_TIMEOUT_SECONDS, WINDOW_SECONDS, LoadTracker
from tests.support.fault_bench import PATH, WHOLE, open_bench, read_message
from tests.support.raw_client import ask, open_client
from tests.support.raw_server import read_request
from tests.support.requests import build_request
from tests.support.waiting import wait_until

MODEL = "anthropic/claude"


def fill(tracker: LoadTracker, failures: int, successes: int = 0) -> None:
    """Record successes, then failures."""
    for status in [*[200] * successes, *[500] * failures]:
        assert tracker.admits(MODEL)
        tracker.record(MODEL, status)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
async def test_every_overload_and_timeout_counts(autojump_clock: trio.testing.MockClock, status: int) -> None:
    """429 and 5xx are failures; what the model did not decide (a client that left), and 4xx, is none."""
    tracker = LoadTracker(least=1)
    for other in (200, 400, 404, None):
        tracker.record(MODEL, other)
    assert tracker.admits(MODEL)
    tracker = LoadTracker(least=1)
    tracker.record(MODEL, status)
    assert not tracker.admits(MODEL)
    assert tracker.list_unavailable() == [MODEL]
    assert tracker.admits("anthropic/another")


async def test_available_below_95_percent(autojump_clock: trio.testing.MockClock) -> None:
    """§9.3: unavailable from 95 % failures on, over the last 100 outcomes of a minute."""
    tracker = LoadTracker()
    fill(tracker, failures=94, successes=6)
    tracker.record(MODEL, 500)  # replaces one of the successes in the ring of 100
    assert not tracker.admits(MODEL)


async def test_a_few_failures_are_no_reason(autojump_clock: trio.testing.MockClock) -> None:
    """With fewer outcomes than the setting says, a model is available; with 0 always."""
    tracker = LoadTracker()
    fill(tracker, failures=9)
    assert tracker.admits(MODEL)
    tracker.record(MODEL, 500)
    assert not tracker.admits(MODEL)
    tracker = LoadTracker(least=0)
    fill(tracker, failures=200)


async def test_outcomes_leave_after_a_minute(autojump_clock: trio.testing.MockClock) -> None:
    """Failures that are older than the window do not count."""
    tracker = LoadTracker()
    fill(tracker, failures=9)
    await trio.sleep(WINDOW_SECONDS)
    tracker.record(MODEL, 500)
    assert tracker.admits(MODEL)


async def test_one_probe_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """After 5 s one request probes: a failure keeps the others out for 5 s more, a success lets all in."""
    tracker = LoadTracker()
    fill(tracker, failures=10)
    await trio.sleep(PROBE_SECONDS)
    assert [tracker.admits(MODEL) for _ in range(3)] == [True, False, False]
    tracker.record(MODEL, 529)
    assert not tracker.admits(MODEL)
    await trio.sleep(PROBE_SECONDS)
    assert [tracker.admits(MODEL) for _ in range(2)] == [True, False]
    tracker.record(MODEL, None)  # the client of the probe left
    assert [tracker.admits(MODEL) for _ in range(2)] == [True, False]
    tracker.record(MODEL, 200)
    assert [tracker.admits(MODEL) for _ in range(3)] == [True] * 3
    fill(tracker, failures=9)


async def test_a_lost_probe_does_not_close_a_model_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """A probe that tells nothing is followed by another one after a minute."""
    tracker = LoadTracker()
    fill(tracker, failures=10)
    await trio.sleep(PROBE_SECONDS)
    assert tracker.admits(MODEL)
    await trio.sleep(PROBE_TIMEOUT_SECONDS)
    assert tracker.admits(MODEL)


async def test_models_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """However many names clients think of, only the last ones are remembered."""
    tracker = LoadTracker(least=1)
    for index in range(MAX_MODELS + 10):
        tracker.record(f"{MODEL}-{index}", 500)
    assert len(tracker.list_unavailable()) == MAX_MODELS
    assert tracker.admits(f"{MODEL}-0")
    tracker.record(f"{MODEL}-0", 200)


async def test_unavailable_model_is_503_without_asking(tmp_path: Path) -> None:
    """§9.1, step 13: 503 in the route's shape, an event without upstream status, no charge; other models are served."""
    async with open_bench(tmp_path, {"CODY_GATEWAY_MODEL_UNAVAILABLE_AFTER": "2"}) as bench:
        bench.upstream.answer = b"HTTP/1.1 500 x\r\ncontent-length: 2\r\n\r\n{}"
        paths = ["/v1/completions/anthropic-messages", "/anthropic/v1/messages"]
        assert [(await bench.ask(path)).status for path in paths] == [500, 500]
        await bench.check("failures", resolved=500, upstream=500, count=2)
        asked = bench.upstream.requests
        for path in paths:
            answer = await bench.ask(path)
            text = "model anthropic/claude-3-haiku-20240307 is currently unavailable"
            assert (answer.status, read_message(path, answer), answer.headers["retry-after"]) == (503, text, "2")
        await bench.check("unavailable", resolved=503, upstream=None, count=2)
        assert bench.upstream.requests == asked
        assert [record.outcome.value for record in bench.records[-2:]] == ["refused"] * 2
        bench.upstream.answer = WHOLE
        assert (await bench.ask("/openai/v1/chat/completions")).status == 200
        await bench.check("others", resolved=200, upstream=200)


async def test_timeouts_make_a_model_unavailable(tmp_path: Path) -> None:
    """§9.3: a timeout counts as 504. One that a client chose, or a client that leaves, does not count as a failure.

    Otherwise one caller with ``X-Timeout-Ms: 1`` could take a model away from all others.
    """
    more = {"CODY_GATEWAY_MODEL_UNAVAILABLE_AFTER": "1", "CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT": "1s"}
    async with open_bench(tmp_path, more) as bench:
        asked = 0

        async def hold(stream: trio.SocketStream) -> None:
            nonlocal asked
            await read_request(stream)
            asked += 1
            await trio.sleep_forever()

        bench.upstream.handler = hold
        data = build_request(PATH).replace(b"host:", b"x-timeout-ms: 20\r\nhost:", 1)
        assert [(await ask(bench.gateway.port, data)).status for _ in range(2)] == [504, 504]
        async with open_client(bench.gateway.port) as client:
            await client.send(build_request(PATH, model="claude-3-opus-20240229"))
            await wait_until(lambda: asked == 3)
        await bench.wait_rest()
        assert bench.gateway.gateway.load.list_unavailable() == []
        openai = "/openai/v1/chat/completions"
        assert [(await bench.ask(openai)).status for _ in range(2)] == [504, 503]
