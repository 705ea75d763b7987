"""``cgw limits``, as an operator runs it beside gateways."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest
import trio

import cgw
from cgw.limits.limiter import Limiter
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.opening import open_redis
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, TOKEN, build_environ
from tests.support.process import open_gateway_process
from tests.support.redis_server import run_redis_server
from tests.support.requests import HEADERS, build_body

ROOT = Path(cgw.__file__).parent.parent
PATH = "/v1/completions/anthropic-messages"
PASSWORD = "canary"


async def run_limits(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``cgw limits`` to its end; its output is a pipe."""
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    with trio.fail_after(30):
        return await trio.run_process(
            [sys.executable, "-m", "cgw", "limits", *arguments],
            env={**inherited, **environ},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that answers at once."""
    scripts = {ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY)}
    async with open_scripted_upstream(scripts) as upstream:
        yield upstream


@pytest.mark.parametrize("is_long", [False, True], ids=["short path", "long path"])
async def test_beside_a_gateway_with_its_embedded_store(
    tmp_path: Path, upstream: ScriptedUpstream, is_long: bool
) -> None:
    """The store of the running gateway is found, wherever its socket is; once reset, the actor gets through again."""
    data_dir = tmp_path / ("long" * 20 if is_long else "d")
    data_dir.mkdir()
    environ = build_environ(data_dir, upstream.url, limit=2)
    async with (
        open_gateway_process(environ, tmp_path / "log") as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client,
    ):
        body = build_body(PATH, stream=False)
        assert [(await client.post(PATH, json=body)).status_code for _ in range(3)] == [200, 200, 429]
        shown = await run_limits(environ, "show", "--actor", "acme", "--feature", "chat_completions", "--json")
        assert (shown.returncode, shown.stderr) == (0, b"")
        quota, rate = json.loads(shown.stdout)
        assert (quota["name"], quota["source"], quota["limit"], quota["used"]) == ("quota", "static", 2, 2)
        assert (quota["alert_percent"], rate["name"]) == (100, "concurrency")
        table = (await run_limits(environ, "show", "--actor", "acme")).stdout.decode().splitlines()
        assert table[0].split()[:5] == ["source", "feature", "limit", "size", "used"]
        assert len(table) == 5
        reset = await run_limits(environ, "reset", "--actor", "acme")
        assert (reset.returncode, reset.stderr) == (0, b"")
        assert (
            "chat_completions quota: 2 of 2 requests per 24h used; alert of 100 % had been sent"
            in reset.stdout.decode()
        )
        with trio.fail_after(5):  # a gateway repeats a refusal for a moment without asking
            while (await client.post(PATH, json=body)).status_code != 200:
                pass
    assert TOKEN.encode() not in shown.stdout


async def test_with_the_redis_of_the_settings(tmp_path: Path) -> None:
    """``REDIS_ENDPOINT`` is used, also for an actor that no local source knows; nothing to show is exit status 1."""
    remote = Actor("1234", "", "dotcom-product-subscriptions", True)
    with run_redis_server(tmp_path, "--requirepass", PASSWORD) as server:
        environ = {"REDIS_ENDPOINT": f"unix://:{PASSWORD}@{server.path}", "CODY_GATEWAY_ALLOW_ANONYMOUS": "true"}
        async with open_redis(environ["REDIS_ENDPOINT"], timeout_seconds=5) as links:
            rate_limit = RateLimit(10, 86_400_000, ("*",), 5, 3_600_000)
            await Limiter(links).admit(remote, Feature.CHAT_COMPLETIONS, rate_limit)
        shown = json.loads((await run_limits(environ, "show", "--actor", "1234", "--json")).stdout)
        assert [(row["source"], row["name"], row["used"], row["limit"]) for row in shown] == [
            ("dotcom-product-subscriptions", "quota", 1, 10),
            ("dotcom-product-subscriptions", "concurrency", 1, 5),
        ]
        anonymous = json.loads((await run_limits(environ, "show", "--actor", "anonymous", "--json")).stdout)
        assert {row["feature"] for row in anonymous} == {feature.value for feature in Feature}
        for action in ("show", "reset"):
            nothing = await run_limits(environ, action, "--actor", "nobody")
            assert (nothing.returncode, nothing.stdout) == (1, b"")
            assert b"no local source knows actor 'nobody'" in nothing.stderr
        first = await run_limits(environ, "reset", "--actor", "anonymous")
        assert (first.returncode, first.stdout) == (0, b"0 limits reset: none was used\n")


async def test_all_actors_with_activity_are_shown_without_an_id(tmp_path: Path) -> None:
    """Without ``--actor`` the limits in use of all actors are listed; with none in use, the list is empty."""
    with run_redis_server(tmp_path) as server:
        environ = {"REDIS_ENDPOINT": server.url}
        nothing = await run_limits(environ, "show", "--json")
        assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, b"[]\n", b"no limits are used now\n")
        async with open_redis(server.url, timeout_seconds=5) as links:
            limiter, rate_limit = Limiter(links), RateLimit(10, 86_400_000, ("*",), 5, 3_600_000)
            for actor_id, source, feature in (
                ("b", "dotcom-user", Feature.CHAT_COMPLETIONS),
                ("a", "dotcom-user", Feature.EMBEDDINGS),
                ("a", "static", Feature.CHAT_COMPLETIONS),
            ):
                await limiter.admit(Actor(actor_id, "", source, True), feature, rate_limit)
        shown = await run_limits(environ, "show", "--json", "--feature", "chat_completions")
        rows = [(row["source"], row["actor"], row["name"], row["used"]) for row in json.loads(shown.stdout)]
        assert rows == [
            ("dotcom-user", "b", "quota", 1),
            ("dotcom-user", "b", "concurrency", 1),
            ("static", "a", "quota", 1),
            ("static", "a", "concurrency", 1),
        ]
        table = (await run_limits(environ, "show", "--source", "dotcom-user")).stdout.decode().splitlines()
        assert table[0].split()[:4] == ["source", "actor", "feature", "limit"]
        assert [line.split()[:3] for line in table[1::2]] == [
            ["dotcom-user", "a", "embeddings"],
            ["dotcom-user", "b", "chat_completions"],
        ]


@pytest.mark.parametrize("action", ["show", "reset"])
async def test_without_a_store_it_is_one_sentence(tmp_path: Path, action: str) -> None:
    """No running gateway, or no Redis at the address, is exit status 1, without a traceback or a password."""
    for variables, reason in (
        ({}, "no gateway with an embedded store is running in data directory"),
        ({"REDIS_ENDPOINT": f"redis://:{PASSWORD}@127.0.0.1:1"}, "Redis at 127.0.0.1:1 can't be reached"),
    ):
        environ = {"CODY_GATEWAY_DATA_DIR": str(tmp_path / "data"), **variables}
        completed = await run_limits(environ, action, "--actor", "acme")
        assert (completed.returncode, completed.stdout) == (1, b"")
        (line,) = completed.stderr.decode().splitlines()
        assert line.startswith(f"cgw: {reason}")
        assert PASSWORD not in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["reset"],
        ["show", "--feature", "nonsense"],
        ["show", "--actor", "a", "--feature", "nonsense"],
        ["reset", "--actor", "a", "--source", "nonsense"],
    ],
)
async def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    """A missing actor, or an unknown feature or source, is reported before anything is read."""
    completed = await run_limits({}, *arguments)
    assert (completed.returncode, completed.stdout) == (2, b"")
    assert b"Error: " in completed.stderr
