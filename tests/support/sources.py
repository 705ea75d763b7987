"""Cached sources in front of scripted services and a real Redis, without the rest of the gateway."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing
from attrs import define, field

from cgw.actors.dotcom.client import DotcomClient
from cgw.actors.dotcom.subscriptions import DotcomSubscriptions
from cgw.actors.dotcom.users import DotcomUsers
from cgw.actors.fetched.cached_source import CachedSource, CacheOptions, SourceParts
from cgw.actors.fetched.fetched_actor import ActorBuilder
from cgw.actors.fetched.redis_records import RedisRecords
from cgw.actors.fetched.synced_source import SyncedSource
from cgw.actors.fetched.token_shape import DOTCOM_USER_TOKEN, SUBSCRIPTION_TOKEN
from cgw.actors.policies import DOTCOM_USER, PRODUCT_SUBSCRIPTION
from cgw.actors.portal.sams import SamsTokens
from cgw.actors.portal.subscriptions import PortalSubscriptions
from cgw.actors.web import WebClient, open_web_client
from cgw.model import Actor, Feature
from cgw.redis.opening import Store, open_redis
from cgw.testing.scripted_portal import CLIENT_ID, CLIENT_SECRET, ScriptedPortal
from cgw.testing.scripted_sourcegraph import SERVICE_TOKEN, ScriptedSourcegraph

USER_FRESH_SECONDS = 900.0


def build_token(prefix: str, name: object) -> str:
    """Return a token of the right shape: ``name`` makes it unique."""
    return prefix + hashlib.sha256(str(name).encode()).hexdigest()


def user_token(name: object) -> str:
    return build_token("sgd_", name)


def subscription_token(name: object) -> str:
    return build_token("slk_", name)


@define
class Resets:
    """The usage resets that a source asked for."""

    done: list[tuple[str, tuple[Feature, ...]]] = field(factory=list)

    async def reset(self, actor: Actor, features: Sequence[Feature]) -> None:
        self.done.append((actor.id, tuple(features)))


@define
class SourceBench:
    """What sources of a test share. Each source that it makes is another replica: with a memory of its own."""

    store: Store
    web: WebClient
    nursery: trio.Nursery
    resets: Resets = field(factory=Resets)
    run_scope: trio.CancelScope = field(factory=trio.CancelScope)
    """The scope in which the last source that was started runs."""
    fresh_seconds: float = USER_FRESH_SECONDS
    ttl_seconds: float = 24 * 3600.0
    fetches_per_minute: int = 300

    def build_dotcom_client(self, sourcegraph: ScriptedSourcegraph) -> DotcomClient:
        return DotcomClient(
            self.web,
            sourcegraph.url,
            access_token=SERVICE_TOKEN,
            user_agent="Cody-Gateway/test 1.2.3",
            client_id="test-client",
        )

    async def start_users(self, sourcegraph: ScriptedSourcegraph) -> CachedSource:
        """Return a running source of users."""
        source = CachedSource(DotcomUsers(self.build_dotcom_client(sourcegraph)), self._build_parts(DOTCOM_USER))
        return await self._start(source)

    async def start_subscriptions(self, sourcegraph: ScriptedSourcegraph, *, is_internal: bool = False) -> SyncedSource:
        """Return a running source of subscriptions by GraphQL."""
        backend = DotcomSubscriptions(self.build_dotcom_client(sourcegraph), is_internal=is_internal)
        source = SyncedSource(backend, self._build_parts(PRODUCT_SUBSCRIPTION))
        await self._start(source)
        return source

    async def start_portal(self, portal: ScriptedPortal) -> SyncedSource:
        """Return a running source of subscriptions by the Enterprise Portal."""
        tokens = SamsTokens(self.web, portal.url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
        source = SyncedSource(
            PortalSubscriptions(self.web, portal.url, tokens), self._build_parts(PRODUCT_SUBSCRIPTION)
        )
        await self._start(source)
        return source

    async def _start(self, source: CachedSource) -> CachedSource:
        self.run_scope = trio.CancelScope()
        self.nursery.start_soon(self._run, source)
        await trio.testing.wait_all_tasks_blocked()
        return source

    async def _run(self, source: CachedSource) -> None:
        with self.run_scope:
            await source.run()

    def _build_parts(self, name: str) -> SourceParts:
        return SourceParts(
            shape=DOTCOM_USER_TOKEN if name == DOTCOM_USER else SUBSCRIPTION_TOKEN,
            builder=ActorBuilder(name, percentage=50, interval_ms=10_000),
            records=RedisRecords(
                self.store, name, ttl_seconds=self.ttl_seconds, is_indexed=name == PRODUCT_SUBSCRIPTION
            ),
            options=CacheOptions(
                fresh_seconds=self.fresh_seconds,
                ttl_seconds=self.ttl_seconds,
                cooldown_seconds=300,
                fetches_per_minute=self.fetches_per_minute,
            ),
            on_interval_change=self.resets.reset,
        )


@asynccontextmanager
async def open_source_bench(redis_url: str, tls_context: ssl.SSLContext) -> AsyncIterator[SourceBench]:
    """Open what sources need, with Redis at ``redis_url``; the sources end with the block."""
    async with (
        open_redis(redis_url, timeout_seconds=2) as store,
        open_web_client(tls_context) as web,
        trio.open_nursery() as nursery,
    ):
        yield SourceBench(store, web, nursery)
        nursery.cancel_scope.cancel()
