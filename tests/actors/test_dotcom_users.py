"""Users of Sourcegraph.com as actors: the tables of the reference's §2.5 and §3."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cgw.actors.dotcom.users import parse_user_id
from cgw.actors.source import AccessTokenDenied, NotFromSource, SourceUnavailable
from cgw.model import Feature, LimitUnit
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedUser, build_limit
from tests.support.sources import SourceBench, build_token, user_token

DAY_MS = 86_400_000
TOKEN = user_token("alice")


async def test_s2_5_the_actor_is_built_of_the_answer(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """Id, name, access, limits, models, and the short-term rate of half the daily limit per 10 s."""
    sourcegraph.users[TOKEN] = ScriptedUser(
        123,
        username="alice",
        limits={
            "chatCompletions": build_limit(100, models=["anthropic/claude-3-haiku-20240307", "openai/gpt-4o"]),
            "codeCompletions": build_limit("3000", 30 * 86_400),
            "embeddings": build_limit(1_000_000),
        },
    )
    actor = await (await bench.start_users(sourcegraph)).get(TOKEN)
    assert (actor.id, actor.name, actor.source, actor.access_enabled) == ("123", "alice", "dotcom-user", True)
    assert actor.last_updated is not None
    assert not actor.endpoint_access
    assert actor.policy.is_cut_off_at_one
    chat, code, embeddings = (
        actor.rate_limits[feature]
        for feature in (Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS, Feature.EMBEDDINGS)
    )
    assert (chat.limit, chat.interval_ms, chat.concurrent_requests) == (100, DAY_MS, 50)
    assert chat.allowed_models == ("anthropic/claude-3-haiku-20240307", "openai/gpt-4o")
    assert (code.limit, code.interval_ms, code.concurrent_requests) == (3000, 30 * DAY_MS, 50)
    assert code.allowed_models == ("*",)
    assert (embeddings.limit, embeddings.unit) == (1_000_000, LimitUnit.TOKENS)


async def test_s3_request_headers_and_query(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The operation's name is the whole query string; token, client id and user agent are in the headers."""
    sourcegraph.users[TOKEN] = ScriptedUser(123)
    await (await bench.start_users(sourcegraph)).get(TOKEN)
    [call] = sourcegraph.calls
    assert (call.method, call.target) == ("POST", "/.api/graphql?CheckDotcomUserAccessToken")
    assert call.header("authorization") == "token sgp_scripted-service-account"
    assert call.header("x-sourcegraph-client-id") == "test-client"
    assert call.header("user-agent") == "Cody-Gateway/test 1.2.3"
    assert call.json()["variables"] == {"token": TOKEN}


async def test_s3_connections_are_kept(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """One connection serves one fetch after the other."""
    source = await bench.start_users(sourcegraph)
    for number in range(5):
        sourcegraph.users[user_token(number)] = ScriptedUser(number)
        await source.get(user_token(number))
    assert {call.connection for call in sourcegraph.calls} == {1}


@pytest.mark.parametrize("token", ["", "slk_" + "0" * 64, "cgw_abc", "SGD_" + "0" * 64, "sgd"])
async def test_s2_5_another_prefix_is_not_from_this_source(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, token: str
) -> None:
    """An empty token, or one of another prefix, is another source's."""
    with pytest.raises(NotFromSource):
        await (await bench.start_users(sourcegraph)).get(token)


@pytest.mark.parametrize("rest", ["", "abc", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 63 + "\n", "0" * 63 + "é"])
async def test_s2_5_a_wrong_length_is_an_invalid_format(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, rest: str
) -> None:
    """A token that can be none of this source's is denied without a fetch."""
    with pytest.raises(AccessTokenDenied, match="invalid token format"):
        await (await bench.start_users(sourcegraph)).get("sgd_" + rest)
    assert not sourcegraph.calls


async def test_s2_5_an_unknown_user_is_denied(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The error code ErrDotcomUserNotFound is a denial, with the reference's reason."""
    with pytest.raises(AccessTokenDenied) as caught:
        await (await bench.start_users(sourcegraph)).get(TOKEN)
    assert caught.value.reason == "associated dotcom user not found"
    assert caught.value.source == "dotcom-user"


async def test_s2_5_access_that_is_off(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """A user whose access is off is an actor without access or limits: 403, not 401."""
    sourcegraph.users[TOKEN] = ScriptedUser(123, enabled=False)
    actor = await (await bench.start_users(sourcegraph)).get(TOKEN)
    assert (actor.id, actor.access_enabled, dict(actor.rate_limits)) == ("123", False, {})


@pytest.mark.parametrize(
    "limit",
    [None, build_limit(0), build_limit(10, 0), build_limit(10, models=[])],
    ids=["no limit", "limit 0", "interval 0", "no model"],
)
async def test_s1_2_an_invalid_limit_is_as_none(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, limit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A zero or an empty list is the source's way to say that there is no limit: the feature is not available."""
    limits = {"chatCompletions": limit, "codeCompletions": build_limit(7)}
    sourcegraph.users[TOKEN] = ScriptedUser(123, limits=limits)
    actor = await (await bench.start_users(sourcegraph)).get(TOKEN)
    assert list(actor.rate_limits) == [Feature.CODE_COMPLETIONS]
    assert not caplog.records


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        (build_limit(-1), "has the limit -1"),
        (build_limit(2**53 + 1), "has the limit 9007199254740993"),
        (build_limit(10, -5), "has an interval of -5 s"),
        (build_limit(10, models=["a/b"] * 1001), "allows 1001 models"),
    ],
    ids=["negative limit", "beyond 2^53", "negative interval", "too many models"],
)
async def test_bad_input_a_wrong_limit_is_said_once_by_name(
    bench: SourceBench,
    sourcegraph: ScriptedSourcegraph,
    limit: Any,
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A number that no limit can have grants nothing, and one line names user, feature and number."""
    sourcegraph.users[TOKEN] = ScriptedUser(123, limits={"chatCompletions": limit, "codeCompletions": build_limit(7)})
    bench.fresh_seconds = 0
    source = await bench.start_users(sourcegraph)
    actor = await source.get(TOKEN)
    with trio.fail_after(10):
        # Not just twice: within a millisecond the record is fresh, and while Sourcegraph.com is slow it is good enough.
        while sourcegraph.counts["CheckDotcomUserAccessToken"] < 3:
            await trio.sleep(0.002)
            source.forget_freshness()
            actor = await source.get(TOKEN)
    assert list(actor.rate_limits) == [Feature.CODE_COMPLETIONS]
    [record] = caplog.records
    assert "user 123 (alice): chat_completions " + problem in record.getMessage()


@pytest.mark.parametrize(
    "relay_id", ["", "123", "VXNlcg==", base64.b64encode(b"Org:12").decode(), base64.b64encode(b"User:-1").decode()]
)
async def test_bad_input_an_id_that_is_no_relay_id(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, relay_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such an answer tells nothing: 503 for who is unknown, and one line that names the user."""
    sourcegraph.users[TOKEN] = ScriptedUser(123, id=relay_id)
    source = await bench.start_users(sourcegraph)
    for _ in range(2):
        with pytest.raises(SourceUnavailable):
            await source.get(TOKEN)
    [record] = caplog.records
    assert "the id of Sourcegraph.com's user 'alice' is no relay id" in record.getMessage()


@given(st.integers(0, 10**18 - 1))
def test_a_relay_id_is_decoded_to_its_number(number: int) -> None:
    """The id is the number in decimal."""
    assert parse_user_id(base64.b64encode(f"User:{number}".encode()).decode()) == str(number)


@given(st.text(max_size=80))
def test_any_text_is_a_relay_id_or_none(text: str) -> None:
    """No text raises."""
    number = parse_user_id(text)
    assert number is None or number.isdecimal()


async def test_unknown_fields_are_tolerated(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """A field that cgw does not know changes nothing."""
    user = ScriptedUser(123).render()
    user["codyGatewayAccess"]["somethingNew"] = {"a": [1]}
    user["somethingElse"] = None
    answer = JsonAnswer({"data": {"dotcom": {"codyGatewayDotcomUserByToken": user}}, "extensions": {"x": 1}})
    sourcegraph.answer_next = lambda call: answer
    assert (await (await bench.start_users(sourcegraph)).get(TOKEN)).id == "123"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (("id",), "lacks 'id'"),
        (("codyGatewayAccess",), "lacks 'codyGatewayAccess'"),
        (("codyGatewayAccess", "enabled"), "lacks 'enabled' @ $.codyGatewayAccess.enabled"),
        (
            ("codyGatewayAccess", "chatCompletionsRateLimit", "limit"),
            "lacks 'limit' @ $.codyGatewayAccess.chatCompletionsRateLimit.limit",
        ),
    ],
)
async def test_a_missing_field_is_named(
    bench: SourceBench,
    sourcegraph: ScriptedSourcegraph,
    path: tuple[str, ...],
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says which field of which operation's answer is missing."""
    user = json.loads(json.dumps(ScriptedUser(123).render()))
    place = user
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    answer = JsonAnswer({"data": {"dotcom": {"codyGatewayDotcomUserByToken": user}}})
    sourcegraph.answer_next = lambda call: answer
    with pytest.raises(SourceUnavailable):
        await (await bench.start_users(sourcegraph)).get(TOKEN)
    [record] = caplog.records
    assert problem in record.getMessage()
    assert "GraphQL CheckDotcomUserAccessToken of 127.0.0.1" in record.getMessage()


def test_tokens_of_the_tests_have_the_shape() -> None:
    """Prefix and 64 hex digits, 68 characters in total (§2.5)."""
    assert len(TOKEN) == len(build_token("slk_", 1)) == 68
