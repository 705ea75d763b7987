"""Whole gateways with the scripted Sourcegraph.com and Enterprise Portal: the table of the reference's §4."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from cgw.actors.fetched.cached_source import CachedSource
from cgw.actors.source import Syncer
from cgw.service.lifecycle import Service
from cgw.telemetry.exchange_record import ExchangeRecord
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_portal import (
    CLIENT_ID,
    CLIENT_SECRET,
    ScriptedAccess,
    ScriptedPortal,
    open_scripted_portal,
)
from cgw.testing.scripted_sourcegraph import (
    SERVICE_TOKEN,
    ScriptedSourcegraph,
    ScriptedUser,
    build_error,
    build_limit,
    open_scripted_sourcegraph,
)
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import open_gateway
from tests.support.raw_client import Answer, ask
from tests.support.sources import subscription_token, user_token
from tests.support.waiting import wait_until

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}]}'
COMPLETIONS = "/v1/completions/openai"
USER, OFF, DISABLED = user_token("alice"), user_token("off"), subscription_token("disabled")


@frozen
class Stage:
    """A gateway and the services around it."""

    gateway: Service
    sourcegraph: ScriptedSourcegraph
    portal: ScriptedPortal
    folder: Path

    async def ask(self, authorization: str | None, path: str = COMPLETIONS, method: str = "POST") -> Answer:
        """Send one request with this ``Authorization``."""
        lines = [f"{method} {path} HTTP/1.1", "host: x", "x-sourcegraph-feature: chat_completions"]
        lines += [f"content-length: {len(BODY)}"] if method == "POST" else []
        lines += [] if authorization is None else [f"authorization: {authorization}"]
        head = "\r\n".join(lines) + "\r\n\r\n"
        return await ask(self.gateway.port, head.encode() + (BODY if method == "POST" else b""))

    def read_events(self) -> list[dict[str, Any]]:
        """Return the usage events, oldest first."""
        files = sorted((self.folder / "events").glob("*.ndjson"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    async def wait_synced(self) -> None:
        """Wait until the first sync has written all tokens: it would write those that a test removes."""
        index, redis = "cgw:{actors:dotcom-product-subscriptions}:index", self.gateway.redis
        with trio.fail_after(5):
            while await redis.execute_command("ZCARD", index) < 2:  # noqa: ASYNC110 - another task's work in Redis
                await trio.sleep(0.01)

    def expire(self) -> None:
        """Have every actor asked for again."""
        for source in self.gateway.gateway.sources.runners:
            if isinstance(source, CachedSource):
                source.forget_freshness()


@asynccontextmanager
async def open_stage(folder: Path, upstream: ScriptedUpstream, **more: str) -> AsyncIterator[Stage]:
    """Open a gateway with both services, a user and a subscription on each."""
    async with open_scripted_sourcegraph() as sourcegraph, open_scripted_portal() as portal:
        sourcegraph.users[USER] = ScriptedUser(1)
        sourcegraph.users[OFF] = ScriptedUser(2, enabled=False)
        portal.accesses = [
            ScriptedAccess("s-1", (subscription_token(1),)),
            ScriptedAccess("s-2", (DISABLED,), enabled=False),
        ]
        environ = {
            "CODY_GATEWAY_DOTCOM_API_URL": sourcegraph.url,
            "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": SERVICE_TOKEN,
            "CODY_GATEWAY_ENTERPRISE_PORTAL_URL": portal.url,
            "SAMS_URL": portal.url,
            "SAMS_CLIENT_ID": CLIENT_ID,
            "SAMS_CLIENT_SECRET": CLIENT_SECRET,
            **more,
        }
        async with open_gateway(folder, upstream.url, more=environ) as gateway:
            yield Stage(gateway, sourcegraph, portal, folder)


async def test_users_and_subscriptions_are_served(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """One gateway serves users of Sourcegraph.com and subscriptions of the Enterprise Portal, each fetched once."""
    async with open_stage(tmp_path, upstream) as stage:
        for token in (USER, subscription_token(1), USER, subscription_token(1).replace("slk_", "sgs_")):
            answer = await stage.ask(f"Bearer {token}")
            assert answer.status == 200, answer.body
        assert stage.sourcegraph.counts == {"CheckDotcomUserAccessToken": 1}
        # None if the first sync was quicker.
        assert stage.portal.counts["GetCodyGatewayAccess"] <= 1
        assert stage.portal.counts["token"] == 1
        events = stage.read_events()
    assert [(event["source"], event["identifier"]) for event in events] == [
        ("dotcom-user", "1"),
        ("dotcom-product-subscriptions", "s-1"),
        ("dotcom-user", "1"),
        ("dotcom-product-subscriptions", "s-1"),
    ]


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/limits"])
@pytest.mark.parametrize(
    ("authorization", "status", "event"),
    [
        (None, 401, None),
        ("Bearer", 400, None),
        ("Basic abc", 400, None),
        ("token abc", 400, None),
        ("Bearer unknown", 401, None),
        ("Bearer " + user_token("unknown"), 401, ("Unauthorized", "dotcom-user", "unknown")),
        ("Bearer sgd_short", 401, ("Unauthorized", "dotcom-user", "unknown")),
        ("Bearer " + subscription_token("x"), 401, ("Unauthorized", "dotcom-product-subscriptions", "unknown")),
        ("Bearer " + OFF, 403, ("AccessDenied", "dotcom-user", "2")),
        ("bearer  " + DISABLED, 403, ("AccessDenied", "dotcom-product-subscriptions", "s-2")),
        ("BEARER " + USER, 200, None),
    ],
)
async def test_s4_the_outcome_of_a_look_up_as_status_and_event(
    tmp_path: Path,
    upstream: ScriptedUpstream,
    path: str,
    authorization: str | None,
    status: int,
    event: tuple[str, str, str] | None,
) -> None:
    """The table of §4, for exchanges and for the control routes: status, and event with source and identifier."""
    async with open_stage(tmp_path, upstream) as stage:
        answer = await stage.ask(authorization, path, "POST" if path == COMPLETIONS else "GET")
        events = [
            (event["name"], event["source"], event["identifier"])
            for event in stage.read_events()
            if event["name"] != "CompletionsFinished"
        ]
    assert answer.status == status
    assert events == ([] if event is None else [event])
    if status >= 400:
        assert isinstance(answer.json()["error"], str)
    if status == 401 and event is not None:
        assert answer.headers.get("retry-after") is None


async def test_s4_an_unauthorized_event_has_the_reason(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Its metadata is the reason; AccessDenied has none."""
    async with open_stage(tmp_path, upstream) as stage:
        await stage.ask("Bearer " + user_token("unknown"))
        await stage.ask("Bearer " + OFF)
        metadata = [event["metadata"] for event in stage.read_events()]
    assert [len(keys.pop("trace_id")) for keys in metadata] == [32, 32]
    assert metadata == [{"reason": "associated dotcom user not found"}, {}]


@pytest.mark.parametrize(
    ("token", "status", "name", "reason"),
    [("sgd_short", 401, "Unauthorized", "invalid token format"), (OFF, 403, "AccessDenied", None)],
)
async def test_a_flood_of_denials_is_one_event_a_second(
    tmp_path: Path, upstream: ScriptedUpstream, token: str, status: int, name: str, reason: str | None
) -> None:
    """Repeated denials of one source and reason, or of one actor, are counted, so that they do not fill the disk."""
    async with open_stage(tmp_path, upstream) as stage:
        started = trio.current_time()
        for _ in range(30):
            assert (await stage.ask("Bearer " + token)).status == status
        seconds = trio.current_time() - started
    denials = [event["metadata"] for event in stage.read_events() if event["name"] == name]
    assert len(denials) <= 2 + seconds
    assert sum(metadata.get("count", 1) for metadata in denials) == 30
    assert {metadata.get("reason") for metadata in denials} == {reason}


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/limits"])
async def test_s4_any_other_error_is_503_with_retry_after(
    tmp_path: Path, upstream: ScriptedUpstream, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is unknown while the source is down gets 503, without an event; who is known goes on, marked as stale."""
    method = "POST" if path == COMPLETIONS else "GET"
    async with open_stage(tmp_path, upstream) as stage:
        assert (await stage.ask("Bearer " + subscription_token(1))).status == 200
        await stage.wait_synced()
        stage.portal.answer_next = lambda call: JsonAnswer({}, 500)
        await stage.gateway.redis.execute_command("FLUSHALL")
        stage.expire()
        with caplog.at_level(logging.INFO, "cgw.exchange"):
            answer = await stage.ask("Bearer " + subscription_token("new"), path, method)
            known = await stage.ask("Bearer " + subscription_token(1))
            await wait_until(lambda: find_stale(caplog.records) == [True])
        events = stage.read_events()
    assert (answer.status, known.status) == (503, 200)
    assert int(answer.headers["retry-after"]) >= 1
    assert "the token cannot be checked right now" in answer.body.decode()
    assert "127.0.0.1" not in answer.body.decode()
    assert [event["name"] for event in events] == ["CompletionsFinished"] * 2


def find_stale(records: list[logging.LogRecord]) -> list[bool | None]:
    """Return the log's field ``stale`` of the exchanges of s-1."""
    exchanges = [record.msg for record in records if isinstance(record.msg, ExchangeRecord)]
    return [exchange.stale for exchange in exchanges if exchange.actor == "s-1"]


async def test_unknown_tokens_beyond_the_budget_get_429(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """They wait as long as retry-after says; known tokens of the same address are served."""
    async with open_stage(tmp_path, upstream, CODY_GATEWAY_UNKNOWN_TOKENS_PER_ADDRESS="3") as stage:
        statuses = [(await stage.ask("Bearer " + user_token(number))).status for number in range(6)]
        refused = await stage.ask("Bearer " + user_token(7))
        assert (await stage.ask("Bearer " + USER)).status == 429, "it is not known yet"
    assert statuses == [401, 401, 401, 429, 429, 429]
    assert 1 <= int(refused.headers["retry-after"]) <= 20


async def test_refresh_takes_over_new_limits(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """POST /v1/limits/refresh fetches the caller again, within its cool-down it is 429."""
    async with open_stage(tmp_path, upstream, CODY_GATEWAY_DOTCOM_ACTOR_COOLDOWN_INTERVAL="1s") as stage:
        await stage.ask("Bearer " + USER, "/v1/limits", "GET")
        early = await stage.ask("Bearer " + USER, "/v1/limits/refresh")
        stage.sourcegraph.users[USER] = ScriptedUser(1, limits={"chatCompletions": build_limit(777)})
        await trio.sleep(1.05)
        assert (await stage.ask("Bearer " + USER, "/v1/limits/refresh")).status == 200
        limits = (await stage.ask("Bearer " + USER, "/v1/limits", "GET")).json()
    assert early.status == 429
    assert "actor was recently updated" in early.json()["error"]
    assert {feature: limit["limit"] for feature, limit in limits.items()} == {"chat_completions": 777}


async def test_a_changed_interval_resets_the_counted_usage(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """After a refresh with another interval the quota is unused; with a raised limit it is not (§2.5)."""

    async def read_usage() -> int:
        limits = (await stage.ask("Bearer " + USER, "/v1/limits", "GET")).json()
        usage: int = limits["chat_completions"]["usage"]
        return usage

    async with open_stage(tmp_path, upstream, CODY_GATEWAY_DOTCOM_ACTOR_COOLDOWN_INTERVAL="100ms") as stage:
        for _ in range(5):
            await stage.ask("Bearer " + USER)
        usages = [await read_usage()]
        for limit in (build_limit(200), build_limit(200, 7 * 86_400)):
            stage.sourcegraph.users[USER] = ScriptedUser(1, limits={"chatCompletions": limit})
            await trio.sleep(0.12)
            assert (await stage.ask("Bearer " + USER, "/v1/limits/refresh")).status == 200
            usages.append(await read_usage())
    assert usages == [5, 5, 0]


async def test_tokens_appear_nowhere(
    tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a client's token nor cgw's own is in a log record (before masking), an event, an answer, or in Redis."""
    canaries = {USER, OFF, DISABLED, SERVICE_TOKEN, CLIENT_SECRET, subscription_token(1), subscription_token("listed")}
    canaries |= {user_token("unknown"), user_token("broken"), "sgd_canary-of-a-malformed-token", "cgw_canary-unknown"}
    answers = []
    async with open_stage(tmp_path, upstream, CODY_GATEWAY_UNKNOWN_TOKENS_PER_ADDRESS="5") as stage:
        stage.portal.accesses.append(ScriptedAccess("s-3", (subscription_token("listed"), "slk_canary-malformed")))
        canaries.add("slk_canary-malformed")
        with caplog.at_level(logging.DEBUG):
            for token in sorted(canaries):
                answers.append(await stage.ask("Bearer " + token))
                answers.append(await stage.ask(token))
                answers.append(await stage.ask("Bearer " + token, "/v1/limits", "GET"))
                answers.append(await stage.ask("Bearer " + token, "/v1/limits/refresh"))
            for syncer in stage.gateway.gateway.sources.syncers:
                assert isinstance(syncer, Syncer)
                await syncer.sync(2**52)
            # The services repeat what they were sent.
            stage.sourcegraph.answer_next = lambda call: build_error(f"cannot look up {call.json()['variables']}")
            stage.portal.answer_next = lambda call: JsonAnswer({"code": call.body.decode(), "message": "x"}, 400)
            stage.expire()
            answers += [await stage.ask("Bearer " + token) for token in sorted(canaries)]
        canaries |= stage.portal.valid_tokens
        events = "".join(file.read_text() for file in (tmp_path / "events").iterdir() if file.is_file())
        store = await dump_store(stage.gateway)
    assert len({answer.status for answer in answers}) >= 5
    texts = {
        "log": "\n".join(f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records),
        "events": events,
        "answers": "\n".join(f"{answer.headers} {answer.body.decode()}" for answer in answers),
        "store": store,
    }
    assert "s-3" in texts["store"]
    for name, text in texts.items():
        for canary in canaries:
            assert canary not in text, name
            assert canary.partition("_")[2] not in text, name


async def dump_store(gateway: Service) -> str:
    """Return all keys and values of Redis."""
    redis = gateway.redis
    await redis.execute_command("CONFIG", "SET", "rdbcompression", "no")
    parts: list[bytes] = []
    for key in await redis.execute_command("KEYS", "*"):
        parts += (key, await redis.execute_command("DUMP", key) or b"")
    return b"\n".join(parts).decode("latin-1")
