"""The source of callers without a token: one actor, whose limits they all share (the reference's §2.4)."""

from __future__ import annotations

from cgw.actors.actors_file import default_unit
from cgw.actors.concurrency import DAY_MS, derive_concurrent_requests
from cgw.actors.policies import ANONYMOUS, POLICIES
from cgw.actors.source import ActorList, NotFromSource
from cgw.model import Actor, Feature, RateLimit

# Limit per 24 hours, and models: the reference's §2.4.
_LIMITS = {
    Feature.CHAT_COMPLETIONS: (
        50,
        ("anthropic/claude-v1", "anthropic/claude-2", "anthropic/claude-2.0", "anthropic/claude-2.1"),
    ),
    Feature.CODE_COMPLETIONS: (
        1000,
        ("anthropic/claude-instant-v1", "anthropic/claude-instant-1", "anthropic/claude-instant-1.2"),
    ),
    Feature.EMBEDDINGS: (100_000, ("openai/text-embedding-ada-002",)),
}
_EMBEDDINGS_CONCURRENT_REQUESTS = 10


class AnonymousSource:
    """Knows the empty token only."""

    name = ANONYMOUS

    def __init__(self, *, percentage: int, interval_ms: int) -> None:
        """``percentage`` and ``interval_ms`` are the settings of the short-term rate."""
        limits = {}
        # One actor, built once: all callers without a token share its limits.
        for feature, (limit, models) in _LIMITS.items():
            concurrent_requests = derive_concurrent_requests(limit, DAY_MS, percentage, interval_ms)
            if feature is Feature.EMBEDDINGS:  # fixed in the reference (§2.4); its limit counts tokens, not requests
                concurrent_requests = _EMBEDDINGS_CONCURRENT_REQUESTS
            limits[feature] = RateLimit(limit, DAY_MS, models, concurrent_requests, interval_ms, default_unit(feature))
        self._actor = Actor(
            id="anonymous",
            name="anonymous",
            source=self.name,
            # The source exists only while anonymous access is on. In the reference it always exists, with access off by
            # default.
            access_enabled=True,
            rate_limits=limits,
            policy=POLICIES[self.name],
        )

    async def get(self, token: str, client: str = "") -> Actor:
        """Return the anonymous actor. Raises :exc:`~cgw.actors.source.NotFromSource` for any token. Does not block."""
        if token:
            raise NotFromSource
        return self._actor

    async def list_actors(self, *, max_actors: int, seconds: float) -> ActorList:
        """See :class:`~cgw.actors.source.Lister`."""
        return ActorList((self._actor,))
