"""Answers of the GraphQL API that decide nothing: nobody is granted or denied anything, and each is said by name."""

from __future__ import annotations

import json

import pytest
import trio

from cgw.actors.source import SourceUnavailable
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedUser, build_error
from tests.support.sources import SourceBench, user_token

TOKEN = user_token("alice")
HTML = ((b"content-type", b"text/html; charset=utf-8"),)
LACKING = (
    "the account of CODY_GATEWAY_DOTCOM_ACCESS_TOKEN lacks access: set the feature flag "
    "product-subscriptions-reader-service-account (boolean, default off) to true for it"
)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (JsonAnswer(b"<html>Sign in</html>", 200, HTML), "is not JSON but text/html of 20 bytes (status 200)"),
        (JsonAnswer(b"<html>Not here</html>", 404, HTML), "has the status 404"),
        (JsonAnswer(b"", 200), "is not JSON but empty (status 200)"),
        (JsonAnswer(b"", 204, ()), "is not JSON but empty (status 204)"),
        (JsonAnswer(b"{", 200), "is not JSON"),
        (JsonAnswer(b"[" * 100_000, 200), "is not JSON"),
        (JsonAnswer(b'{"data": {"a": ' + b"9" * 5000 + b"}}", 200), "is not JSON"),
        (JsonAnswer(b"", 302, ((b"location", b"https://example.com/sign-in"),)), "answered with a redirect (302)"),
        (JsonAnswer(b" " * (20 * 2**20), 200), "the answer is larger than 16 MiB"),
        (JsonAnswer(b"x" * 100, 500, HTML), "answered 500"),
        (JsonAnswer({}, 429), "answered 429"),
        (JsonAnswer([], 200), "is not a JSON object"),
        (JsonAnswer(None, 200), "is not a JSON object"),
        (JsonAnswer({}, 200), "lacks 'data'"),
        (JsonAnswer({"data": None}), "lacks 'data'"),
        (JsonAnswer({"data": {}}), "lacks 'data.dotcom'"),
        (
            JsonAnswer({"data": {"dotcom": {"codyGatewayDotcomUserByToken": None}}}),
            "lacks 'data.dotcom.codyGatewayDotcomUserByToken'",
        ),
        (JsonAnswer({"data": {"dotcom": {"codyGatewayDotcomUserByToken": []}}}), "lacks 'data.dotcom"),
        (JsonAnswer({"errors": [{"message": "it\nbroke\x1b[31m"}]}), "is an error: it broke [31m"),
        (JsonAnswer({"errors": [{"message": "no such token " + TOKEN}]}), "is an error: no such token ****"),
        (JsonAnswer({"errors": ["?", 5]}), "is an error: without a message"),
        (JsonAnswer({"errors": "?"}), "is an error: without a message"),
        (JsonAnswer({"errors": [{"message": "m" * 10_000}]}), "is an error: " + "m" * 200),
        (JsonAnswer(is_broken=True), "the connection broke"),
        (JsonAnswer(b"Invalid access token.\n", 401, HTML), LACKING),
        (JsonAnswer(b"Private mode requires authentication.\n", 403, HTML), LACKING),
        (build_error("must be site admin"), LACKING),
    ],
)
async def test_bad_input_is_said_once_and_decides_nothing(
    bench: SourceBench,
    sourcegraph: ScriptedSourcegraph,
    answer: JsonAnswer,
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The user gets 503 while it lasts, and is served after it; the log names operation, host and reason once."""
    sourcegraph.users[TOKEN] = ScriptedUser(123)
    sourcegraph.answer_next = lambda call: answer
    source = await bench.start_users(sourcegraph)
    for _ in range(2):
        with pytest.raises(SourceUnavailable):
            await source.get(TOKEN)
    [message] = [record.getMessage() for record in caplog.records]
    assert "GraphQL CheckDotcomUserAccessToken of 127.0.0.1" in message
    assert problem in message
    assert TOKEN not in caplog.text
    assert "\n" not in message
    assert len(message) < 700
    sourcegraph.answer_next = None
    assert (await source.get(TOKEN)).id == "123"


async def test_the_flag_of_the_service_account(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its feature flag nothing can be asked: one clear line, and known actors go on."""
    bench.fresh_seconds = 0
    sourcegraph.users[TOKEN] = ScriptedUser(123)
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.has_reader_flag = False
    for _ in range(5):
        source.forget_freshness()
        assert (await source.get(TOKEN)).is_stale
    [record] = caplog.records
    assert LACKING in record.getMessage()
    assert "product-subscriptions-service-account lets it write, too" in record.getMessage()


async def test_an_answer_that_does_not_come_ends_after_ten_seconds(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, mock_clock: trio.testing.MockClock
) -> None:
    """The deadline is of the whole request."""
    sourcegraph.delay_seconds = 60
    source = await bench.start_users(sourcegraph)
    # Longer than Redis takes to answer on a busy machine: the clock must not jump past its deadline.
    mock_clock.autojump_threshold = 1
    started = trio.current_time()
    with pytest.raises(SourceUnavailable, match="no answer within 10 s"):
        await source.get(TOKEN)
    assert 9.9 < trio.current_time() - started < 11


async def test_a_source_that_cannot_be_reached(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the system's reason, without an address."""
    sourcegraph.url = "http://127.0.0.1:1/.api/graphql"
    with pytest.raises(SourceUnavailable):
        await (await bench.start_users(sourcegraph)).get(TOKEN)
    assert "cannot be reached: Connection refused" in caplog.text


async def test_attribution(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The names of some repositories, how many there are, and whether that is only a lower bound."""
    found = await bench.build_dotcom_client(sourcegraph).snippet_attribution("x = 1", 1)
    assert (found.repository_names, found.total_count, found.limit_hit) == (("github.com/acme/one",), 2, True)
    [call] = sourcegraph.calls
    assert call.target.endswith("?SnippetAttribution")
    assert json.loads(call.body)["variables"] == {"snippet": "x = 1", "first": 1}
