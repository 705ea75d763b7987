"""Syncing by two gateways in processes of their own, which share a Redis and a scripted Sourcegraph.com."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from cgw.testing.json_server import JsonAnswer, JsonCall
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedSubscription, open_scripted_sourcegraph
from tests.support.process import GatewayProcess, open_gateway_process
from tests.support.redis_server import run_redis_server
from tests.support.sourcegraph_gateway import build_dotcom_environ
from tests.support.sources import subscription_token
from tests.support.waiting import wait_until

INTERVAL_SECONDS = 3.0
"""The lock expires after three quarters of it: a busy machine must not pause a process for so long."""
LISTING = "ListProductSubscriptions"
KEPT, REVOKED = subscription_token("kept"), subscription_token("revoked")


@pytest.fixture
async def sourcegraph() -> AsyncIterator[ScriptedSourcegraph]:
    """A Sourcegraph.com with two subscriptions."""
    async with open_scripted_sourcegraph() as scripted:
        scripted.subscriptions = [
            ScriptedSubscription("00000000-0000-0000-0000-000000000001", (KEPT,)),
            ScriptedSubscription("00000000-0000-0000-0000-000000000002", (REVOKED,)),
        ]
        yield scripted


@asynccontextmanager
async def open_pair(
    folder: Path, sourcegraph: ScriptedSourcegraph
) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess]]:
    """Run two gateways; the first one syncs. Each tells Sourcegraph.com its name, ``first`` or ``second``."""
    with run_redis_server(folder) as server:
        async with AsyncExitStack() as stack:
            gateways = []
            for name in ("first", "second"):
                data_dir = folder / name
                data_dir.mkdir()
                more = {
                    "REDIS_ENDPOINT": server.url,
                    "CODY_GATEWAY_SOURCES_SYNC_INTERVAL": f"{INTERVAL_SECONDS:g}s",
                    "CODY_GATEWAY_DOTCOM_CLIENT_ID": name,
                }
                environ = build_dotcom_environ(data_dir, sourcegraph, more)
                gateways.append(await stack.enter_async_context(open_gateway_process(environ, data_dir / "log")))
                await wait_until(lambda: bool(list_syncs(sourcegraph, "first")))
            yield gateways[0], gateways[1]


def list_syncs(sourcegraph: ScriptedSourcegraph, name: str) -> list[JsonCall]:
    """Return the listings that the gateway called ``name`` asked for."""
    listings = [call for call in sourcegraph.calls if call.target.endswith(f"?{LISTING}")]
    return [call for call in listings if call.header("x-sourcegraph-client-id") == name]


async def get_status(gateway: GatewayProcess, token: str) -> int:
    """Return the status of a request with ``token``."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        return (await client.get("/v1/limits", headers={"authorization": f"Bearer {token}"})).status_code


async def test_another_process_syncs_within_two_intervals_of_a_kill(
    tmp_path: Path, sourcegraph: ScriptedSourcegraph
) -> None:
    """While the holder lives, the other one does not sync; after ``kill -9`` it does, and removes what is gone."""
    async with open_pair(tmp_path, sourcegraph) as (first, second):
        await trio.sleep(1.5 * INTERVAL_SECONDS)
        assert list_syncs(sourcegraph, "second") == []
        assert await get_status(second, REVOKED) == 200
        first.kill()
        del sourcegraph.subscriptions[1]
        with trio.fail_after(2 * INTERVAL_SECONDS):
            await wait_until(lambda: bool(list_syncs(sourcegraph, "second")), seconds=60)
        with trio.fail_after(10):  # the process's own memory of a token is some seconds long
            while await get_status(second, REVOKED) != 401:  # noqa: ASYNC110 - it is another process
                await trio.sleep(0.1)
        assert await get_status(second, KEPT) == 200


async def test_a_process_that_stops_hands_over(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> None:
    """After SIGTERM the lock is free, and the other process has it within an interval."""
    async with open_pair(tmp_path, sourcegraph) as (first, _):
        first.terminate()
        assert await first.wait() == 0
        with trio.fail_after(INTERVAL_SECONDS):
            await wait_until(lambda: bool(list_syncs(sourcegraph, "second")), seconds=60)


async def test_a_paused_process_cannot_bring_a_revoked_token_back(
    tmp_path: Path, sourcegraph: ScriptedSourcegraph
) -> None:
    """SIGSTOP in the middle of a listing; when it goes on, the other process has removed a token of that listing."""

    def delay_first(call: JsonCall) -> JsonAnswer | None:
        # As it is now, with the token that is about to be revoked; it arrives while the process stands still.
        if call.header("x-sourcegraph-client-id") != "first" or LISTING not in call.target:
            return None
        nodes = [subscription.render(is_listed=True) for subscription in sourcegraph.subscriptions]
        page = {"totalCount": len(nodes), "pageInfo": {"endCursor": None, "hasNextPage": False}, "nodes": nodes}
        return JsonAnswer({"data": {"dotcom": {"productSubscriptions": page}}}, delay_seconds=0.5)

    async with open_pair(tmp_path, sourcegraph) as (first, second):
        sourcegraph.answer_next = delay_first
        count = len(list_syncs(sourcegraph, "first"))
        await wait_until(lambda: len(list_syncs(sourcegraph, "first")) > count)
        first.process.send_signal(signal.SIGSTOP)
        del sourcegraph.subscriptions[1]
        with trio.fail_after(2 * INTERVAL_SECONDS):
            await wait_until(lambda: bool(list_syncs(sourcegraph, "second")), seconds=60)
        with trio.fail_after(10):
            while await get_status(second, REVOKED) != 401:  # noqa: ASYNC110 - it is another process
                await trio.sleep(0.1)
        first.process.send_signal(signal.SIGCONT)
        for _ in range(10):
            await trio.sleep(0.1)
            assert await get_status(second, REVOKED) == 401
        await wait_until(lambda: b"does not sync the sources any more" in first.log_path.read_bytes())
