"""``cgw token check`` and ``cgw actors list``, as an operator runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import trio

import cgw
from cgw.testing.scripted_sourcegraph import (
    ScriptedSourcegraph,
    ScriptedSubscription,
    ScriptedUser,
    build_limit,
    open_scripted_sourcegraph,
)
from tests.support.gateway import DISABLED_TOKEN, TOKEN
from tests.support.process import open_gateway_process
from tests.support.redis_server import run_redis_server
from tests.support.sourcegraph_gateway import build_dotcom_environ
from tests.support.sources import subscription_token, user_token
from tests.support.waiting import wait_until

ROOT = Path(cgw.__file__).parent.parent
INSTANCE, DISABLED, USER = subscription_token("acme"), subscription_token("off"), user_token("alice")
UUID = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
async def sourcegraph() -> AsyncIterator[ScriptedSourcegraph]:
    """A Sourcegraph.com with a subscription, one without access, and a user."""
    async with open_scripted_sourcegraph() as scripted:
        scripted.subscriptions = [
            ScriptedSubscription(UUID, (INSTANCE,), limits={"chatCompletions": build_limit(5000, 86_400)}),
            ScriptedSubscription("00000000-0000-0000-0000-000000000002", (DISABLED,), enabled=False),
        ]
        scripted.users[USER] = ScriptedUser(7)
        yield scripted


async def run_cgw(environ: Mapping[str, str], *arguments: str, token: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run ``cgw`` to its end, with ``token`` on its standard input."""
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    with trio.fail_after(60):
        return await trio.run_process(
            [sys.executable, "-m", "cgw", *arguments],
            env={**inherited, **environ},
            stdin=token.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


async def test_check_of_a_token_of_each_source(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> None:
    """Source, actor, access, age and limits are printed; the token nowhere. No gateway has to be running."""
    environ = build_dotcom_environ(tmp_path, sourcegraph)
    for token, lines in (
        (INSTANCE, ["source  dotcom-product-subscriptions", f"actor   {UUID}, Acme Inc.", "access  on"]),
        (USER, ["source  dotcom-user", "actor   7, alice", "access  on"]),
        (TOKEN, ["source  static", "actor   acme, Acme Inc.", "access  on"]),
    ):
        completed = await run_cgw(environ, "token", "check", token=f"{token}\n")
        assert (completed.returncode, completed.stderr) == (0, b"")
        text = completed.stdout.decode()
        assert text.splitlines()[:3] == lines
        assert token not in text
        age = text.splitlines()[3]
        assert age.startswith("known   fetched ") if token != TOKEN else age.endswith("actors.toml, as it is now")
        assert "chat_completions" in text


async def test_check_of_an_actor_without_access(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> None:
    """What is granted all the same is named; without limits that is said."""
    environ = build_dotcom_environ(tmp_path, sourcegraph)
    completed = await run_cgw(environ, "token", "check", token=DISABLED)
    assert completed.returncode == 0
    assert completed.stdout.decode().splitlines()[2::2] == [
        "access  off: 403, except for /v1/attribution",
        "no feature has a limit, so each request gets 403",
    ]
    static = await run_cgw(environ, "token", "check", token=DISABLED_TOKEN)
    assert "access  off: 403\n" in static.stdout.decode()


async def test_check_as_json(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> None:
    """For other programs, an object with everything."""
    completed = await run_cgw(build_dotcom_environ(tmp_path, sourcegraph), "token", "check", "--json", token=INSTANCE)
    assert completed.returncode == 0
    actor = json.loads(completed.stdout)
    assert (actor["source"], actor["id"], actor["is_stale"]) == ("dotcom-product-subscriptions", UUID, False)
    assert actor["limits"]["chat_completions"] == {
        "limit": 5000,
        "unit": "requests",
        "interval_ms": 86_400_000,
        "concurrent_requests": 2500,
        "concurrent_interval_ms": 10_000,
        "max_in_flight": None,
        "allowed_models": ["*"],
    }


@pytest.mark.parametrize(
    ("token", "more", "problem"),
    [
        (subscription_token("nobody"), {}, "access token denied: associated product subscription not found"),
        (user_token("nobody"), {}, "access token denied: associated dotcom user not found"),
        ("slk_short", {}, "access token denied: invalid token format"),
        (INSTANCE, {"CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": ""}, "no source knows the token: tokens of instances need "),
        (USER, {"CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": ""}, "no source knows the token: tokens of Sourcegraph.com's "),
        ("cgw_nobody", {}, "no source knows the token: tokens of static actors need CODY_GATEWAY_ACTORS_FILE"),
        ("sgp_" + "0" * 40, {}, "no source knows the token: this is an access token of Sourcegraph: `cgw token derive"),
        ("canary", {}, "no source knows the token: it begins with none of"),
    ],
)
async def test_check_of_a_token_that_gets_401(
    tmp_path: Path, sourcegraph: ScriptedSourcegraph, token: str, more: Mapping[str, str], problem: str
) -> None:
    """Exit status 1 and one sentence, with what to set where a setting is missing."""
    completed = await run_cgw(build_dotcom_environ(tmp_path, sourcegraph, more), "token", "check", token=token)
    assert (completed.returncode, completed.stdout) == (1, b"")
    (line,) = completed.stderr.decode().splitlines()
    assert line.startswith(f"cgw: {problem}")
    assert token not in line


async def test_check_says_what_the_service_account_lacks(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> None:
    """A wrong account is found before the first user finds it."""
    sourcegraph.has_reader_flag = False
    completed = await run_cgw(build_dotcom_environ(tmp_path, sourcegraph), "token", "check", token=INSTANCE)
    assert (completed.returncode, completed.stdout) == (1, b"")
    assert b"product-subscriptions-reader-service-account" in completed.stderr
    assert INSTANCE.encode() not in completed.stderr


async def test_check_uses_what_the_gateway_knows(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> None:
    """Beside a running gateway, its Redis is asked first; while the source is down the answer is as old as that."""
    (tmp_path / "g").mkdir()
    environ = build_dotcom_environ(tmp_path / "g", sourcegraph)
    async with open_gateway_process(environ, tmp_path / "log"):
        await wait_until(lambda: sourcegraph.counts["ListProductSubscriptions"] == 1)
        first = await run_cgw(environ, "token", "check", token=INSTANCE)
        assert b"dotcom-product-subscriptions" in first.stdout
    assert sourcegraph.counts["CheckAccessToken"] == 0


async def test_list_has_local_actors_and_those_in_redis(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> None:
    """Actors of the file, product subscriptions after a sync, users after a request; with their source and quotas."""
    with run_redis_server(tmp_path) as server:
        more = {"REDIS_ENDPOINT": server.url, "CODY_GATEWAY_ALLOW_ANONYMOUS": "t"}
        (tmp_path / "g").mkdir()
        environ = build_dotcom_environ(tmp_path / "g", sourcegraph, more)
        before = json.loads((await run_cgw(environ, "actors", "list", "--json")).stdout)
        assert [(row["source"], row["id"]) for row in before] == [
            ("anonymous", "anonymous"),
            ("static", "acme"),
            ("static", "initech"),
        ]
        async with open_gateway_process(environ, tmp_path / "log"):
            await wait_until(lambda: sourcegraph.counts["ListProductSubscriptions"] == 1)
            assert (await run_cgw(environ, "token", "check", token=USER)).returncode == 0
        completed = await run_cgw(environ, "actors", "list", "--json")
        assert (completed.returncode, completed.stderr) == (0, b"")
        rows = json.loads(completed.stdout)[3:]
        assert [(row["source"], row["id"], row["access_enabled"]) for row in rows] == [
            ("dotcom-user", "7", True),
            ("dotcom-product-subscriptions", UUID, True),
            ("dotcom-product-subscriptions", "00000000-0000-0000-0000-000000000002", False),
        ]
        table = (await run_cgw(environ, "actors", "list", "--source", "dotcom-product-subscriptions")).stdout.decode()
        lines = table.splitlines()
        assert lines[0].split()[:4] == ["source", "id", "name", "access"]
        assert len(lines) == 3
        assert "chat_completions 5,000 requests per 24h" in lines[1]
        for token in (INSTANCE, USER, TOKEN):
            assert token not in table + completed.stdout.decode()


async def test_list_without_any_actor_says_so(tmp_path: Path) -> None:
    """An empty list, and a remark on standard error."""
    completed = await run_cgw({"CODY_GATEWAY_DATA_DIR": str(tmp_path)}, "actors", "list", "--json")
    assert (completed.returncode, completed.stdout) == (0, b"[]\n")
    assert completed.stderr.startswith(b"no actors are known: ")
