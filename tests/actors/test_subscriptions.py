"""Product subscriptions as actors, by GraphQL and by the Enterprise Portal: the tables of the reference's §2.7."""

from __future__ import annotations

from typing import Any

import pytest

from cgw.actors.source import AccessTokenDenied, NotFromSource, SourceUnavailable
from cgw.model import Feature
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_portal import ScriptedAccess, ScriptedPortal, build_connect_error, build_portal_limit
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedSubscription, build_limit
from tests.support.sources import SourceBench, build_token, subscription_token

DAY_MS = 86_400_000
UUID = "3f2a5a3e-6d0c-4a0e-9f55-0d2f0b8a7c11"
TOKEN = subscription_token("acme")


# --- GraphQL ----------------------------------------------------------------------------------------------------------


async def test_s2_7_the_actor_of_a_subscription(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """Uuid, customer's name, access, limits with the models as sent; attribution is granted in any case."""
    limits = {"chatCompletions": build_limit(100, models=["anthropic/claude-2"]), "codeCompletions": build_limit(2000)}
    sourcegraph.subscriptions.append(ScriptedSubscription(UUID, (TOKEN,), limits=limits))
    actor = await (await bench.start_subscriptions(sourcegraph)).get(TOKEN)
    assert (actor.id, actor.name, actor.source) == (UUID, "Acme Inc.", "dotcom-product-subscriptions")
    assert (actor.access_enabled, dict(actor.endpoint_access)) == (True, {"/v1/attribution": True})
    chat, code = actor.rate_limits[Feature.CHAT_COMPLETIONS], actor.rate_limits[Feature.CODE_COMPLETIONS]
    assert (chat.limit, chat.interval_ms, chat.allowed_models) == (100, DAY_MS, ("anthropic/claude-2",))
    assert (code.limit, code.concurrent_requests, code.allowed_models) == (2000, 1000, ("*",))
    assert Feature.EMBEDDINGS not in actor.rate_limits
    assert sourcegraph.calls[0].target == "/.api/graphql?CheckAccessToken"


@pytest.mark.parametrize(
    ("tags", "username", "name"),
    [
        (("trial", "customer:Acme Inc.", "customer:Other"), "admin", "Acme Inc."),
        (("trial",), "admin", "admin"),
        (("customer:",), "admin", "admin"),
        (None, "admin", "admin"),
        ((), None, UUID),
        (None, None, UUID),
    ],
)
async def test_s2_7_the_name_is_the_customers_then_the_accounts_then_the_uuid(
    bench: SourceBench,
    sourcegraph: ScriptedSourcegraph,
    tags: tuple[str, ...] | None,
    username: str | None,
    name: str,
) -> None:
    """The first customer tag with a name counts; a licence without tags is none with a name."""
    sourcegraph.subscriptions.append(ScriptedSubscription(UUID, (TOKEN,), tags=tags, username=username))
    assert (await (await bench.start_subscriptions(sourcegraph)).get(TOKEN)).name == name


@pytest.mark.parametrize(
    ("is_internal", "tags", "is_archived", "is_enabled", "has_access"),
    [
        (False, ("plan:enterprise-1",), False, True, True),
        (False, None, False, True, True),
        (False, ("dev",), True, True, False),
        (False, ("dev",), False, False, False),
        (True, ("dev",), False, True, True),
        (True, ("plan:x", "internal"), False, True, True),
        (True, ("plan:enterprise-1",), False, True, False),
        (True, ("development",), False, True, False),
        (True, (), False, True, False),
        (True, None, False, True, False),
        (True, ("dev",), True, True, False),
    ],
)
async def test_s2_7_access_needs_a_licence_that_is_allowed_and_a_subscription_that_is_not_archived(
    bench: SourceBench,
    sourcegraph: ScriptedSourcegraph,
    is_internal: bool,
    tags: tuple[str, ...] | None,
    is_archived: bool,
    is_enabled: bool,
    has_access: bool,
) -> None:
    """In internal mode only active licences tagged dev or internal are allowed."""
    subscription = ScriptedSubscription(UUID, (TOKEN,), tags=tags, is_archived=is_archived, enabled=is_enabled)
    sourcegraph.subscriptions.append(subscription)
    source = await bench.start_subscriptions(sourcegraph, is_internal=is_internal)
    actor = await source.get(TOKEN)
    assert (actor.access_enabled, actor.id) == (has_access, UUID)


@pytest.mark.parametrize("license", [None, {"info": None}, {"info": {"tags": None}}, {}, {"info": {}}])
async def test_bad_input_a_licence_without_tags(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, license: Any
) -> None:
    """It names nobody, and is not one for development."""
    subscription = ScriptedSubscription(UUID, (TOKEN,), overrides={"activeLicense": license})
    sourcegraph.subscriptions.append(subscription)
    actor = await (await bench.start_subscriptions(sourcegraph, is_internal=True)).get(TOKEN)
    assert (actor.name, actor.access_enabled) == ("acme-admin", False)


async def test_s2_7_a_legacy_token_is_the_same_token(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """``sgs_`` is rewritten to ``slk_`` for cache and look-up."""
    sourcegraph.subscriptions.append(ScriptedSubscription(UUID, (TOKEN,)))
    source = await bench.start_subscriptions(sourcegraph)
    actor = await source.get(TOKEN.replace("slk_", "sgs_"))
    assert await source.get(TOKEN) is actor
    assert sourcegraph.counts["CheckAccessToken"] == 1
    assert sourcegraph.calls[0].json()["variables"] == {"token": TOKEN}


@pytest.mark.parametrize(
    ("token", "reason"), [("", ""), (build_token("sgd_", 1), "unknown token prefix"), ("abc", "unknown token prefix")]
)
async def test_s2_7_other_tokens_are_not_from_this_source(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, token: str, reason: str
) -> None:
    """An empty token, or one of another prefix, is another source's."""
    with pytest.raises(NotFromSource) as caught:
        await (await bench.start_subscriptions(sourcegraph)).get(token)
    assert caught.value.reason == reason


@pytest.mark.parametrize("prefix", ["slk_", "sgs_"])
async def test_s2_7_a_wrong_length_is_an_invalid_format(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, prefix: str
) -> None:
    """It is denied without a fetch."""
    with pytest.raises(AccessTokenDenied, match="invalid token format"):
        await (await bench.start_subscriptions(sourcegraph)).get(prefix + "0" * 63)
    assert not sourcegraph.calls


async def test_s2_7_an_unknown_token_is_denied(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The error code ErrProductSubscriptionNotFound is a denial; no actor is cached for it (§16.5)."""
    source = await bench.start_subscriptions(sourcegraph)
    for _ in range(2):
        with pytest.raises(AccessTokenDenied) as caught:
            await source.get(TOKEN)
        assert caught.value.reason == "associated product subscription not found"
        assert caught.value.source == "dotcom-product-subscriptions"


# --- the Enterprise Portal --------------------------------------------------------------------------------------------


async def test_s2_7_the_actor_of_an_access(bench: SourceBench, portal: ScriptedPortal) -> None:
    """The id without ``es_``, the display name, all models; limits only for positive intervals."""
    limits = {
        "chatCompletions": build_portal_limit(100),
        "codeCompletions": build_portal_limit(7, "0s"),
        "embeddings": {"limit": "5"},
    }
    portal.accesses.append(ScriptedAccess(UUID, (TOKEN,), limits=limits))
    actor = await (await bench.start_portal(portal)).get(TOKEN)
    assert (actor.id, actor.name, actor.source) == (UUID, "Acme Inc.", "dotcom-product-subscriptions")
    assert (actor.access_enabled, dict(actor.endpoint_access)) == (True, {"/v1/attribution": True})
    [(feature, chat)] = actor.rate_limits.items()
    assert (feature, chat.limit, chat.interval_ms, chat.allowed_models) == ("chat_completions", 100, DAY_MS, ("*",))


@pytest.mark.parametrize(
    ("access", "name", "has_access"),
    [
        (ScriptedAccess(UUID, (TOKEN,), display_name=""), UUID, True),
        (ScriptedAccess(UUID, (TOKEN,), enabled=False), "Acme Inc.", False),
        (ScriptedAccess(UUID, (TOKEN,), overrides={"somethingNew": {"a": 1}}), "Acme Inc.", True),
    ],
    ids=["no display name", "off: the field is left out", "an unknown field"],
)
async def test_s2_7_fields_that_are_left_out_have_their_default(
    bench: SourceBench, portal: ScriptedPortal, access: ScriptedAccess, name: str, has_access: bool
) -> None:
    """Protobuf's JSON has no field for false, 0 or an empty text."""
    portal.accesses.append(access)
    actor = await (await bench.start_portal(portal)).get(TOKEN)
    assert (actor.id, actor.name, actor.access_enabled) == (UUID, name, has_access)


async def test_s2_7_not_found_is_a_denial(bench: SourceBench, portal: ScriptedPortal) -> None:
    """The Connect code ``not_found`` is a denial; it is remembered."""
    source = await bench.start_portal(portal)
    for _ in range(2):
        with pytest.raises(AccessTokenDenied, match="associated product subscription not found"):
            await source.get(TOKEN)
    assert portal.counts["GetCodyGatewayAccess"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        build_connect_error(404, "unimplemented"),
        build_connect_error(403, "permission_denied"),
        build_connect_error(400, "invalid_argument"),
        JsonAnswer(b"<html>", 404, ((b"content-type", b"text/html"),)),
        JsonAnswer({"access": {}}),
        JsonAnswer({"access": {"subscriptionId": ""}}),
        JsonAnswer({"access": {"subscriptionId": "es_a b"}}),
        JsonAnswer({"access": {"subscriptionId": "es_1", "enabled": "yes"}}),
        JsonAnswer({"access": None}),
        JsonAnswer({}),
        JsonAnswer([]),
    ],
)
async def test_bad_input_answers_of_the_portal_that_decide_nothing(
    bench: SourceBench, portal: ScriptedPortal, answer: JsonAnswer, caplog: pytest.LogCaptureFixture
) -> None:
    """Other errors, and an access without a usable id, mean 503; the log says why, once, without the token."""
    portal.accesses.append(ScriptedAccess(UUID, (TOKEN,)))
    source = await bench.start_portal(portal)
    portal.answer_next = lambda call: answer if call.target.endswith("Access") else None
    for _ in range(2):
        with pytest.raises(SourceUnavailable):
            await source.get(TOKEN)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "Enterprise Portal GetCodyGatewayAccess of 127.0.0.1" in message
    assert TOKEN not in message
    portal.answer_next = None
    assert (await source.get(TOKEN)).id == UUID


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ({"limit": "-5", "intervalDuration": "60s"}, "has the limit -5"),
        ({"limit": "5", "intervalDuration": "-60s"}, "has an interval of -60.0 s"),
        ({"limit": "5", "intervalDuration": "1h"}, "has the interval '1h', which is no duration"),
        ({"limit": str(2**60), "intervalDuration": "60s"}, "has the limit 1152921504606846976"),
    ],
)
async def test_bad_input_a_wrong_limit_of_the_portal(
    bench: SourceBench, portal: ScriptedPortal, limit: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It grants nothing, and is said by name."""
    limits = {"chatCompletions": limit, "codeCompletions": build_portal_limit()}
    portal.accesses.append(ScriptedAccess(UUID, (TOKEN,), limits=limits))
    actor = await (await bench.start_portal(portal)).get(TOKEN)
    assert list(actor.rate_limits) == [Feature.CODE_COMPLETIONS]
    assert f"subscription {UUID}: chat_completions {problem}" in caplog.text


# --- SAMS -------------------------------------------------------------------------------------------------------------


async def test_a_token_of_sams_is_used_until_shortly_before_it_expires(
    bench: SourceBench, portal: ScriptedPortal
) -> None:
    """One token serves many fetches; one whose end is near is replaced."""
    source = await bench.start_portal(portal)
    for number in range(5):
        portal.accesses.append(ScriptedAccess(f"s-{number}", (subscription_token(number),)))
        await source.get(subscription_token(number))
    assert portal.counts["token"] == 1
    portal.expires_in = 0
    portal.valid_tokens.clear()
    portal.accesses.append(ScriptedAccess("s-6", (subscription_token(6),)))
    assert (await source.get(subscription_token(6))).id == "s-6"
    assert portal.counts["token"] == 2, "a token that was revoked is replaced at once"


async def test_a_portal_that_refuses_new_tokens_is_asked_twice_only(
    bench: SourceBench, portal: ScriptedPortal, caplog: pytest.LogCaptureFixture
) -> None:
    """A second 401 is an error that says what to check."""
    portal.accesses.append(ScriptedAccess(UUID, (TOKEN,)))
    portal.answer_next = lambda call: build_connect_error(401, "unauthenticated") if "Access" in call.target else None
    with pytest.raises(SourceUnavailable):
        await (await bench.start_portal(portal)).get(TOKEN)
    assert portal.counts == {"token": 2, "GetCodyGatewayAccess": 2}
    assert "check the client's scopes" in caplog.text


@pytest.mark.parametrize("expires_in", [None, 0, -5, "3600", True, float("inf")])
async def test_bad_input_sams_that_does_not_tell_when_a_token_expires(
    bench: SourceBench, portal: ScriptedPortal, expires_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The token is used for a few minutes, and the log says so once."""
    body = {"access_token": "sams_at_x", "token_type": "bearer", "expires_in": expires_in}
    portal.valid_tokens.add("sams_at_x")
    portal.answer_next = lambda call: JsonAnswer(body) if call.target == "/oauth/token" else None
    source = await bench.start_portal(portal)
    for number in range(3):
        portal.accesses.append(ScriptedAccess(f"s-{number}", (subscription_token(number),)))
        await source.get(subscription_token(number))
    assert portal.counts["token"] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "SAMS token of 127.0.0.1: no usable 'expires_in'; tokens are used for 300 s"
    ]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (JsonAnswer({"error": "invalid_client"}, 401), "check SAMS_CLIENT_ID"),
        (JsonAnswer({}, 200), "lacks 'access_token'"),
        (JsonAnswer({"access_token": 5}, 200), "lacks 'access_token'"),
        (JsonAnswer({"access_token": "a\nb"}, 200), "lacks 'access_token'"),
        (JsonAnswer(b"", 204, ()), "has the status 204"),
        (JsonAnswer({}, 503), "answered 503"),
    ],
)
async def test_bad_input_answers_of_sams(
    bench: SourceBench, portal: ScriptedPortal, answer: JsonAnswer, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a token for the portal no token of a client can be checked: 503, and the log says what SAMS said."""
    portal.accesses.append(ScriptedAccess(UUID, (TOKEN,)))
    portal.answer_next = lambda call: answer if call.target == "/oauth/token" else None
    source = await bench.start_portal(portal)
    with pytest.raises(SourceUnavailable):
        await source.get(TOKEN)
    assert "SAMS token of 127.0.0.1" in caplog.text
    assert problem in caplog.text
    portal.answer_next = None
    assert (await source.get(TOKEN)).id == UUID
